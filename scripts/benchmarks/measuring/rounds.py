"""Rounds of several contestants in turn, so that what else a machine does meets all of them, and what they come to."""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import rich.box
import rich.console
import rich.table


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one round: seconds by the clock, and of the processor, all threads together."""

    seconds: float
    processor: float


Costs = Mapping[str, Sequence[Cost]]
"""Of the rounds, by contestant."""


class Stopwatch:
    """Runs from when it is made."""

    def __init__(self) -> None:
        self._seconds, self._processor = time.perf_counter(), time.process_time()

    def read(self) -> Cost:
        return Cost(time.perf_counter() - self._seconds, time.process_time() - self._processor)


def timed(run: Callable[[], object]) -> Callable[[], Cost]:
    """A contestant, whose round is a call."""

    def contestant() -> Cost:
        stopwatch = Stopwatch()
        run()
        return stopwatch.read()

    return contestant


def take_turns(contestants: Mapping[str, Callable[[], Cost]], rounds: int) -> dict[str, list[Cost]]:
    """What each round of each contestant costs; a contestant's call is one round of its own.

    Every other round goes in the opposite order, since whoever follows another has the colder caches. How far it is is said on
    stderr.

    Args:
      contestants: by name; what they trace and compile is behind them.
      rounds: of each.
    """
    costs: dict[str, list[Cost]] = {name: [] for name in contestants}
    for number in range(rounds):
        began = time.perf_counter()
        for name in list(contestants)[:: -1 if number % 2 else 1]:
            costs[name].append(contestants[name]())
        if number % max(1, rounds // 10) == 0:
            seconds = time.perf_counter() - began
            print(f"round {number + 1} of {rounds}: {seconds:.1f} s", file=sys.stderr)
    return costs


def compare(costs: Costs, one: str, other: str) -> dict[str, float]:
    """How many times as fast `one` is as `other`.

    Returns:
      "ratio", the median of the rounds, and "ratio_of_best", of the best round of each. They differ where others use the
      machine: then threads that wait for each other actively, as OpenMP's do, lose many times what others lose.
    """
    pairs = zip(costs[one], costs[other], strict=True)
    ratio = statistics.median(b.seconds / a.seconds for a, b in pairs)
    return {"ratio": ratio, "ratio_of_best": best(costs[other]) / best(costs[one])}


def compared(found: Mapping[str, float]) -> str:
    """That, for people."""
    return f"{found['ratio']:.2f} times as fast (median of the rounds), {found['ratio_of_best']:.2f} by the best of each"


def best(costs: Sequence[Cost]) -> float:
    """Seconds of the shortest round: what a machine does when nobody else uses it."""
    return min(cost.seconds for cost in costs)


def median(costs: Sequence[Cost]) -> float:
    """Seconds of a round in the middle."""
    return statistics.median(cost.seconds for cost in costs)


def processor(costs: Sequence[Cost]) -> float:
    """Seconds of the processor of a round in the middle, which others disturb the least."""
    return statistics.median(cost.processor for cost in costs)


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout, of which the first column is names."""
    table = rich.table.Table(box=rich.box.SIMPLE)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    print(title)
    # Also where stdout is a file, for which rich would cut it to 80 columns.
    rich.console.Console(width=max(120, rich.console.Console().width)).print(table)
