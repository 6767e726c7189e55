"""One training step on one replica: every phase's loss, gradients, all-reduce and update.

Forward and backward of a phase are one compiled function; the collective and the update stay outside it, which works on
virtual CPUs, several GPUs, several workers and TPU (TRAPS 7, 8). On one device the same code lowers whole to one XLA program.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

import keras
import tensorflow as tf

from input_pipeline.batches import ElementSpec
from input_pipeline.noise import Noise
from models.objective import Batch, Objective, Phase
from trainer.carry import Carry, carried, placed
from trainer.cluster import Layout
from trainer.exits import ConfigError
from trainer.precision import Precision
from trainer.pretrained import frozen
from trainer.update import Update, mirrored_variable

NOISE_NAMES = {"weights", "evaluate", "sample", "pictures", "transform", "validation_transform"}
"""Streams of noise that are not a phase's."""

RANDOM_KERNEL = re.compile(
    "Random(?!IndexShuffle|GammaGrad)|Multinomial|(Parameterized)?TruncatedNormal"
    r"|Stateful(Random|StandardNormal|TruncatedNormal|Uniform)|\w*CandidateSampler|SampleDistorted"
)
"""How the names of operations begin that draw from a state, a device's or a generator's."""

Sums = tuple[list[tf.Tensor], list[tf.Tensor], list[tf.Tensor], list[tf.Tensor]]
"""Gradients of a phase's variables, sums of its metrics, new values of its statistics, and of what its examples carry."""


