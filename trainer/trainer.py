"""A training from start to end: build, restore, loop, evaluate, sample, save."""

from __future__ import annotations

import contextlib
import enum
import functools
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from input_pipeline.batches import digest, streams_of
from input_pipeline.noise import Noise
from trainer import checkpoint, durable, pretrained
from trainer.cluster import Cluster, batch_layout, connect
from trainer.data_errors import data_problem, telling_of_data
from trainer.device_loop import compiled_loop
from trainer.evaluation import Evaluation
from trainer.exits import ConfigError, LostPeer, UserError, is_check, one_line
from trainer.experiment import Experiment
from trainer.guard import Guard
from trainer.hardware import Hardware
from trainer.ledger import Ledger
from trainer.metrics import MetricWriter, NullWriter, rewind
from trainer.precision import PRECISIONS
from trainer.preemption import Asked, stop_signal
from trainer.progress import Progress
from trainer.rollback import RollBack
from trainer.sampling import Sampling
from trainer.schedule import LONG, Pace, Schedule
from trainer.step import Step
from trainer.timesheet import Timesheet
from trainer.timing import StepTimes
from trainer.training_state import TrainingState


class Outcome(enum.Enum):
    """How a training ended."""

    DONE = "done"
    ALREADY_DONE = "already done"
    PREEMPTED = "preempted and saved"


