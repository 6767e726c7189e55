"""Starts a gang of workers on this machine: the program behind scripts/launch."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence

from clusters.gang import Gang, command
from clusters.job import hosts_of
from trainer import flags
from trainer.exits import UsageError
from trainer.output import say


def main(arguments: Sequence[str]) -> int:
    """Runs a command line, without the program's name; returns the exit code."""
    at = list(arguments).index("--") if "--" in arguments else len(arguments)
    line, given = _parser().parse_args(arguments[:at]), tuple(arguments[at + 1 :])
    try:
        gang = _gang(line, given)
    except flags.Answer as answer:
        print(answer)
        return 0
    except UsageError as error:
        print(f"lockstep: {error}", file=sys.stderr)
        return error.code
    return gang.run()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/launch",
        usage="scripts/launch --workers=N [flags] -- train CONFIG --workdir=FOLDER [flags of lockstep]",
        description="Starts workers on this machine, which end together.",
        epilog="exit code: that of the first worker that failed",
        allow_abbrev=False,
    )
    parser.add_argument("--workers", type=int, metavar="N", help="how many (MAX of --elastic)")
    parser.add_argument(
        "--max_restarts",
        type=int,
        default=0,
        metavar="K",
        help="from the last checkpoint, after one exited with 75 or was ended by a signal (0)",
    )
    parser.add_argument(
        "--elastic",
        metavar="MIN:MAX",
        help="a restart after a worker was lost has one less, down to MIN",
    )
    parser.add_argument(
        "--grace",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="from SIGTERM to SIGKILL for the others when one has failed (30)",
    )
    return parser


def _gang(line: argparse.Namespace, arguments: tuple[str, ...]) -> Gang:
    least, workers = _numbers(line.elastic, line.workers)
    for name, value, lowest in (
        ("max_restarts", line.max_restarts, 0),
        ("grace", line.grace, 0),
    ):
        if not value >= lowest:
            raise UsageError(f"--{name}={value}: it must be at least {lowest}")
    if line.elastic and not line.max_restarts:
        raise UsageError(
            f"--elastic={line.elastic} is for restarts, and there is none: give --max_restarts"
        )
    for argument in arguments:
        if re.match(r"--?(hosts|worker)(=|$)", argument):
            raise UsageError(f"{argument} is set for each worker: remove it after --")
    # Else every worker would say what is wrong.
    flags.parse([*arguments, *hosts_of(workers)])
    return Gang(
        command=command(arguments),
        workers=workers,
        least=least,
        restarts=line.max_restarts,
        grace=line.grace,
        note=lambda text: say(f"launch: {text}", sys.stderr),
    )


def _numbers(elastic: str | None, workers: int | None) -> tuple[int, int]:
    """How many workers at the least and at the start."""
    if elastic is None:
        if workers is None:
            raise UsageError("no --workers: say how many")
        least = most = workers
    else:
        match = re.fullmatch(r"(\d+):(\d+)", elastic)
        if match is None:
            raise UsageError(f"--elastic={elastic}: write MIN:MAX, such as 1:4")
        least, most = int(match[1]), int(match[2])
        workers = most if workers is None else workers
    if not 1 <= least <= workers <= most:
        given = f"--workers={workers}" + (f" --elastic={elastic}" if elastic else "")
        raise UsageError(f"{given}: at least 1, and MIN <= workers <= MAX")
    return least, workers


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
