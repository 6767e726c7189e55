"""Tables on stdout."""

from __future__ import annotations

import sys

import rich.console
import rich.table

from trainer.output import discard


class _Console(rich.console.Console):
    def on_broken_pipe(self) -> None:
        # Rich would end the process with 1; what reads our output wants no more of it, and the end has the code that it has.
        discard(sys.stdout.fileno())


def show(table: rich.table.Table) -> None:
    """Prints a table."""
    _Console().print(table)