class Trainer:
    """Trains an experiment on some hardware.

    Args:
      experiment: what is learnt.
      hardware: where, by default on all devices of this machine; it does not change what is learnt.
      workdir: where checkpoints, metrics and samples go; None keeps everything in memory.
      note: is told, in one line each, what a person may want to know.
      fence: called on the chief before it writes; raises if the workdir is another's by now, see `trainer.lock`.

    Raises:
      ConfigError, UsageError: in one line, what does not fit.
    """

    def __init__(
        self,
        experiment: Experiment,
        hardware: Hardware | None = None,
        workdir: str | pathlib.Path | None = None,
        note: Callable[[str], None] = print,
        fence: Callable[[], None] = lambda: None,
    ) -> None:
        began = time.time()
        self.experiment, self.hardware = experiment, hardware or Hardware()
        self.workdir = None if workdir is None else pathlib.Path(workdir)
        self._note, self._fence, self._in_steps = note, fence, False
        self.cluster: Cluster = connect(self.hardware, note)
        self.strategy = self.cluster.strategy
        self.layout = batch_layout(
            experiment.global_batch,
            self.cluster.replicas,
            self.hardware.microbatch,
            streams=streams_of(experiment.source),
        )
        self.precision = PRECISIONS[experiment.precision]
        self.precision.set_products()
        self.batches = experiment.batches()
        self.objective = experiment.objective(self.batches.element_spec)
        # For layers with initialisers of Keras' own; those of named noise do not need it.
        keras.utils.set_random_seed(experiment.seed)
        with self.strategy.scope(), self.precision.building():
            self.objective.build(
                Noise(experiment.seed, "weights", rows=1, dtype=self.precision.loss_dtype)
            )
            self.step = Step(
                self.objective,
                self.batches.element_spec,
                layout=self.layout,
                precision=self.precision,
                seed=experiment.seed,
                xla=self.cluster.xla,
                max_bad_updates=experiment.max_bad_updates,
                streamed=bool(streams_of(self.batches.source)),
            )
        self._check_workers()
        self.evaluation = Evaluation(
            self.objective, self.batches, self.step, self.cluster, self.layout
        )
        self._sampling = Sampling(self.objective, self.batches, self.step, xla=self.cluster.xla)
        self._check_evaluation()
        if experiment.samples:
            self._sampling.check()
        if experiment.neighbours and not self.draws_pictures:
            raise ConfigError(
                f"Experiment.neighbours is {experiment.neighbours}, but {type(self.objective).__name__} draws no pictures: set it to 0"
            )
        directory = (self.workdir or pathlib.Path()) / "checkpoints"
        self.ledger = Ledger(
            self.workdir / "events.jsonl" if self.workdir and self._writes else None, fence
        )
        self.checkpoints = checkpoint.Checkpoints(
            directory,
            experiment.keep_checkpoints,
            fence,
            functools.partial(self.ledger.record, "save"),
        )
        self.timesheet = Timesheet(self.ledger, began)
        self._pace = Pace(self.hardware.steps_per_loop)
        self._guard = Guard(
            experiment, self.step, self.cluster, self.ledger, self.hardware.max_rollbacks
        )
        self._kept = TrainingState(
            self.step,
            self.batches,
            self._guard,
            self.cluster,
            None if self.workdir is None else self.checkpoints,
            self.ledger,
            self.timesheet,
        )

    def _check_workers(self) -> None:
        """Checks that all workers have read the same; all must ask.

        Raises:
          ConfigError: on every worker alike, if not.
        """
        if self.cluster.workers == 1:
            return
        weights = pretrained.digest(pretrained.pretrained(self.objective))
        read = {"data": digest(dict(self.batches.identity)), "pretrained weights": weights or "0"}
        for what, found in read.items():
            self.cluster.check_same(
                f"the digest of the {what}", int(found[:6], 16), f"all must read the same {what}"
            )

    def _check_evaluation(self) -> None:
        """Traces the evaluation where it may not fit, to say so at the start and not after hours."""
        name, held_out = self.experiment.best_metric, self.batches.validation_spec
        if name is None and held_out in (None, self.batches.element_spec):
            return
        with self.strategy.scope():
            names = self.evaluation.names()
        if name is not None and name not in names:
            raise ConfigError(
                f'best_metric "{name}" is not evaluated: choose one of {", ".join(names)}'
            )

    # ------------------------------------------------------------------ state

    @property
    def state(self) -> dict[str, tf.Variable]:
        """Every variable of the training, by the name under which checkpoints keep it."""
        return self.step.state

    @property
    def best(self) -> Mapping[str, Any]:
        """Step and value of the best evaluation so far; empty if there was none."""
        return self._kept.best

    def snapshot(self) -> checkpoint.Snapshot:
        """The training as it stands."""
        return self._kept.snapshot()

    def restore(self, which: str = "last") -> int:
        """Takes the training to a checkpoint of the workdir; returns its step, 0 if there is none.

        Args:
          which: "last", "best" or a step.

        Raises:
          ConfigError: if it does not fit the model.
          UsageError: if it is not there.
        """
        return self._kept.restore(which, self._note)

    # ------------------------------------------------------------------ training

    def train(
        self,
        texts: Mapping[str, str] | None = None,
        started: Callable[[], None] = lambda: None,
        stop: Asked | None = None,
    ) -> Outcome:
        """Trains until the experiment's steps are done, from the last checkpoint of the workdir if there is one.

        SIGTERM and SIGUSR2 save at the end of the next loop of steps and stops.

        Args:
          texts: Markdown to show in TensorBoard, by name: the configuration, say.
          started: called on the chief if there are steps to do, before the first.
          stop: is asked by the signals; if it was asked already, the training stops after its first loop.

        Raises:
          Diverged: after too many bad updates in a row; the last checkpoint is from before them or among them.
          Unreliable: if replicas differ again and again.
        """
        asked = stop or Asked()
        with (
            stop_signal(asked.ask),
            self.cluster.watch(self._without_peer, self._stepping),
        ):
            with self.timesheet.restoring():
                restored = self._kept.restore_for_training(self._note)
            start = restored or int(self.step.number.numpy())  # It goes on from what is in memory.
            self.cluster.check_same("the step of the last checkpoint", start)
            if start >= self.experiment.steps:
                self._say_already_done(start)
                return Outcome.ALREADY_DONE
            how = f"going on from step {start}" if start else "training"
            self._note(f"{how} on {self.cluster.describe()}")
            for note in (*self.cluster.notes, *getattr(self.objective, "notes", ())):
                self._note(note)
            if self.batches.inexact:
                self._note(f"not exact: {self.batches.inexact}")
            # It takes seconds on a large corpus, and was said at the first start.
            if start == 0 and self.cluster.chief and (baseline := self.baseline()):
                values = (f"{name} {value:.4f}" for name, value in baseline.items())
                self._note(f"baseline: {', '.join(values)} ({self.experiment.baseline})")
            outcome = self._train(start, bool(restored), asked, texts or {}, started)
        if outcome is Outcome.DONE:
            self._say_done()
        return outcome

    def _train(
        self,
        start: int,
        restored: bool,
        stop: Asked,
        texts: Mapping[str, str],
        started: Callable[[], None],
    ) -> Outcome:
        if self.cluster.chief:
            self._fence()
            if self.workdir is not None:
                self.workdir.mkdir(parents=True, exist_ok=True)
            started()
            if self.workdir is not None:
                (self.workdir / "DONE").unlink(missing_ok=True)
        if not restored:
            self._kept.keep_beginning()
        self.timesheet.start(start, self.cluster.describe(), self.cluster.waited_seconds)
        progress = (
            Progress(self.experiment.steps, start, sys.stderr) if self.cluster.chief else None
        )
        bar = contextlib.closing(progress) if progress else contextlib.nullcontext()
        data = telling_of_data(self._note, self.ledger)
        with self.timesheet.telling_failure(), data, bar:
            outcome = self._run_from(start, stop, texts, progress)
            self.timesheet.tell(outcome.name.lower(), int(self.step.number.numpy()), self.skipped())
        return outcome

    def _run_from(
        self,
        start: int,
        stop: Asked,
        texts: Mapping[str, str],
        progress: Progress | None,
    ) -> Outcome:
        """Runs to the end, and goes back to a checkpoint where it must."""
        while True:
            try:
                with self._writer(start) as writer:
                    for name, text in texts.items():
                        writer.text(name, text, start)
                    return self.run(self.data(start), start, writer, progress, stop)
            except RollBack as found:
                start = self._kept.roll_back(found, self._note)
            finally:
                with self.timesheet.spent("saves"):
                    self.checkpoints.wait()  # Also when it diverged: what was being saved stays.

    def _writer(self, start: int) -> MetricWriter | NullWriter:
        if self.workdir is None or not self._writes:
            return NullWriter()
        return MetricWriter(self.workdir, resume_step=start)

    def _without_peer(self, missing: LostPeer) -> None:
        """What is left to do before the process ends because a worker is missing."""
        self.checkpoints.flush()
        with contextlib.suppress(OSError, UserError):
            self.ledger.record("lost", error=str(missing))

    def _say_already_done(self, start: int) -> None:
        """For a run that was killed between its last save and its end; not for one that was to be longer then."""
        if self.workdir is None or not self.cluster.chief or (self.workdir / "DONE").exists():
            return
        self._fence()
        if rewind(self.workdir / "metrics.jsonl", start) == start == self.experiment.steps:
            self._say_done()

    def _say_done(self) -> None:
        if self.workdir is not None and self.cluster.chief:
            self._fence()
            done = json.dumps({"steps": self.experiment.steps})
            durable.write(self.workdir / "DONE", f"{done}\n".encode())

    def run(
        self,
        data: Iterator,
        step: int,
        writer: MetricWriter | NullWriter | None = None,
        progress: Progress | None = None,
        stop: Asked | None = None,
        until: int | None = None,
    ) -> Outcome:
        """The host loop.

        Args:
          data: from `data(step)`.
          step: to begin with, that of the variables.
          writer: of metrics and samples.
          progress: for people.
          stop: once it is asked, the run saves at the end of a loop and stops.
          until: the step to end at; the experiment's if None.
        """
        times, writer = StepTimes(), writer or NullWriter()
        until, began = until or self.experiment.steps, time.perf_counter() - self._kept.seconds
        while step < until:
            count = min(self._due.steps_from(step), until - step, self._pace.steps)
            began_loop = time.perf_counter()
            with self._saving_what_came_before_bad_data(writer, began):
                times_of_steps = self._run_steps(data, tf.constant(count)).numpy()
            ended = time.time()
            times.add(times_of_steps, ended)
            step += count
            reached = int(self.step.number.numpy())
            long = time.perf_counter() - began_loop > LONG
            *wrong, long = self.cluster.any_worker(
                reached != step, self._guard.diverged is not None, long
            )
            self._pace.took(count, long)
            compared = any(wrong) or self._due.compares_replicas(step)
            if compared:  # What one replica got wrong is no fault of the training.
                self._guard.check_replicas(step)
            if reached != step:
                raise RuntimeError(
                    f"the step is {reached} after {count} steps from {step - count}: expected {step}"
                )
            self._kept.seconds = time.perf_counter() - began
            self.timesheet.loop(step, times_of_steps, ended, self.skipped)
            self._guard.check_updates(step)
            if progress:
                progress.update(step, times.examples_per_second(self._examples_per_step))
            improved = self._look(step, writer, progress, times)
            (asked,) = self.cluster.any_worker(stop is not None and stop.asked)
            stopping = asked and step < until
            if improved or stopping or self._due.saves(step):
                if not compared:
                    self._guard.check_replicas(step)
                self._kept.save(writer)
            if stopping:
                self._kept.wait_for_saves()
                return Outcome.PREEMPTED
        self._kept.wait_for_saves()
        return Outcome.DONE

    @contextlib.contextmanager
    def _saving_what_came_before_bad_data(
        self, writer: MetricWriter | NullWriter, began: float
    ) -> Iterator[None]:
        """Saves the steps that were complete when the data failed.

        A step begins when its examples are there on every replica, and after the step before it, so that the variables are
        those after a whole step. So they are where another worker's data failed: no collective of that step is done anywhere.
        """
        try:
            self._in_steps = True
            yield
            self._in_steps = False
        except Exception as error:
            reached = int(self.step.number.numpy()) if data_problem(error) else 0
            if reached:
                if self.cluster.workers == 1:  # The others would have to look as well.
                    self._guard.check_replicas(reached)
                self._kept.seconds = time.perf_counter() - began
                self._kept.save(writer)
            raise

    def _stepping(self) -> int:
        """The step whose data or collectives the training waits for; -1 where it does something else."""
        return int(self.step.number.numpy()) if self._in_steps else -1

    @property
    def _due(self) -> Schedule:
        return Schedule(self.experiment, self.hardware)

    def _look(
        self,
        step: int,
        writer: MetricWriter | NullWriter,
        progress: Progress | None,
        times: StepTimes,
    ) -> bool:
        """Logs, evaluates and samples what is due at this step; returns whether the evaluation is the best so far."""
        improved = False
        row: dict[str, float] = {}
        rate = times.examples_per_second(self._examples_per_step)
        if self._due.logs(step):
            means = self.step.read_metrics(self._due.begins_anew(step))
            row |= means | times.metrics(self._examples_per_step)
            times.clear()
        if self._due.evaluates(step):
            with self.timesheet.spent("evaluation"):
                evaluated = self.evaluation()
            improved = self._is_best(step, evaluated)
            row |= {f"eval/{name}": value for name, value in evaluated.items()}
        if row:
            self._fence()
            writer.write(step, step * self._examples_per_step, self._kept.seconds, row)
            if progress:
                progress.report(step, row, rate, self._kept.seconds)
        if self._due.logs(step):
            self._guard.check_row(step, row)
        if self._writes and self._due.samples(step):
            try:
                with self.timesheet.spent("samples"):
                    self._draw(step, writer)
            except Exception:
                # What cannot be drawn or written now could not at the next start either: what was learnt must not wait for it.
                self._kept.save(writer)
                raise
        return improved

    def _draw(self, step: int, writer: MetricWriter | NullWriter) -> None:
        """Writes samples and what other pictures the objective has; at the end, the animation of all samples."""
        samples = self.sample(self.experiment.samples)
        self._fence()
        writer.samples(step, samples, self.classes)
        for name, table in self.pictures().items():
            writer.table(step, name, table)
        for name, picture in self._sampling.charts().items():
            writer.picture(step, name, picture)
        if self.experiment.neighbours and len(samples):
            # It needs scikit-learn, which takes a second to import.
            from trainer.real_pictures import nearest

            beside = nearest(self.batches, samples[: self.experiment.neighbours])
            writer.table(step, "neighbours", beside)
        if step == self.experiment.steps:
            writer.animate()

    def _is_best(self, step: int, evaluated: dict[str, float]) -> bool:
        name = self.experiment.best_metric
        if name is None:
            return False
        value, best = evaluated[name], self.best.get("value")
        sign = 1 if self.experiment.best_direction == "min" else -1
        if not np.isfinite(value) or (best is not None and sign * value >= sign * best):
            return False
        self._kept.best = {"step": step, "value": value}
        return True

    def skipped(self) -> int:
        """Updates of all phases that were not made, since something was not finite."""
        return sum(update.skipped() for update in self.step.updates)

    @property
    def _writes(self) -> bool:
        """Whether there is a workdir and this worker writes in it."""
        return self.workdir is not None and self.cluster.chief

    # ------------------------------------------------------------------ device

    @property
    def _examples_per_step(self) -> int:
        return self.experiment.global_batch * self.step.reads

    def data(self, step: int) -> Iterator:
        """The examples of each replica from a step on, as `Step` takes them."""
        step += self._guard.spikes.shift if self._guard.spikes else 0
        return self.cluster.iterate(
            lambda part: self.batches.training(part, step=step, updates=self.step.reads)
        )

    @functools.cached_property
    def _run_steps(self) -> Callable:
        return compiled_loop(self.strategy, self.step)

    # ------------------------------------------------------------------ use

    @property
    def classes(self) -> int:
        """How many classes samples have in turn, sample i that of i modulo them; 0 if they have none."""
        return self._sampling.classes

    @property
    def devices(self) -> Sequence[str | None]:
        """Names of the devices of this machine that the replicas are on; None, TensorFlow's choice, for TPUs, which compute nothing
        outside of their strategy's programs."""
        names = self.strategy.extended.worker_devices
        return [None] if any(":TPU:" in name for name in names) else names

    @property
    def draws_pictures(self) -> bool:
        return "image" in self.batches.element_spec and self.objective.sample is not None

    def evaluate(self) -> dict[str, float]:
        """Exact means of the objective's metrics over the validation examples, on the weights as they stand."""
        if self.experiment.validation is None:
            raise ConfigError(
                "there are no validation examples: set Experiment.validation, or compare samples by --features"
            )
        return self.evaluation()

    def baseline(self) -> Mapping[str, float]:
        """What `Experiment.baseline` reaches on the validation examples; empty without one.

        Raises:
          ConfigError: if it does not fit the data.
        """
        if self.experiment.baseline is None:
            return {}
        try:
            return self.experiment.baseline(self.experiment.source, self.experiment.validation)
        except ValueError as error:
            if not is_check(error):
                raise
            raise ConfigError(f"Experiment.baseline: {one_line(error)}") from error

    def sample(
        self,
        count: int,
        seed: int | None = None,
        prompt: str | None = None,
        label: int | None = None,
    ) -> Any:
        """`count` decoded samples from the weights as they stand; sample i depends on the seed and i alone.

        Texts can go on from a prompt, with which they begin then. With a label those samples are left out that are of another
        class: sample i is then the one that would be sample label + i · classes.
        """
        return self._sampling(count, self._seed(seed), prompt, label)

    @property
    def streams(self) -> bool:
        """Whether a sample can be had while it grows."""
        return self._sampling.streams

    def stream(self, seed: int | None = None, prompt: str | None = None) -> Iterator[str]:
        """Sample 0 while it grows: the last one is `sample(1, seed, prompt)[0]`."""
        return self._sampling.stream(self._seed(seed), prompt)

    def _seed(self, seed: int | None) -> int:
        """That of the experiment if no other is given."""
        return self.experiment.seed if seed is None else seed

    def pictures(self) -> Mapping[str, np.ndarray]:
        """What the objective has to show beside samples: name -> uint8 `[rows, columns, height, width, channels]`."""
        return self._sampling.pictures()

    def describe(self) -> str:
        """Model sizes, cluster, batch arithmetic, steps of a pass and the seconds to a first compiled step, which is run on real data."""
        started = time.perf_counter()
        self._run_steps(self.data(0), tf.constant(1))
        seconds = time.perf_counter() - started
        sizes = [
            f"{name}: {sum(int(np.prod(v.shape)) for v in network.trainable_variables):,} weights"
            for name, network in self.objective.networks.items()
        ]
        step, count = self._examples_per_step, self.batches.examples
        passes = "" if count is None else f"; a pass over all {count:,} takes {count / step:,.1f}"
        return "\n".join(
            [
                *sizes,
                f"cluster: {self.cluster.describe()}",
                f"batch: {self.layout.describe()}",
                f"step: {step} examples, {self.experiment.steps} steps{passes}",
                f"first compiled step: {seconds:.1f} seconds",
            ]
        )
