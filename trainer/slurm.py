"""The workers of a Slurm step, by the variables that srun gives each of its tasks."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence

NAME = re.compile(r"(?:[^\s,\[\]]|\[[\d,-]+\])+")
PIECE = re.compile(r"\[([\d,-]+)\]|([^\[\]]+)")

FIRST_PORT = 10_000
"""Ports are below 32,768, where Linux begins with those that it gives to outgoing connections."""
PORTS_OF_A_JOB = 16
JOBS = 1_250


def expand(nodes: str) -> list[str]:
    """Names of nodes in a list as Slurm writes it: "n[1-3,07],login" is n1, n2, n3, n07 and login, in this order.

    Raises:
      ValueError: if it is not such a list.
    """
    names: list[str] = []
    for part in _split(nodes):
        if not NAME.fullmatch(part):
            raise ValueError(f'"{part}" is no name of a node')
        pieces = [
            list(_numbers(found[1])) if found[1] else [found[2]] for found in PIECE.finditer(part)
        ]
        names += map("".join, itertools.product(*pieces))
    return names


def _split(nodes: str) -> Iterator[str]:
    """At commas outside of brackets."""
    return iter(re.split(r",(?![^\[]*\])", nodes))


def _numbers(ranges: str) -> Iterator[str]:
    """ "1-3,07" is 1, 2, 3 and 07; a range is as wide as its first number."""
    for part in ranges.split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if not found or int(found[2] or found[1]) < int(found[1]):
            raise ValueError(f'"{part}" is no range of nodes')
        for number in range(int(found[1]), int(found[2] or found[1]) + 1):
            yield f"{number:0{len(found[1])}d}"


def counts(tasks_per_node: str) -> list[int]:
    """Tasks of each node: "2(x3),1" is 2, 2, 2 and 1.

    Raises:
      ValueError: if it is no such list.
    """
    found = []
    for part in tasks_per_node.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if not match:
            raise ValueError(f'"{part}" is no number of tasks')
        found += [int(match[1])] * int(match[2] or 1)
    return found


def place(nodes: Sequence[str], tasks: Sequence[int], distribution: str) -> list[str]:
    """The node of each task in the order of SLURM_PROCID.

    Args:
      nodes: of the step.
      tasks: how many each of them has.
      distribution: SLURM_DISTRIBUTION, of which the part before ":" and "," says how tasks are laid over nodes; "block",
        which fills a node before the next, if empty.

    Raises:
      ValueError: if the order cannot be known.
    """
    kind = re.split(r"[:,]", distribution.lower() or "block")[0]
    if kind in ("block", "*") or max(tasks) <= 1:
        return [node for node, count in zip(nodes, tasks, strict=True) for _ in range(count)]
    if kind == "cyclic":
        rounds = range(max(tasks))
        return [n for turn in rounds for n, count in zip(nodes, tasks, strict=True) if turn < count]
    raise ValueError("the order of tasks is not known")


def first_port(job: int, step: int, restarts: int) -> int:
    """The port of task 0; task i has i more.

    Jobs of neighbouring numbers, which may share a node, have distant ports, any 1,250 in a row different ones; and a restart
    another than the start before it, whose tasks may still run on a lost node.
    """
    return FIRST_PORT + PORTS_OF_A_JOB * ((773 * job + 101 * step + 37 * restarts) % JOBS)
