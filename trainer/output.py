"""What is said on stdout and stderr, also where nobody reads them any more."""

from __future__ import annotations

import os
from typing import IO


def discard(number: int) -> None:
    """What is written to a file descriptor from now on."""
    sink = os.open(os.devnull, os.O_WRONLY)
    if sink != number:
        os.dup2(sink, number)
        os.close(sink)
    os.set_inheritable(number, True)


def say(text: str, destination: IO[str]) -> None:
    """Writes a line. Where it cannot, all goes on: nobody waits for it, and the end has the code that it has."""
    try:
        # One call for a line, so that lines of several processes do not mix.
        destination.write(f"{text}\n")
        destination.flush()
    except BrokenPipeError:  # Nobody reads it any more, nor what is left of it at the end.
        discard(destination.fileno())
    except OSError:
        pass
