"""When the host looks at a run: the steps at which it logs, evaluates, draws samples and saves."""

from __future__ import annotations

import dataclasses

from trainer.experiment import Experiment
from trainer.hardware import Hardware

LONG = 2.0
"""Seconds of a loop, after which the next has half as many steps."""


class Pace:
    """How many steps are taken between two looks of the host, which hears then that it is to save and stop: as many as are allowed,
    but not for long.

    Args:
      most: steps.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.steps = 1

    def took(self, steps: int, long: bool) -> None:
        """Says whether these steps took more than `LONG` seconds, on any worker: all must go on with as many."""
        if long:
            self.steps = max(1, steps // 2)
        elif steps == self.steps:  # Fewer say nothing of more.
            self.steps = min(self.most, 2 * steps)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """What is due after how many steps."""

    experiment: Experiment
    hardware: Hardware

    def steps_from(self, step: int) -> int:
        """How many to take to the next moment when the host has something to do."""
        experiment = self.experiment
        intervals = (
            experiment.log_every,
            experiment.evaluate_every,
            experiment.checkpoint_every,
            experiment.sample_every,
            self.hardware.check_replicas_every,
        )
        nexts = [(step // every + 1) * every for every in intervals if every]
        return min(experiment.steps, *nexts) - step

    def logs(self, step: int) -> bool:
        return self._last(step) or self.begins_anew(step)

    def begins_anew(self, step: int) -> bool:
        """Whether metrics do after the row of the step: not after one at the end of a run, which may go on."""
        return step % self.experiment.log_every == 0

    def evaluates(self, step: int) -> bool:
        every = self.experiment.evaluate_every
        return bool(every) and (self._last(step) or step % every == 0)

    def samples(self, step: int) -> bool:
        experiment = self.experiment
        due = bool(experiment.sample_every) and step % experiment.sample_every == 0
        return bool(experiment.samples) and (due or self._last(step))

    def saves(self, step: int) -> bool:
        """In any case; it may also be saved as the best so far, or before a stop."""
        return self._last(step) or step % self.experiment.checkpoint_every == 0

    def compares_replicas(self, step: int) -> bool:
        """Before the row of the step is read: metrics begin anew with it. It is done before every save, too."""
        often = self.hardware.check_replicas_every
        # Where samples cannot be drawn it is saved, by one worker alone.
        return self.saves(step) or self.samples(step) or bool(often and step % often == 0)

    def _last(self, step: int) -> bool:
        return step == self.experiment.steps