class Step:
    """The training step of an objective whose networks are built; make it in the strategy's scope."""

    def __init__(
        self,
        objective: Objective,
        spec: ElementSpec,
        *,
        layout: Layout,
        precision: Precision,
        seed: int,
        xla: bool,
        max_bad_updates: int,
        streamed: bool = False,
    ) -> None:
        _check(objective)
        self._objective, self._layout, self._precision, self._seed = (
            objective,
            layout,
            precision,
            seed,
        )
        self.number = mirrored_variable(0, tf.int64)
        self.carry = Carry(
            carried(objective) if streamed else {},
            replicas=layout.replicas,
            rows=layout.local_batch,
            dtype=precision.loss_dtype,
        )
        self.updates = []
        self._gradients = []
        for phase in objective.phases:
            metrics, statistics = self._discover(phase, spec)
            self.updates.append(
                Update(
                    phase,
                    metrics=metrics,
                    statistics=(*statistics, *self.carry.variables.values()),
                    precision=precision,
                    max_bad=max_bad_updates,
                )
            )
            function = functools.partial(self._phase_gradients, phase, metrics, statistics)
            self._gradients.append(tf.function(function, jit_compile=xla, autograph=False))
        self.frozen = frozen(objective, self.updates)

    @property
    def loss_dtype(self) -> tf.DType:
        """The precision of losses, of noise, and of what is carried."""
        return self._precision.loss_dtype

    @property
    def reads(self) -> int:
        """Global batches that a step reads."""
        return sum(phase.updates for phase in self._objective.phases if phase.reads)

    @property
    def state(self) -> dict[str, tf.Variable]:
        """Everything that a checkpoint holds, by name: not what is frozen."""
        state = {"step": self.number}
        left = {id(variable) for variable in self.frozen}
        for name, network in self._objective.networks.items():
            kept = (v for v in network.variables if id(v) not in left)
            state |= {f"{name}/{_path(network, v)}": v.value for v in kept}
        state |= {f"carry/{name}": v.value for name, v in self.carry.variables.items()}
        for update in self.updates:
            state |= {
                f"{update.phase.name}/{name}": variable for name, variable in update.state.items()
            }
        return state

    def metric_names(self) -> list[str]:
        """The names in the rows of metrics of what is summed."""
        return [f"{self._prefix(u)}/{name}" for u in self.updates for name in u.metrics]

    def read_metrics(self, begin_anew: bool = True) -> dict[str, float]:
        """What a row tells of the steps since it last began anew, see `Update.read`."""
        return {
            f"{self._prefix(update)}/{name}": value
            for update in self.updates
            for name, value in update.read(begin_anew).items()
        }

    def _prefix(self, update: Update) -> str:
        return "train" if len(self.updates) == 1 else f"train/{update.phase.name}"

    def noise(
        self,
        name: str,
        *,
        rows: int,
        first: tf.Tensor | int = 0,
        step: tf.Tensor | int = 0,
        update: tf.Tensor | int = 0,
        seed: int | None = None,
    ) -> Noise:
        """The noise of that name for these rows of the global batch, of the experiment's seed if no other is given."""
        dtype, seed = self._precision.loss_dtype, self._seed if seed is None else seed
        return Noise(seed, name, rows, first, step, update, dtype)

    def cast(self, batch: Batch) -> dict[str, tf.Tensor]:
        """The batch with floating features in the precision of losses."""
        dtype = self._precision.loss_dtype
        return {name: tf.cast(x, dtype) if x.dtype.is_floating else x for name, x in batch.items()}

    def __call__(self, batch: Batch) -> None:
        """One step in replica context; `batch` is name -> `[reads, local_batch, …]`, this replica's examples."""
        context = tf.distribute.get_replica_context()
        replica = context.replica_id_in_sync_group
        first = tf.cast(replica, tf.int64) * self._layout.local_batch
        # Without its batch nothing of a step may be done: the data may have failed.
        with tf.control_dependencies(tf.nest.flatten(batch)):
            step = tf.identity(self.number)
        read = -1
        for update, gradients in zip(self.updates, self._gradients, strict=True):
            for number in range(update.phase.updates):
                read += update.phase.reads
                examples = {name: x[read] for name, x in batch.items()} | self.carry.take(replica)
                scale = None if update.scale is None else update.scale[0]
                *sums, carry = gradients(
                    examples, first, step, tf.constant(number, tf.int64), scale
                )
                # One collective for all; TensorFlow packs it.
                sums = context.all_reduce("SUM", (*sums, self.carry.spread(carry, replica)))
                update(step, *_unscaled(sums, scale, self._layout.replicas))

        # Nor may the step count whose collectives were aborted.
        with tf.control_dependencies(tf.nest.flatten(sums)):
            step = tf.identity(step)

        def advance(strategy: tf.distribute.Strategy, step: tf.Tensor) -> None:
            local = strategy.experimental_local_results(step)
            with tf.control_dependencies(local):  # The batches of all replicas.
                reached = local[0] + 1
            strategy.extended.update(
                self.number, lambda number, value: number.assign(value), (reached,), group=False
            )

        context.merge_call(advance, (step,))

    def _phase_gradients(
        self,
        phase: Phase,
        metrics: Sequence[str],
        statistics: Sequence[keras.Variable],
        batch: Batch,
        first: tf.Tensor,
        step: tf.Tensor,
        update: tf.Tensor,
        scale: tf.Tensor | None,
    ) -> Sums:
        """This replica's part of the sums over the global batch: gradients, metrics (÷ global batch), statistics (mean).

        And what its examples carry on, `[local_batch, …]` each.
        """
        size, count = self._layout.microbatch, self._layout.accumulation

        def one(examples: Batch, first: tf.Tensor) -> Sums:
            noise = self.noise(phase.name, rows=size, first=first, step=step, update=update)
            with (
                keras.StatelessScope() as scope,
                tf.GradientTape(watch_accessed_variables=False) as tape,
            ):
                for variable in phase.variables:
                    tape.watch(variable.value)
                loss, values = phase.loss(self.cast(examples), noise, step)
                total = tf.reduce_sum(tf.cast(loss, noise.dtype)) / self._layout.global_batch
                scaled = total if scale is None else total * tf.cast(scale, total.dtype)
            gradients = tape.gradient(scaled, [variable.value for variable in phase.variables])
            _all_connected(phase, gradients)
            # Embedding gradients are made dense where XLA can fuse it; sparse ones cannot be reduced (TRAPS 9).
            gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
            carry, values = self.carry.split(values, size)
            rows = (tf.cast(values[name], noise.dtype) for name in metrics[1:])
            means = [total, *(tf.reduce_sum(row) / self._layout.global_batch for row in rows)]
            news = [scope.get_current_value(variable) / count for variable in statistics]
            return gradients, means, news, carry

        if count == 1:
            return one(batch, first)
        # Indexing by the whole first axis: a slice of a dynamic start fails in the gradient under XLA (TRAPS 9c).
        batch = {name: tf.reshape(x, [count, size, *x.shape[1:]]) for name, x in batch.items()}

        def more(a: tf.Tensor, sums: tuple) -> tuple:
            examples = {name: x[a] for name, x in batch.items()}
            *sums_of_one, carry = one(examples, first + tf.cast(a, tf.int64) * size)
            part = (*sums_of_one, [placed(value, a, count) for value in carry])
            return a + 1, tf.nest.map_structure(tf.add, sums, part)

        zeros = (
            [tf.zeros(variable.shape, variable.dtype) for variable in phase.variables],
            [tf.zeros([], self._precision.loss_dtype) for _ in metrics],
            [tf.zeros(variable.shape, variable.dtype) for variable in statistics],
            [tf.zeros(spec.shape, spec.dtype) for spec in self.carry.specs(count * size).values()],
        )
        return tf.while_loop(lambda a, _: a < count, more, (0, zeros), maximum_iterations=count)[1]

    def _discover(
        self, phase: Phase, spec: ElementSpec
    ) -> tuple[tuple[str, ...], tuple[keras.Variable, ...]]:
        """The names of a phase's metrics and the variables to which its loss assigns, from a trace of the forward pass."""
        size = self._layout.microbatch
        known = {
            id(v): v for network in self._objective.networks.values() for v in network.variables
        }
        found: dict = {}

        def forward(batch: Batch) -> tf.Tensor:
            noise = self.noise(phase.name, rows=size)
            with keras.StatelessScope() as scope:
                loss, metrics = phase.loss(self.cast(batch), noise, tf.constant(0, tf.int64))
            _, metrics = self.carry.split(metrics, size)
            for name, value in {"loss": loss, **metrics}.items():
                if value.shape != (size,):
                    raise ConfigError(
                        f"{name} of phase {phase.name} has shape {value.shape}: expected one number an example, [{size}]"
                    )
            found["metrics"] = ("loss", *sorted(set(metrics) - {"loss"}))
            found["assigned"] = list(scope.state_mapping)
            return loss

        traced = tf.function(forward, autograph=False).get_concrete_function(
            {
                name: tf.TensorSpec((size, *feature.shape), feature.dtype)
                for name, feature in spec.items()
            }
            | self.carry.specs(size)
        )
        _no_random_kernels(phase, traced.graph)
        if not known.keys() >= set(found["assigned"]):
            raise ConfigError(
                f"the loss of phase {phase.name} assigns to a variable that belongs to none of the objective's networks: "
                "no checkpoint would hold it"
            )
        assigned = [known[key] for key in found["assigned"]]
        if not all(tf.as_dtype(v.dtype).is_floating for v in assigned):
            raise ConfigError(
                f"the loss of phase {phase.name} moves the state of a Keras random layer, which draws the same numbers on "
                "every replica: draw from `noise` instead"
            )
        return found["metrics"], tuple(assigned)


