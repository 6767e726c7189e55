"""One optimiser update of a phase, made alike on every replica from gradients that are already reduced.

Keras gives the update rule. Everything around it is here, since Keras clips, decays and judges "finite" before the
all-reduce (TRAPS 3, 5): the learning rate as a function of our step, decoupled weight decay, the skip of a bad update, the
loss scale, statistics, the moving average and the sums of metrics.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from models.objective import Phase
from trainer import adam
from trainer.exits import ConfigError, Diverged
from trainer.precision import INITIAL_SCALE, Precision, next_scale

RESERVED_METRICS = {"gradient_norm", "learning_rate", "skipped_updates", "loss_scale"}
REFUSED_RULES = ("Nadam", "MultiOptimizer", "LossScaleOptimizer")
HIDDEN_OPTIONS = {
    "clipnorm": "Optimizer.clip_norm, which clips the reduced gradient",
    "clipvalue": "Optimizer.clip_norm, which clips the reduced gradient",
    "global_clipnorm": "Optimizer.clip_norm, which clips the reduced gradient",
    "use_ema": "Phase.average",
    "gradient_accumulation_steps": "the microbatch, which accumulates by itself",
    "loss_scale_factor": "precision = float16, which has its own loss scale",
}


def make_rule(phase: Phase) -> keras.optimizers.Optimizer:
    """The phase's Keras optimiser with its slots; call it in the strategy's scope (TRAPS 4).

    Raises:
      ConfigError: for what Keras does behind the trainer's back, or does wrong when only the rule is used.
    """
    rule = phase.optimizer.rule()
    kind = type(rule).__name__
    if any(base.__name__ in REFUSED_RULES for base in type(rule).__mro__):
        raise ConfigError(
            f"phase {phase.name} uses {kind}, whose update rule cannot be used alone: use Adam or AdamW"
        )
    for option, instead in HIDDEN_OPTIONS.items():
        if getattr(rule, option, None):
            raise ConfigError(
                f"{kind}.{option} of phase {phase.name} is {getattr(rule, option)}: use {instead}"
            )
    constrained = [v.path for v in phase.variables if v.constraint is not None]
    if constrained:
        raise ConfigError(
            f"variable {constrained[0]} has a constraint, which the trainer does not apply: remove it"
        )
    rule.build(list(phase.variables))
    return rule


class Update:
    """The state of one phase's updates, and how it moves.

    Make it in the strategy's scope. `state` names every variable that a checkpoint must hold besides the networks.
    """

    def __init__(
        self,
        phase: Phase,
        *,
        metrics: Sequence[str],
        statistics: Sequence[keras.Variable],
        precision: Precision,
        max_bad: int,
    ) -> None:
        self.phase, self.statistics, self._max_bad = phase, tuple(statistics), max_bad
        for name in RESERVED_METRICS.intersection(metrics):
            raise ConfigError(
                f"phase {phase.name} has a metric {name}, which is the trainer's: rename it"
            )
        self.metrics = (*metrics, "gradient_norm", "learning_rate")
        self.rule = make_rule(phase)
        # Sums over the good updates since the last row of metrics, and in the last place their number.
        self.sums = mirrored_variable([0.0] * (len(self.metrics) + 1), precision.loss_dtype)
        # Bad updates in a row, the step of the first of them, bad updates in all.
        self.bad = mirrored_variable([0, 0, 0], tf.int64)
        self.scale = (
            mirrored_variable([INITIAL_SCALE, 0.0], tf.float32) if precision.scaled else None
        )

    @property
    def state(self) -> dict[str, tf.Variable]:
        # Without the optimiser's own name, which Keras counts up when a process builds a second one.
        prefix = f"{self.rule.name}/"
        state: dict[str, tf.Variable] = {}
        for variable in self.rule.variables:
            name = path = f"optimizer/{variable.path.removeprefix(prefix)}"
            # Adafactor names slots by the last part of a path alone: "kernel" for every kernel.
            for number in itertools.count(2):
                if name not in state:
                    break
                name = f"{path}_{number}"
            state[name] = variable.value
        state |= {"metric_sums": self.sums, "bad_updates": self.bad}
        return state | ({"loss_scale": self.scale} if self.scale is not None else {})

    def read(self, begin_anew: bool = True) -> dict[str, float]:
        """Means of the metrics since new ones were begun, NaN if every update was skipped; begins new ones, or goes on."""
        *sums, count = self.sums.numpy().tolist()
        if begin_anew:
            self.sums.assign(tf.zeros_like(self.sums))
        means = {
            name: total / count if count else math.nan
            for name, total in zip(self.metrics, sums, strict=True)
        }
        means["skipped_updates"] = float(self.skipped())
        if self.scale is not None:
            means["loss_scale"] = float(self.scale.numpy()[0])
        return means

    def skipped(self) -> int:
        """Bad updates in all."""
        return int(self.bad.numpy()[2])

    def check_diverged(self) -> None:
        """Looks for too many bad updates in a row since the start.

        Raises:
          Diverged: naming the phase and the step of the first.
        """
        in_row, first, _ = self.bad.numpy().tolist()
        if in_row >= self._max_bad:
            raise Diverged(
                f"phase {self.phase.name} diverged: {in_row} updates in a row from step {first} on had a loss or "
                "gradient that is not finite; lower the learning rate or set Optimizer.clip_norm"
            )

    def __call__(
        self,
        step: tf.Tensor,
        gradients: Sequence[tf.Tensor],
        metrics: Sequence[tf.Tensor],
        statistics: Sequence[tf.Tensor],
    ) -> None:
        """Clips, and updates everywhere unless something is not finite. Called in replica context.

        Args:
          step: scalar int64.
          gradients: of the mean loss over the global batch: reduced, unscaled, one for each variable of the phase.
          metrics: means over the global batch in the order of `metrics`, the loss first; reduced.
          statistics: new values, reduced.
        """
        norm = tf.linalg.global_norm(gradients)
        # Statistics too: an infinite variance makes a finite loss, and would stay for ever.
        finite = tf.math.is_finite(norm) & tf.math.is_finite(metrics[0])
        for value in statistics:
            finite &= tf.reduce_all(tf.math.is_finite(value))
        if self.phase.optimizer.clip_norm is not None:
            limit = tf.constant(self.phase.optimizer.clip_norm, norm.dtype)
            factor = limit / tf.maximum(norm, limit)
            gradients = [gradient * tf.cast(factor, gradient.dtype) for gradient in gradients]
        rate = self._learning_rate(step)
        dtype = self.sums.dtype
        sums = tf.stack([tf.cast(x, dtype) for x in (*metrics, norm, rate, 1.0)])
        arguments = (step, finite, rate, list(gradients), list(statistics), sums)
        tf.distribute.get_replica_context().merge_call(self._merged, args=arguments)

    def _merged(
        self,
        strategy: tf.distribute.Strategy,
        step: tf.Tensor,
        finite: tf.Tensor,
        rate: tf.Tensor,
        gradients: Sequence[tf.Tensor],
        statistics: Sequence[tf.Tensor],
        sums: tf.Tensor,
    ) -> None:
        def move(variable: tf.Variable, function: Callable, *args: tf.Tensor) -> None:
            strategy.extended.update(variable, function, args=args, group=False)

        def good() -> None:
            self._good(move, rate, gradients, statistics, sums)

        def bad() -> None:
            move(self.bad, self._count_bad, step, *([] if self.scale is None else [self.scale]))

        # Reduced values, so the first replica's are everybody's.
        step = strategy.experimental_local_results(step)[0]
        finite = strategy.experimental_local_results(finite)[0]
        tf.cond(finite, good, bad)
        if self.scale is not None:
            move(
                self.scale,
                lambda scale, ok: scale.assign(tf.stack(next_scale(scale[0], scale[1], ok))),
                finite,
            )

    def _good(
        self,
        move: Callable,
        rate: tf.Tensor,
        gradients: Sequence[tf.Tensor],
        statistics: Sequence[tf.Tensor],
        sums: tf.Tensor,
    ) -> None:
        for variable, gradient in zip(self.phase.variables, gradients, strict=True):
            slots = adam.slots(self.rule, variable)
            move(variable.value, self._rule_for(variable), gradient, rate, *slots)
        move(self.rule.iterations.value, lambda count: count.assign_add(1))
        for variable, value in zip(self.statistics, statistics, strict=True):
            move(variable.value, lambda statistic, new: statistic.assign(new), value)
        if self.phase.average:
            self._average(move)
        move(self.sums, lambda total, more: total.assign_add(more), sums)
        # Once too many were bad the count stays, so that the host sees it at the end of the loop.
        move(
            self.bad,
            lambda bad: bad.assign(tf.where(bad[0] >= self._max_bad, bad, bad * [0, 0, 1])),
        )

    def _rule_for(self, variable: keras.Variable) -> Callable:
        # The two questions that Keras' own apply() asks of a rule, which has no public name for them: which weights are
        # left out of decay, and which of them Muon moves by Adam, with a decay of its own.
        by_adam = isinstance(self.rule, keras.optimizers.Muon)
        by_adam = by_adam and self.rule._should_use_adamw(variable)
        decay = self.rule.adam_weight_decay if by_adam else self.rule.weight_decay
        decays = self.rule._use_weight_decay(variable)
        decays = decays and (self.phase.optimizer.decay_vectors or len(variable.shape) > 1)
        decay = decay if decay and decays else None

        def move(
            component: tf.Variable, gradient: tf.Tensor, rate: tf.Tensor, *slots: tf.Variable
        ) -> None:
            # Decoupled from the gradient (Loshchilov and Hutter 2019), before the rule moves the weight, as Keras does.
            if decay is not None:
                component.assign_sub(component * tf.cast(rate * decay, component.dtype))
            if slots:
                adam.move(self.rule, component, gradient, rate, *slots)
            else:
                self.rule.update_step(gradient, variable, rate)

        return move

    def _average(self, move: Callable) -> None:
        average = self.phase.average
        assert average is not None

        def towards(copy: tf.Variable, source: tf.Variable, count: tf.Variable) -> None:
            count = tf.cast(count, copy.dtype)
            decay = tf.minimum(tf.constant(average.decay, copy.dtype), count / (10 + count))
            copy.assign_add((1 - decay) * (source - copy))

        for copy, source in zip(average.copy.weights, average.source.weights, strict=True):
            move(copy.value, towards, source.value, self.rule.iterations.value)

    def _count_bad(
        self, bad: tf.Variable, step: tf.Tensor, scale: tf.Variable | None = None
    ) -> None:
        # An overflow that a smaller loss scale may cure is skipped, but no step towards the end of the run.
        counts = tf.constant(True) if scale is None else scale[0] <= 1
        in_row = tf.where(counts & (bad[0] < self._max_bad), bad[0] + 1, bad[0])
        first = tf.where((bad[0] == 0) & counts, step, bad[1])
        bad.assign(tf.stack([in_row, first, bad[2] + 1]))

    def _learning_rate(self, step: tf.Tensor) -> tf.Tensor:
        rate, dtype = self.phase.optimizer.learning_rate, self.sums.dtype
        # tf.cast would round a Python number to float32 first.
        return tf.cast(rate(step), dtype) if callable(rate) else tf.constant(rate, dtype)


def mirrored_variable(initial: object, dtype: tf.DType) -> tf.Variable:
    """A variable of the trainer's, equal on all replicas; make it in the strategy's scope."""
    return tf.Variable(
        initial, trainable=False, dtype=dtype, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA
    )
