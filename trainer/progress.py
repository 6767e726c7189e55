"""How far a run is: a bar on a terminal, elsewhere one plain line per interval."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

import rich.console
import rich.progress

REFRESH_SECONDS = 0.1
NARROWEST_BAR, WIDEST_BAR = 5, 40
MOST_LOSSES = 4
SHORT_WORD = 4


class Progress:
    """Shows the step, the share done, the time left, examples per second and the latest losses.

    Args:
      total_steps: at which the run ends.
      start_step: at which it began or went on.
      stream: where it is shown. One that is gone (a closed pipe) does not end a training.
      clock: seconds, rising.
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int,
        stream: TextIO,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._total = total_steps
        self._clock = clock
        self._began = (start_step, clock())
        self._first: tuple[int, float] | None = None
        terminal = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._show: _Bar | _Lines = (
            _Bar(total_steps, start_step, stream) if terminal else _Lines(total_steps, stream)
        )
        self._shown = -math.inf

    def update(self, step: int, examples_per_second: float) -> None:
        """After each loop of steps."""
        now = self._clock()
        eta = self._eta(step, now)
        if self._first is None:
            self._first = (step, now)
        if now - self._shown >= REFRESH_SECONDS or step >= self._total:
            self._shown = now
            self._show.update(step, examples_per_second, eta)

    def report(
        self, step: int, metrics: Mapping[str, float], examples_per_second: float, seconds: float
    ) -> None:
        """At each logging interval; `seconds` is how long the run has taken."""
        eta = self._eta(step, self._clock())
        self._show.report(step, latest_losses(metrics), examples_per_second, seconds, eta)

    def close(self) -> None:
        self._show.close()

    def _eta(self, step: int, now: float) -> float | None:
        """Seconds left at the mean pace since the first loop, which compiles and so is left out."""
        since = self._first if self._first and step > self._first[0] else self._began
        if step <= since[0]:
            return None
        return (self._total - step) * (now - since[1]) / (step - since[0])


def latest_losses(metrics: Mapping[str, float]) -> list[tuple[str, float]]:
    """The few metrics worth a glance, by short names.

    They are the losses of train/ (all of train/, if none is a loss), then eval/. The loss of a
    phase goes by the phase's name.
    """
    train = [name for name in sorted(metrics) if name.startswith("train/")]
    losses = [name for name in train if name.endswith("loss")] or train
    evaluation = [name for name in sorted(metrics) if name.startswith("eval/")]
    return [
        (
            name.removeprefix("train/").removesuffix("/loss") if name in losses else name,
            metrics[name],
        )
        for name in [*losses, *evaluation][:MOST_LOSSES]
    ]


def number(value: float) -> str:
    """A metric in at most nine characters."""
    if not math.isfinite(value) or value == 0 or 1e-3 <= abs(value) < 1e3:
        return f"{value:.4f}"
    return f"{value:.1f}" if 1e3 <= abs(value) < 1e6 else f"{value:.2e}"


def duration(seconds: float | None) -> str:
    """A time in at most six characters, such as "340 s", "25 min", "7.5 h" or "3.2 d"."""
    if seconds is None:
        return "-"
    if seconds < 600:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} d"


def _percent(step: int, total: int) -> int:
    return 100 * step // total if total else 100


class _Lines:
    """Plain lines, their columns aligned."""

    def __init__(self, total: int, stream: TextIO):
        self._total, self._stream = total, stream

    def update(self, step: int, rate: float, eta: float | None) -> None:
        pass

    def report(
        self,
        step: int,
        losses: list[tuple[str, float]],
        rate: float,
        seconds: float,
        eta: float | None,
    ) -> None:
        digits = len(str(self._total))
        columns = [(name, f"{name} {number(value):>8}") for name, value in losses]
        parts = [
            f"step {step:>{digits}}/{self._total} ({_percent(step, self._total):>3} %)",
            *(column for name, column in columns if not name.startswith("eval/")),
            f"{rate:>7,.0f} examples/s",
            f"{duration(seconds):>6}",
            f"ETA {duration(eta):>6}",
            # Not on every line, so behind what is.
            *(column for name, column in columns if name.startswith("eval/")),
        ]
        self.note("  ".join(parts))

    def note(self, line: str) -> None:
        with contextlib.suppress(OSError):
            print(line, file=self._stream, flush=True)

    def close(self) -> None:
        pass


class _Bar:
    """One line of a terminal, drawn again and again: without a thread, at no cost within a loop."""

    def __init__(self, total: int, start: int, stream: TextIO):
        self._total = total
        self._console = rich.console.Console(file=stream, force_terminal=True, highlight=False)
        self._column = rich.progress.BarColumn()
        text = "{task.fields[%s]}"
        self._progress = rich.progress.Progress(
            rich.progress.TextColumn(text % "left", markup=False),
            self._column,
            rich.progress.TextColumn(text % "right", markup=False),
            console=self._console,
            auto_refresh=False,
            # Only what goes to a terminal may be led past the bar: else it is somebody's file.
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=sys.stderr.isatty(),
        )
        self._losses: list[tuple[str, float]] = []
        self._task = self._progress.add_task("", total=total, left="", right="")
        self._draw(start, None, None)
        with contextlib.suppress(OSError):
            self._progress.start()

    def update(self, step: int, rate: float, eta: float | None) -> None:
        self._draw(step, rate, eta)

    def report(
        self,
        step: int,
        losses: list[tuple[str, float]],
        rate: float,
        seconds: float,
        eta: float | None,
    ) -> None:
        # An evaluation stays to be read, the bar shows the training.
        evaluated = [
            f"{name} {number(value)}" for name, value in losses if name.startswith("eval/")
        ]
        if evaluated:
            self.note("  ".join([f"step {step}/{self._total}", *evaluated]))
        self._losses = [(n, v) for n, v in losses if not n.startswith("eval/")] or self._losses
        self._draw(step, rate, eta)

    def note(self, line: str) -> None:
        with contextlib.suppress(OSError):
            self._console.print(line, markup=False, soft_wrap=True)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._progress.stop()

    def _draw(self, step: int, rate: float | None, eta: float | None) -> None:
        left = f"step {step}/{self._total}"
        room = self._console.width - len(left) - 2  # One space before the bar, one after it.
        right = f"{_percent(step, self._total)} %  ETA {duration(eta)}"
        if rate is not None:
            right = _fitting(right, [f"{rate:,.0f} examples/s"], room - NARROWEST_BAR)
        wordy = [f"{name} {number(value)}" for name, value in self._losses]
        terse = [f"{_terse(name)} {number(value)}" for name, value in self._losses]
        wordy_fits = len("  ".join([right, *wordy])) <= room - NARROWEST_BAR
        right = _fitting(right, wordy if wordy_fits else terse, room - NARROWEST_BAR)
        self._column.bar_width = max(1, min(room - len(right), WIDEST_BAR))
        with contextlib.suppress(OSError):
            self._progress.update(self._task, completed=step, left=left, right=right, refresh=True)


def _fitting(text: str, more: list[str], width: int) -> str:
    """The text and as many of the rest, in their order, as fit the width."""
    for part in more:
        if len(text) + 2 + len(part) > width:
            break
        text += "  " + part
    return text


def _terse(name: str) -> str:
    """A metric's name with each word cut: "discriminator" is "disc"."""
    return "/".join(word[:SHORT_WORD] for word in name.split("/"))
