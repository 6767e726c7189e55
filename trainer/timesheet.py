"""Where the seconds of a training go, told to the ledger of its run from time to time as a sign of life."""

from __future__ import annotations

import collections
import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator

import numpy as np

from trainer.exits import Diverged, UserError
from trainer.ledger import Ledger

KINDS = ("compiling", "steps", "data", "evaluation", "samples", "saves")
"""What seconds go into: the first step of a start and all before it, later steps, their waits for data, and what is between steps."""

ALIVE_SECONDS = (1.0, 30.0)
"""Least and most between two signs of life: a megabyte in three days."""
ALIVE_SHARE = 0.05
"""Of its time since the start is what a killed process has not told, at most, between these bounds."""

STALL_SECONDS, STALL_TIMES = 5.0, 10
"""A step is a stall that takes longer than this, and than so many times the median of the steps before it."""

REMEMBERED = 1000
"""Steps that the median is of."""


class Timesheet:
    """The seconds of one process by kind, and the events that tell them.

    Args:
      ledger: that is told.
      began: when the program began; what is done from then to the start is building.
      clock: seconds since 1970.
    """

    def __init__(
        self, ledger: Ledger, began: float, clock: Callable[[], float] = time.time
    ) -> None:
        self._ledger, self._clock = ledger, clock
        self.began = self._started = began
        self._restored_seconds = 0.0
        self._restart(0)

    def _restart(self, step: int) -> None:
        self._seconds = dict.fromkeys(KINDS, 0.0)
        self._recent: collections.deque[float] = collections.deque(maxlen=REMEMBERED)
        self._step, self._skipped, self._first, self._told = step, 0, True, self._clock()

    @contextlib.contextmanager
    def restoring(self) -> Iterator[None]:
        """Measures how long reading a checkpoint takes."""
        began = self._clock()
        yield
        self._restored_seconds = self._clock() - began

    def start(self, step: int, cluster: str, waited_seconds: float) -> None:
        """Records that a training begins, before its first step.

        Args:
          step: from which it goes on; not 0 if a checkpoint was read.
          cluster: `Cluster.describe()`.
          waited_seconds: for other workers.
        """
        self._restart(step)
        self._started = self._clock()
        building = max(self._started - self.began - waited_seconds, 0)
        self._ledger.record(
            "start",
            step=step,
            host=socket.gethostname(),
            pid=os.getpid(),
            cluster=cluster,
            building=round(building, 3),
            waiting=round(waited_seconds, 3),
        )
        if step:
            self._ledger.record("restore", step=step, seconds=round(self._restored_seconds, 3))
        # Of another training of this process, the start is now.
        self.began = self._started

    @contextlib.contextmanager
    def spent(self, kind: str) -> Iterator[None]:
        """Counts the seconds of what is done in this context."""
        began = self._clock()
        try:
            yield
        finally:
            self._seconds[kind] += self._clock() - began

    def loop(self, step: int, times: np.ndarray, end: float, skipped: Callable[[], int]) -> None:
        """Counts a loop of steps, records a stall in it, and from time to time a sign of life.

        Args:
          step: that was reached.
          times: when each step began and for how long it then waited for its data, in seconds, `[steps, 2]`.
          end: of the last.
          skipped: updates that were not made so far; asked for signs of life alone.
        """
        self._step = step
        seconds, waits = np.diff(times[:, 0], append=end), times[:, 1]
        first = self._first
        if first:
            self._seconds["compiling"] += float(times[0, 0] + seconds[0] - self._started)
            seconds, waits, self._first = seconds[1:], waits[1:], False
        self._seconds["data"] += float(waits.sum())
        self._seconds["steps"] += float(seconds.sum() - waits.sum())
        if len(seconds):
            self._look_for_stall(step - len(seconds) + 1, seconds, waits)
            self._recent.extend(seconds.tolist())
        least, most = ALIVE_SECONDS
        now = self._clock()
        if first or now - self._told >= min(max(ALIVE_SHARE * (now - self._started), least), most):
            self.tell("alive", step, skipped())

    def _look_for_stall(self, first_step: int, seconds: np.ndarray, waits: np.ndarray) -> None:
        longest = int(seconds.argmax())
        if seconds[longest] <= STALL_SECONDS:
            return
        usual = np.median([*self._recent, *seconds.tolist()])
        if seconds[longest] > STALL_TIMES * usual:
            self._ledger.record(
                "stall",
                step=first_step + longest,
                seconds=round(float(seconds[longest]), 3),
                data=round(float(waits[longest]), 3),
            )

    def tell(self, event: str, step: int, skipped: int, **fields: object) -> None:
        """Records an event with the seconds so far."""
        if self._first:  # It ends before its first step was done.
            self._seconds["compiling"] = self._clock() - self._started
        self._step, self._skipped, self._told = step, skipped, self._clock()
        seconds = {kind: round(value, 3) for kind, value in self._seconds.items() if value}
        self._ledger.record(event, step=step, skipped=skipped, seconds=seconds, **fields)

    @contextlib.contextmanager
    def telling_failure(self) -> Iterator[None]:
        """Records the error with which this context ends, if it does."""
        try:
            yield
        except BaseException as error:
            named = {Diverged: "diverged", KeyboardInterrupt: "interrupted"}
            event = named.get(type(error), "failed")
            # Of a full disk, or a workdir that is another's by now, the error says more.
            with contextlib.suppress(OSError, UserError):
                self.tell(event, self._step, self._skipped, error=type(error).__name__)
            raise


def program_start() -> float:
    """When this process was started, in seconds since 1970; where that is not known, now."""
    try:
        # Fields after the name of the program, which may have spaces: the 22nd of all is the start, in ticks since the boot.
        with open("/proc/self/stat", encoding="utf-8", errors="replace") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return time.time()
    return time.time() - age
