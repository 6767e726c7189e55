"""What a training is at a step: in memory, in the checkpoints of its workdir, and back from them."""

from __future__ import annotations

import functools
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from input_pipeline.batches import Batches
from trainer import checkpoint, pretrained
from trainer.cluster import Cluster
from trainer.exits import ConfigError, DataProblem
from trainer.guard import Guard
from trainer.ledger import Ledger
from trainer.metrics import MetricWriter, NullWriter
from trainer.rollback import RollBack
from trainer.step import Step
from trainer.timesheet import Timesheet

Note = Callable[[str], None]
MEANINGS = {"meaning": "vocabulary or classes", "examples": "training examples"}
"""What `Batches.identity` tells apart, for people."""


class TrainingState:
    """The variables of a training and what else must go on.

    Args:
      step: whose variables these are.
      batches: that they learn from.
      guard: of the training, which remembers what it has seen.
      cluster: of which the chief saves.
      checkpoints: of the workdir; None keeps all in memory.
      ledger: is told of what happens to checkpoints.
      timesheet: is told of the seconds that saves take.

    Attributes:
      best: step and value of the best evaluation so far; empty if there was none.
      seconds: of training so far.
      beginning: what the run goes back to while there is no checkpoint, if it may have to.
    """

    def __init__(
        self,
        step: Step,
        batches: Batches,
        guard: Guard,
        cluster: Cluster,
        checkpoints: checkpoint.Checkpoints | None,
        ledger: Ledger,
        timesheet: Timesheet,
    ) -> None:
        self._step, self._guard, self._cluster, self._checkpoints = (
            step,
            guard,
            cluster,
            checkpoints,
        )
        self._batches, self._ledger, self._timesheet = batches, ledger, timesheet
        self.best: dict[str, Any] = {}
        self.seconds = 0.0
        self.beginning: checkpoint.Snapshot | None = None

    def snapshot(self) -> checkpoint.Snapshot:
        """The training as it stands."""
        arrays = {name: variable.numpy() for name, variable in self._step.state.items()}
        notes: dict[str, Any] = {"seconds": self.seconds, "best": self.best}
        notes["data"] = self._batches.identity
        if self._guard.spikes:
            notes["rollback"] = self._guard.spikes.notes()
        if self._frozen is not None:
            notes["frozen"] = self._frozen
        return checkpoint.Snapshot(int(arrays["step"]), arrays, notes)

    def restore(self, which: str, note: Note) -> int:
        """Takes the training to a checkpoint; returns its step, 0 if there is none.

        Args:
          which: "last", "best" or a step.
          note: is told of each damaged one that is passed over.

        Raises:
          ConfigError: if it does not fit the model.
          DataProblem: if tokens or labels of the data meant something else.
          UsageError: if it is not there.
        """
        return self._restore(which, note, ["meaning"])

    def restore_for_training(self, note: Note, which: str = "last") -> int:
        """As `restore`; what is passed over is recorded as well, and the examples must be the same."""

        def pass_over(damaged: str) -> None:
            note(damaged)
            self._ledger.record("damaged", error=damaged)

        return self._restore(which, pass_over, list(MEANINGS))

    def _restore(self, which: str, note: Note, same: Sequence[str]) -> int:
        if self._checkpoints is None:
            return 0
        snapshot = self._checkpoints.find(which, note)
        if snapshot is None:
            return 0
        self._check_data(snapshot, same, self._checkpoints.path(snapshot.step))
        self._assign(snapshot, self._checkpoints)
        return snapshot.step

    def _check_data(
        self, snapshot: checkpoint.Snapshot, same: Sequence[str], path: pathlib.Path
    ) -> None:
        """Checks that the data are those that the checkpoint learnt from, in the respects named."""
        before: Mapping[str, str] = snapshot.notes.get("data", {})
        for name in same:
            now = self._batches.identity.get(name)
            if name in before and before[name] != now:
                raise DataProblem(
                    f"{path} learnt from other data: the {MEANINGS[name]} have changed since; put the data back that the run "
                    "began with, or use another --workdir"
                )

    def _assign(
        self, snapshot: checkpoint.Snapshot, checkpoints: checkpoint.Checkpoints | None
    ) -> None:
        state = self._step.state
        if checkpoints:
            path = checkpoints.path(snapshot.step)
            expected = {name: checkpoint.form(variable) for name, variable in state.items()}
            checkpoint.check_fit(snapshot, expected, path)
            pretrained.check_same(snapshot.notes.get("frozen"), self._frozen, path)
        for name, variable in state.items():
            variable.assign(snapshot.arrays[name])
        self.best = dict(snapshot.notes["best"])
        self.seconds = float(snapshot.notes["seconds"])
        if self._guard.spikes and "rollback" in snapshot.notes:
            self._guard.spikes.restore(snapshot.notes["rollback"])
        self._guard.restored()

    @functools.cached_property
    def _frozen(self) -> str | None:
        """Digest of the weights that nothing moves."""
        return pretrained.digest(self._step.frozen)

    def save(self, writer: MetricWriter | NullWriter) -> None:
        """Starts a save; all workers must. The rows of the writer are on the disk before the checkpoint.

        Raises:
          CannotCreate: of the save before, if it failed.
        """
        best, needed = self.best.get("step"), set()
        if self._guard.spikes:
            needed = self._guard.spikes.saving(int(self._step.number.numpy()), best)
        if self._checkpoints is None:
            return
        self.beginning = None
        if not self._cluster.chief:
            return
        began = time.perf_counter()
        with self._timesheet.spent("saves"):
            self._checkpoints.wait()
            snapshot = self.snapshot()
            waited = time.perf_counter() - began
            self._checkpoints.save(snapshot, best, needed, before=writer.sync, waited=waited)

    def wait_for_saves(self) -> None:
        """Returns, on all workers, when all saves are on the disk: the end of a worker that saves nothing may end the chief."""
        with self._timesheet.spent("saves"):
            if self._checkpoints:
                self._checkpoints.wait()
            self._cluster.any_worker(False)

    def keep_beginning(self) -> None:
        """Keeps what the run would go back to until the first checkpoint is there.

        Raises:
          ConfigError: if that must be a checkpoint, and there is no workdir.
        """
        if self._guard.spikes:
            if self._checkpoints is None:
                raise ConfigError(
                    "Experiment.rollback goes back to checkpoints: give a workdir, or set it to None"
                )
            self.save(NullWriter())
        elif self._cluster.replicas > 1:
            self.beginning = self.snapshot()

    def roll_back(self, found: RollBack, note: Note) -> int:
        """Takes all workers back to a checkpoint; returns its step."""
        self.wait_for_saves()  # The chief's last checkpoint may be the one.
        spikes = self._guard.spikes
        if spikes and found.to is not None:
            notes = spikes.notes()
            start = self.restore_for_training(note, str(found.to))
            spikes.carry_over(notes)
            # The examples that come next do not continue those before the checkpoint.
            self._step.carry.clear()
        else:
            start = self.restore_for_training(note)
            if start == 0 and self.beginning:
                self._assign(self.beginning, None)
                start = self.beginning.step
        self._cluster.check_same("the step of the checkpoint to go back to", start)
        if self._checkpoints and self._cluster.chief and found.to is not None:
            self._checkpoints.remove_after(start)
        note(f"going back from step {found.step} to step {start}: {found.reason}")
        self._ledger.record("rollback", step=found.step, to=start, reason=found.reason)
        return start
