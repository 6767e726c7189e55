"""Whether what a run has learnt can be trusted: skipped updates, replicas that differ, divergence. If not, it goes back."""

from __future__ import annotations

from collections.abc import Mapping

from trainer.cluster import Cluster
from trainer.exits import ConfigError, Corrupted, Diverged, Unreliable
from trainer.experiment import Experiment
from trainer.ledger import Ledger
from trainer.replicas import Replicas
from trainer.rollback import RollBack, SpikeWatch
from trainer.step import Step

FROZEN = "pretrained/"
"""Before the names of variables that nothing moves."""


class Guard:
    """Looks at a training for its host loop; all workers look, and find the same.

    Args:
      experiment: what is learnt.
      step: of the training.
      cluster: where.
      ledger: is told of skipped updates.
      max_rollbacks: how often it goes back for replicas that differ.
    """

    def __init__(
        self,
        experiment: Experiment,
        step: Step,
        cluster: Cluster,
        ledger: Ledger,
        max_rollbacks: int,
    ) -> None:
        self._step, self._ledger, self._max_rollbacks = step, ledger, max_rollbacks
        self._cluster = cluster
        frozen = {f"{FROZEN}{variable.path}": variable.value for variable in step.frozen}
        self._replicas = Replicas(cluster, step.state | frozen)
        self._rollbacks = 0
        self._skipped = [0] * len(step.updates)
        self.spikes = _spike_watch(experiment, step)

    @property
    def diverged(self) -> Diverged | None:
        """Whether too many updates in a row were skipped, as this worker's first replica counts them."""
        try:
            for update in self._step.updates:
                update.check_diverged()
        except Diverged as error:
            return error
        return None

    def restored(self) -> None:
        """Called when the variables have come from a checkpoint."""
        self._skipped = [update.skipped() for update in self._step.updates]

    def check_updates(self, step: int) -> None:
        """Records the updates that were skipped since the last look, and ends or goes back if they were too many in a row.

        Raises:
          Diverged, RollBack: if so.
        """
        for number, update in enumerate(self._step.updates):
            count = update.skipped() - self._skipped[number]
            if count:
                self._ledger.record("skip", step=step, phase=update.phase.name, updates=count)
            self._skipped[number] += count
        if diverged := self.diverged:
            if self.spikes is None:
                raise diverged
            self.spikes.back(step, str(diverged))

    def check_row(self, step: int, row: Mapping[str, float]) -> None:
        """Looks for a spike of the loss.

        Raises:
          Diverged, RollBack: if there is one.
        """
        if self.spikes is None:
            return
        spike = self.spikes.see(step, row)
        if any(self._cluster.any_worker(spike is not None)):
            self.check_replicas(step)  # What one replica got wrong is no fault of the training.
        if spike:
            self.spikes.back(step, spike)

    def check_replicas(self, step: int) -> None:
        """Looks whether replicas are alike; all workers must.

        Raises:
          RollBack: if not.
          Corrupted: if what differs is in no checkpoint.
          Unreliable: if they were not too often in this start.
        """
        difference = self._replicas.difference()
        if difference is None:
            return
        if any(name.startswith(FROZEN) for name in difference.variables):
            raise Corrupted(
                f"step {step}: {difference}; no checkpoint holds pretrained weights that nothing moves: start again, which reads "
                "them anew"
            )
        self._rollbacks += 1
        if self._rollbacks > self._max_rollbacks:
            raise Unreliable(
                f"step {step}: {difference}, after {self._rollbacks - 1} rollbacks (--max_rollbacks): a device or its memory "
                "is not reliable; leave that machine out and start again to go on from the last checkpoint"
            )
        raise RollBack(str(difference), step)


def _spike_watch(experiment: Experiment, step: Step) -> SpikeWatch | None:
    rule = experiment.rollback
    if rule is None:
        return None
    if rule.metric not in step.metric_names():
        raise ConfigError(
            f'LossSpike.metric is "{rule.metric}", which no row has: choose one of {", ".join(step.metric_names())}'
        )
    if experiment.steps // experiment.log_every <= rule.rows:
        raise ConfigError(
            f"LossSpike.rows is {rule.rows} and the run has {experiment.steps // experiment.log_every} rows (steps {experiment.steps} / "
            f"log_every {experiment.log_every}): nothing would be judged; lower rows or log_every"
        )
    return SpikeWatch(
        rule, log_every=experiment.log_every, checkpoint_every=experiment.checkpoint_every
    )
