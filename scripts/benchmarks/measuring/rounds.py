"""Rounds of several contestants in turn, so that what else a machine does meets all of them, and what they come to."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

import rich.box
import rich.console
import rich.table

Seconds = Mapping[str, Sequence[float]]
"""Of each round, by contestant."""


def take_turns(
    contestants: Mapping[str, Callable[[], float]],
    rounds: int,
    told: Callable[[int], None] = lambda _: None,
) -> dict[str, list[float]]:
    """Seconds of each round of each contestant, whose call is one round of its own and returns its seconds.

    The order is turned round after each round, since whoever follows a slow one has the colder caches.

    Args:
      contestants: by name; what they trace and compile is behind them.
      rounds: of each.
      told: is called after each round, with how many are done.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name in sorted(contestants, reverse=number % 2 == 1):
            seconds[name].append(contestants[name]())
        told(number + 1)
    return seconds


def ratio(seconds: Seconds, one: str, other: str) -> float:
    """How many times as fast `one` is as `other`: the median of the rounds."""
    return statistics.median(b / a for a, b in zip(seconds[one], seconds[other], strict=True))


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout, of which the first column is names."""
    table = rich.table.Table(title=title, title_justify="left", box=rich.box.SIMPLE)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    rich.console.Console(width=max(100, rich.console.Console().width)).print(table)
