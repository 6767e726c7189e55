"""Slurm: a batch script that starts one task a node, saves before it is stopped, and puts itself in the queue again."""

from __future__ import annotations

import shlex

from clusters.job import Job, Plan
from clusters.shell import WAIT

TASK = (
    """\
# srun forwards USR1 to all processes of a task; lockstep saves on TERM.
(trap "" USR1; exec "$@") &
"""
    + WAIT.format(signal="TERM")
    + """\
# The step ends with the highest code of its tasks: an error of one must win over the 75 of those that lost it. 1 is srun's own.
case $code in [1-3]) code=70 ;; 75) code=3 ;; esac
exit "$code"
"""
)

END = (
    WAIT.format(signal="USR1")
    + """\
if [ "$code" = 3 ]; then code=75; fi

# 75: it has saved and asks for another start; above 128: a signal ended it. The state is another after scancel.
job=${{SLURM_ARRAY_JOB_ID:+${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID}}
job=${{job:-$SLURM_JOB_ID}}
if {{ [ "$code" = 75 ] || [ "$code" -gt 128 ]; }} && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {restarts} ] &&
    [ "$(squeue --noheader --jobs="$job" --format=%T)" != COMPLETING ]; then
    scontrol requeue "$job"
fi
exit "$code"
"""
)


def plan(job: Job) -> Plan:
    """A batch script, and the command that submits it."""
    file = f"{job.name}.sbatch"
    return Plan({file: _script(job)}, (("mkdir", "-p", job.workdir), ("sbatch", file)))


def _script(job: Job) -> str:
    program = f"{job.venv}/bin/lockstep" if job.venv else "lockstep"
    lines = ["#!/bin/bash", *(f"#SBATCH {option}" for option in _options(job)), "set -u", ""]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in job.env]
    if job.sweep:
        lines.append("case $SLURM_ARRAY_TASK_ID in")
        for index, more in enumerate(job.sweep):
            words = shlex.join(job.train(more, f"{job.workdir}/{index:04d}"))
            lines.append(f"    {index}) set -- {words} ;;")
        lines.append("esac")
    else:
        lines.append(f"set -- {shlex.join(job.train())}")
    lines += [
        "",
        f"task={shlex.quote(TASK)}",
        f'{_srun(job)} bash -c "$task" lockstep {shlex.quote(program)} train "$@" &',
    ]
    return "\n".join(lines) + "\n" + END.format(restarts=job.restarts)


def _options(job: Job) -> list[str]:
    output = "slurm-%A-%a.out" if job.sweep else "slurm-%j.out"
    options = [
        f"--job-name={job.name}",
        f"--nodes={job.nodes}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={job.cpus}" if job.cpus else "--exclusive",
    ]
    if job.devices:
        kind = f"{job.accelerator}:" if job.accelerator else ""
        options.append(f"--gpus-per-node={kind}{job.devices}")
    if job.memory:
        options.append(f"--mem={job.memory}G")
    if job.minutes:
        options.append(f"--time={job.minutes}")
    if job.queue:
        options.append(f"--partition={job.queue}")
    if job.directory:
        options.append(f'--chdir="{job.directory}"')
    if job.sweep:
        options.append(f"--array=0-{len(job.sweep) - 1}")
    else:
        # Submitted twice, the second waits for the first and goes on; tasks of an array would wait for each other.
        options.append("--dependency=singleton")
    return [
        *options,
        f'--output="{job.workdir}/{output}"',
        "--open-mode=append",
        "--requeue",
        f"--signal=B:USR1@{job.grace}",
    ]


def _srun(job: Job) -> str:
    words = ["srun", "--label"]
    # srun does not take it from the batch script.
    words.append(f"--cpus-per-task={job.cpus}" if job.cpus else "--cpu-bind=none")
    if job.image:
        words.append(f"--container-image={job.image}")
        words += [f"--container-mounts={source}:{path}" for source, path in job.mounts]
    return shlex.join(words)
