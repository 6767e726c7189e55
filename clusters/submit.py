"""Submits trainings: the program behind scripts/submit."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from clusters import jobset, slurm, tpu, vertex
from clusters.job import OF_SOME, TARGETS, Job, Plan
from trainer import flags
from trainer.exits import INTERRUPTED, MissingPackage, UsageError, UserError, file_problem

PLANS: dict[str, Callable[[Job], Plan]] = {
    "slurm": slurm.plan,
    "jobset": jobset.plan,
    "vertex": vertex.plan,
    "tpu": tpu.plan,
}

HELP = {
    "data": "folder of the data, bound to DATA in the configuration",
    "nodes": "workers, one on each node (1)",
    "devices": "accelerators of a node (0: its CPUs)",
    "accelerator": "which, as the cluster names them",
    "cpus": "of a node",
    "memory": "of a node, in GiB",
    "minutes": "at the longest",
    "queue": "partition of Slurm, or local queue of Kueue",
    "image": "of the container; with Slurm it needs pyxis",
    "venv": "virtual environment on all nodes (default: this one, without --image)",
    "directory": "where it starts (default: here)",
    "namespace": "of Kubernetes",
    "topology": "of a TPU slice, such as 2x4",
    "restarts": "after it was preempted or killed (10)",
    "grace": "seconds in which it saves before it is stopped (60)",
    "machine": "type of a node, such as n1-standard-8",
    "region": "such as europe-west4",
    "zone": "such as europe-west4-b",
    "project": "of Google Cloud (default: gcloud's)",
    "service_account": "as whom it runs",
    "tensorboard": "projects/…/locations/…/tensorboards/…",
    "runtime": "version of the TPU's software; one with -pod for slices of several machines",
}

MODES = {
    "slurm": "a batch script for sbatch",
    "jobset": "a JobSet for Kubernetes",
    "vertex": "a custom job of Vertex AI",
    "tpu": "a queued resource of Cloud TPU, and a watch that keeps it",
}


def main(arguments: Sequence[str]) -> int:
    """Runs a command line, without the program's name; returns the exit code."""
    before, after = _split(arguments)
    line = _parser().parse_args(before)
    try:
        job = _job(line, after)
        plan = planned(line.target, job)
        if not line.submit:
            print(shown(plan), end="")
            return 0
        return submit(plan, Path(line.folder or Path("runs", "submitted", job.name)))
    except flags.Answer as answer:
        print(answer)
        return 0
    except UserError as error:
        print(f"lockstep: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("lockstep: interrupted; the same command goes on", file=sys.stderr)
        return INTERRUPTED


def planned(target: str, job: Job) -> Plan:
    """The files and commands of a job.

    Raises:
      UsageError: in one line, what is wrong with the job.
      flags.Answer: if its arguments ask for help or the version.
    """
    job.check(target)
    return PLANS[target](job)


def shown(plan: Plan) -> str:
    """The plan as text."""
    parts = [f"# {name}\n{text}" for name, text in plan.files.items()]
    commands = "".join(f"{shlex.join(command)}\n" for command in plan.commands)
    return "\n".join([*parts, f"# commands\n{commands}"])


def submit(plan: Plan, folder: Path) -> int:
    """Writes the files to a folder and runs the commands there; returns the exit code of the last one run.

    Raises:
      CannotCreate, NoPermission: if a file cannot be written.
      MissingPackage: if a program is not there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in plan.files.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise file_problem(error, str(folder), "submit it again", "give another --folder") from None
    for command in plan.commands:
        print(shlex.join(command), file=sys.stderr)
        try:
            code = subprocess.run(command, cwd=folder).returncode
        except FileNotFoundError:
            raise MissingPackage(
                f"{command[0]} is not installed here: submit where it is, or leave --submit out to see the files"
            ) from None
        if code:
            return code
    return 0


def _split(arguments: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """What is before -- and after it."""
    if "--" not in arguments:
        return list(arguments), ()
    at = list(arguments).index("--")
    return list(arguments[:at]), tuple(arguments[at + 1 :])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/submit",
        description="Submits a training: prints the files and commands, and runs them with --submit.",
        allow_abbrev=False,
    )
    targets = parser.add_subparsers(dest="target", required=True, metavar="TARGET")
    numbers = {f.name for f in dataclasses.fields(Job) if str(f.type).startswith("int")}
    for target in TARGETS:
        one = targets.add_parser(
            target,
            help=MODES[target],
            usage=f"scripts/submit {target} --name=NAME --workdir=FOLDER [flags] -- CONFIG [flags of lockstep train]",
            allow_abbrev=False,
        )
        one.add_argument("--name", required=True, help="of the job")
        one.add_argument(
            "--workdir", required=True, help="folder of the run, the same on all nodes"
        )
        for name, text in HELP.items():
            if target in OF_SOME.get(name, TARGETS):
                kind = int if name in numbers else str
                one.add_argument(f"--{name}", type=kind, metavar=name.upper(), help=text)
        repeated = [("env", "NAME=VALUE", "variable; repeatable, no secrets")]
        if target == "jobset":
            repeated.append(("secret", "NAME=SECRET/KEY", "variable from a secret; repeatable"))
        if target in OF_SOME["mounts"]:
            text = "folder, volume claim or gs://bucket, and where the job sees it; repeatable"
            repeated.append(("mount", "SOURCE:PATH", text))
        if target == "slurm":
            text = "a training for each value of it; repeatable, for all combinations"
            repeated.append(("sweep", "PARAMETER=VALUE", text))
        else:
            one.add_argument(
                "--spot", action="store_true", help="on capacity that may be reclaimed"
            )
        for name, form, text in repeated:
            one.add_argument(f"--{name}", action="append", default=[], metavar=form, help=text)
        one.add_argument("--submit", action="store_true", help="run the commands")
        one.add_argument("--folder", help="of the files (default: runs/submitted/NAME)")
    return parser


def _job(line: argparse.Namespace, arguments: tuple[str, ...]) -> Job:
    given = {name: value for name, value in vars(line).items() if value is not None}
    given = {name: value for name, value in given.items() if name in HELP or name == "spot"}
    if line.target == "slurm":
        given.setdefault("directory", os.getcwd())
        if line.image is None:
            given.setdefault("venv", sys.prefix)
        line.workdir = os.path.abspath(os.path.expanduser(line.workdir))
    secrets = [_pair("secret", text, "=") for text in getattr(line, "secret", [])]
    return Job(
        name=line.name,
        arguments=arguments,
        workdir=line.workdir,
        env=tuple(_pair("env", text, "=") for text in line.env),
        secrets=tuple((name, *_pair("secret", text, "/")) for name, text in secrets),
        mounts=tuple(_mount(text) for text in getattr(line, "mount", [])),
        sweep=_sweep(getattr(line, "sweep", [])),
        **given,
    )


def _pair(flag: str, text: str, separator: str) -> tuple[str, str]:
    """The two parts of a flag's value."""
    first, found, second = text.partition(separator)
    if not found:
        raise UsageError(f'--{flag}="{text}" has no "{separator}": see --help')
    return first, second


def _mount(text: str) -> tuple[str, str]:
    """Source and path; the colon of gs:// is not the one between them."""
    source, found, path = text.rpartition(":/")
    if not found or source == "gs":
        raise UsageError(f'--mount="{text}" has no path: write SOURCE:/path')
    return source, f"/{path}"


def _sweep(texts: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Every combination of one value for each parameter, as arguments."""
    if not texts:
        return ()
    values: dict[str, list[str]] = {}
    for text in texts:
        name, value = _pair("sweep", text, "=")
        values.setdefault(name, []).append(f"--gin_param={name}={value}")
    return tuple(itertools.product(*values.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
