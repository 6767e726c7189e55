"""Tables on stdout."""

from __future__ import annotations

import os
import sys

import rich.console
import rich.table


class _Console(rich.console.Console):
    def on_broken_pipe(self) -> None:
        # Rich would end the process with 1; what reads our output wants no more of it, and the end has the code that it has.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def show(table: rich.table.Table) -> None:
    """Prints a table."""
    _Console().print(table)
