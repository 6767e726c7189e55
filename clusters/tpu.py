"""Cloud TPU: a queued resource whose machines train by themselves, and a watch that makes it again when it was reclaimed."""

from __future__ import annotations

import shlex

from clusters.job import Job, Plan
from clusters.shell import RESTARTING
from trainer.exits import UsageError

STATE = "/var/lib/lockstep"
"""Where the machine keeps the exit code of a training that is done or failed for good."""

STARTUP = """\
#!/bin/bash
# Runs as root at each start of each machine of the TPU. The first one trains, on the chips of all.
set -u
attributes=http://metadata.google.internal/computeMetadata/v1/instance/attributes
worker=$(curl --silent --header "Metadata-Flavor: Google" $attributes/agent-worker-number)
if [ "${{worker:-0}}" != 0 ] || [ -e {state}/code ]; then exit 0; fi
mkdir -p {state}
{mounts}docker rm --force {name} 2>/dev/null
set -- {run}
"""

END = """\
# Stopped with the machine: the watch starts another.
if [ -z "$stopped" ]; then echo "$code" >{state}/code; fi
"""

WATCH = """\
#!/bin/bash
# Keeps {name} there until its training is done, and removes it then. It may be stopped and started again at any time.
set -u
tpus() {{ gcloud compute tpus "$1" "$2" {name} {where} "${{@:3}}"; }}
remove() {{ tpus queued-resources delete --force --quiet; }}

made=0
while :; do
    state=$(tpus queued-resources describe --format="value(state.state)" 2>/dev/null) ||
        case $(tpus queued-resources describe 2>&1) in
            *NOT_FOUND*) state=NONE ;;
            *) state=UNKNOWN ;;
        esac
    case $state in
        NONE)
            if [ "$made" -gt {restarts} ]; then
                echo "lockstep: {name} was made $made times: see why, and start again" >&2
                exit 75
            fi
            made=$((made + 1))
            tpus queued-resources create {create} || exit ;;
        SUSPENDED | FAILED)
            echo "lockstep: {name} is $state: making it again" >&2
            remove || exit
            continue ;;
        ACTIVE)
            code=$(tpus tpu-vm ssh --worker=0 --command="cat {state}/code" 2>/dev/null </dev/null) || code=
            if [ -n "$code" ]; then
                remove
                exit "$code"
            fi ;;
    esac
    sleep "${{LOCKSTEP_WATCH_SECONDS:-60}}"
done
"""


def plan(job: Job) -> Plan:
    """The script that each machine starts with, the watch, and the command that starts it."""
    startup, watch = f"{job.name}-startup.sh", f"{job.name}-watch.sh"
    where = [f"--zone={job.zone}"]
    if job.project:
        where.append(f"--project={job.project}")
    create = [
        f"--node-id={job.name}",
        f"--accelerator-type={job.accelerator}",
        f"--runtime-version={job.runtime}",
        f"--metadata-from-file=startup-script={startup}",
    ]
    if job.spot:
        create.append("--spot")
    if job.service_account:
        create.append(f"--service-account={job.service_account}")
    text = WATCH.format(
        name=job.name,
        where=shlex.join(where),
        create=shlex.join(create),
        state=STATE,
        restarts=job.restarts,
    )
    return Plan({startup: _startup(job), watch: text}, (("bash", watch),))


def _startup(job: Job) -> str:
    mounts = "".join(_mount(source, path) for source, path in job.mounts)
    slice_of_many = "-pod" in str(job.runtime)
    env = [*job.env]
    if slice_of_many:
        # The machines' own servers hold the chips.
        env.append(("TPU_LOAD_LIBRARY", "0"))
    run = ["docker", "run", "--rm", f"--name={job.name}", "--privileged", "--network=host"]
    run += [f"--stop-timeout={job.grace}"]
    run += [f"--volume={path}:{path}" for _, path in job.mounts]
    run += [f"--env={name}={value}" for name, value in env]
    tpu = f"--tpu={job.name if slice_of_many else 'local'}"
    run += ["--entrypoint=lockstep", str(job.image), "train", *job.train((tpu,))]
    begin = STARTUP.format(state=STATE, name=job.name, mounts=mounts, run=shlex.join(run))
    return begin + RESTARTING.format(restarts=job.restarts) + END.format(state=STATE)


def _mount(source: str, path: str) -> str:
    if not source.startswith("gs://"):
        raise UsageError(f"--mount={source}:{path}: a TPU's machine has buckets alone: gs://BUCKET")
    bucket, folder = source.removeprefix("gs://"), shlex.quote(path)
    return (
        f"mkdir -p {folder}\n"
        f"mountpoint --quiet {folder} || gcsfuse --implicit-dirs {bucket} {folder} || exit\n"
    )