def _check(objective: Objective) -> None:
    """Refuses what would be lost in a checkpoint, or learn something else than it says."""
    phases, known, paths = objective.phases, set(), set()
    if not phases or not phases[0].reads:
        raise ConfigError("the first phase of a step must read examples")
    if carried(objective) and (len(phases) > 1 or phases[0].updates > 1):
        raise ConfigError(
            f"{type(objective).__name__} carries {', '.join(carried(objective))} along streams, which takes a step of one "
            "update"
        )
    for name, network in objective.networks.items():
        for layer in network._flatten_layers():
            if isinstance(layer, keras.layers.BatchNormalization):
                raise ConfigError(
                    f"{layer.path} is Keras' BatchNormalization, whose statistics depend on the number of replicas: use "
                    "models.layers.GhostBatchNorm"
                )
        for variable in network.variables:
            path = f"{name}/{_path(network, variable)}"
            if path in paths:
                raise ConfigError(
                    f"two variables are named {path}: give each layer its own name, by which checkpoints keep it"
                )
            paths.add(path)
            known.add(id(variable))
    for number, phase in enumerate(phases):
        if phase.name in NOISE_NAMES:
            raise ConfigError(
                f"a phase is named {phase.name}, as other noise of the trainer is: name it otherwise"
            )
        if phase.name in [other.name for other in phases[:number]]:
            raise ConfigError(
                f"two phases are named {phase.name}: give each its own name, by which its noise and its state go"
            )
        if not phase.reads and phase.updates != 1:
            raise ConfigError(
                f"phase {phase.name} makes {phase.updates} updates on the same examples: one that does not read makes 1"
            )
        for variable in (*phase.variables, *(phase.average.copy.weights if phase.average else ())):
            if id(variable) not in known:
                raise ConfigError(
                    f"phase {phase.name} moves {variable.path}, which belongs to none of the objective's networks: "
                    "no checkpoint would hold it"
                )


def _no_random_kernels(phase: Phase, graph: tf.Graph) -> None:
    """Refuses what draws from a state, of which each replica has its own and no checkpoint any."""
    definition = graph.as_graph_def()
    nodes = [*definition.node, *(n for f in definition.library.function for n in f.node_def)]
    for node in nodes:
        if RANDOM_KERNEL.match(node.op):
            raise ConfigError(
                f"the loss of phase {phase.name} draws by TensorFlow's {node.op}, whose numbers depend on the layout: "
                "draw from `noise` instead"
            )


def _path(network: keras.layers.Layer, variable: keras.Variable) -> str:
    """The variable's path within its network."""
    return variable.path.removeprefix(f"{network.name}/")


def _all_connected(phase: Phase, gradients: Sequence[tf.Tensor | None]) -> None:
    for variable, gradient in zip(phase.variables, gradients, strict=True):
        if gradient is None:
            raise ConfigError(
                f"phase {phase.name} moves {variable.path}, but its loss does not depend on it"
            )


def _unscaled(
    sums: Sums, scale: tf.Tensor | None, replicas: int
) -> tuple[list[tf.Tensor], list[tf.Tensor], list[tf.Tensor]]:
    """Gradients, metrics, and the new values of statistics and then of what is carried."""
    gradients, metrics, statistics, carry = sums
    if scale is not None:
        gradients = [g / tf.cast(scale, g.dtype) for g in gradients]
    return gradients, metrics, [*(s / replicas for s in statistics), *carry]
