"""Going back to a checkpoint within a run: why, to which one, and with which examples it goes on from there.

A run whose replicas differ goes back to the last checkpoint and does the same again, as after a kill. One whose loss spikes
goes back only where the configuration says so, and goes on with other examples. What that depends on is in the notes of each
checkpoint, and all of it follows from the configuration: a run that is killed after it went back and starts from a checkpoint
of before finds the same spike again, goes back to the same step and leaves out the same examples.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping
from typing import Any

from trainer.exits import Diverged

DECIDE = ("log_every", "checkpoint_every")
"""Fields of an experiment that decide what is learnt where there is a `LossSpike`."""


class RollBack(Exception):
    """Ends the host loop: the run goes on from a checkpoint.

    Attributes:
      reason: in words.
      to: the step of the checkpoint; None for the last one there is.
      step: at which this was found.
    """

    def __init__(self, reason: str, step: int, to: int | None = None) -> None:
        super().__init__(reason)
        self.reason, self.step, self.to = reason, step, to


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossSpike:
    """When a run goes back to a checkpoint and leaves out the examples since.

    That is when a metric in a row of metrics is so many standard deviations above the mean of the rows before, or a phase
    diverged by bad updates in a row. With it `log_every` and `checkpoint_every` decide what is learnt.

    Attributes:
      metric: of the training, by its name in the rows.
      deviations: how many.
      rows: how many rows before; nothing is judged until there are as many.
      max_rollbacks: of a run; one more ends it.
    """

    metric: str = "train/loss"
    deviations: float = 6.0
    rows: int = 20
    max_rollbacks: int = 3

    def __post_init__(self) -> None:
        if not self.deviations > 0:
            raise ValueError(f"LossSpike.deviations is {self.deviations}: it must be above 0")
        for name, least in (("rows", 2), ("max_rollbacks", 0)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"LossSpike.{name} is {getattr(self, name)}: it must be at least {least}"
                )

    def describe(self, value: float, before: list[float]) -> str | None:
        """What is wrong with a value after those before it, None if nothing."""
        if len(before) < self.rows or math.isnan(value):
            return None
        mean = statistics.fmean(before)
        # Rows that are all alike have a mean that differs from them in the last bit.
        deviation = max(statistics.pstdev(before), 1e-6 * abs(mean))
        if value <= mean + self.deviations * deviation:
            return None
        return f"{self.metric} is {value:.6g}, and was {mean:.6g} ± {deviation:.2g} in the {self.rows} rows before"


@dataclasses.dataclass(frozen=True)
class Anchor:
    """A checkpoint at a multiple of `checkpoint_every`, and the step of the best one when it was saved."""

    step: int
    best: int | None


class SpikeWatch:
    """Where a run stands with its `LossSpike`.

    Args:
      rule: when to go back.
      log_every, checkpoint_every: of the experiment.
    """

    def __init__(self, rule: LossSpike, *, log_every: int, checkpoint_every: int) -> None:
        self._rule, self._log_every, self._checkpoint_every = rule, log_every, checkpoint_every
        self.shift = 0
        """Steps whose examples were left out so far."""
        self._rollbacks = 0
        self._rows: list[float] = []
        self._good_row = 0
        # The last checkpoint, and the last that is no younger than the last good row: what came after may be the spike's.
        self._saved = self._anchor = Anchor(0, None)

    def notes(self) -> dict[str, Any]:
        """What a checkpoint must hold: JSON values."""
        return {
            "shift": self.shift,
            "rollbacks": self._rollbacks,
            "rows": self._rows,
            "good_row": self._good_row,
            "saved": dataclasses.astuple(self._saved),
            "anchor": dataclasses.astuple(self._anchor),
        }

    def restore(self, notes: Mapping[str, Any]) -> None:
        """Takes over the notes of a checkpoint."""
        self.shift, self._rollbacks = notes["shift"], notes["rollbacks"]
        self._rows, self._good_row = list(notes["rows"]), notes["good_row"]
        self._saved, self._anchor = Anchor(*notes["saved"]), Anchor(*notes["anchor"])

    def saving(self, step: int, best: int | None) -> set[int]:
        """Called before a checkpoint is saved; returns the steps of those that must stay beside it."""
        if step % self._checkpoint_every == 0:
            self._saved = Anchor(step, best)
            if step <= self._good_row:
                self._anchor = self._saved
        anchors = (self._saved, self._anchor)
        return {step for a in anchors for step in (a.step, a.best) if step is not None}

    def see(self, step: int, row: Mapping[str, float]) -> str | None:
        """Judges a row; returns what is wrong with it, None if nothing."""
        if step % self._log_every:
            return None  # The row at the end of a run, which may go on later.
        value = row[self._rule.metric]
        spike = self._rule.describe(value, self._rows)
        if spike is None and math.isfinite(value):
            self._rows = [*self._rows, value][-self._rule.rows :]
            self._good_row, self._anchor = step, self._saved
        return spike

    def back(self, step: int, reason: str) -> None:
        """Goes back.

        Raises:
          RollBack: to the checkpoint before, with the examples of the steps from there to the next row left out: to the
            next row, since a shorter loop of steps would have found it earlier.
          Diverged: if it went back as often as it may.
        """
        if self._rollbacks >= self._rule.max_rollbacks:
            raise Diverged(
                f"step {step}: {reason}, after {self._rollbacks} rollbacks (LossSpike.max_rollbacks): lower the learning "
                "rate, or set Optimizer.clip_norm"
            )
        self._rollbacks += 1
        self.shift += -(-step // self._log_every) * self._log_every - self._anchor.step
        raise RollBack(reason, step, self._anchor.step)

    def carry_over(self, later: Mapping[str, Any]) -> None:
        """After it went back: what a run knows of its rollbacks, and of the checkpoint it is at, is not undone by them."""
        self.shift, self._rollbacks = later["shift"], later["rollbacks"]
        self._anchor = self._saved
