"""What a model family gives the trainer: its networks, and the phases of one training step.

A network is a Keras layer. Whatever it must remember besides its weights (moving averages, codebook counts) it assigns
inside the loss as any Keras layer does; the trainer calls losses in a `keras.StatelessScope`, so nothing moves there and
then: the new values are averaged over microbatches and replicas and assigned with the update. A new value must therefore
be linear in means over examples, which makes the average exact on any number of replicas.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf

Batch = Mapping[str, tf.Tensor]
"""Features of b examples: name -> `[b, …]`. Floating features have the dtype of the noise, the precision of losses."""

Metrics = Mapping[str, tf.Tensor]
"""name -> `[b]`: one number an example, so that means are exact whatever the number of replicas."""


class Noise(Protocol):
    """Named random numbers, row i for example i: see `input_pipeline.noise`, which the trainer hands to objectives."""

    @property
    def rows(self) -> int:
        """How many examples the numbers are for."""

    @property
    def dtype(self) -> tf.DType:
        """Of the numbers, and of losses."""

    @property
    def index(self) -> tf.Tensor:
        """The number of each example within the global batch, the data or the samples, int64 `[rows]`."""

    def __call__(self, name: str) -> Noise:
        """A child stream of that name."""

    def numbered(self, number: int | tf.Tensor) -> Noise:
        """The stream of that number, for loops."""

    def uniform(self, shape: Sequence[int] = ()) -> tf.Tensor:
        """`[rows, *shape]` in the open interval (0, 1)."""

    def bernoulli(self, probability: float, shape: Sequence[int] = ()) -> tf.Tensor:
        """Bool `[rows, *shape]`, True with this probability."""

    def normal(self, shape: Sequence[int] = ()) -> tf.Tensor:
        """`[rows, *shape]`, mean 0, variance 1."""


State = dict[str, Any]
"""What samples that are not finished need to go on: name -> tensor `[b, …]` or scalar, or such a dictionary."""


class Feature(Protocol):
    """What an objective may know of one feature of the data: see `input_pipeline.batches`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Without the batch."""

    @property
    def dtype(self) -> str:
        """Its name."""

    @property
    def cardinality(self) -> int | None:
        """Of integers: how many values there are."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """How the variables of a phase move: an update rule, a learning rate, a limit to the gradient.

    Args:
      rule: makes a Keras optimiser, of which only the update rule, its slots and `weight_decay` are used; its own
        learning rate is ignored. Example: `functools.partial(keras.optimizers.Adam, beta_1=0.5)`.
      learning_rate: a number, or a function of the training step (scalar int64), such as a Keras schedule.
      clip_norm: the gradient, summed over all replicas, is scaled down to this global norm (Pascanu et al. 2013); None
        leaves it.
      decay_vectors: whether the rule's `weight_decay` moves weights of fewer than two axes too: biases, and factors of
        norms.

    Raises:
      ValueError: if a number would turn the descent round.
    """

    rule: Callable[[], keras.optimizers.Optimizer] = keras.optimizers.Adam
    learning_rate: float | Callable[[tf.Tensor], tf.Tensor] = 1e-3
    clip_norm: float | None = None
    decay_vectors: bool = True

    def __post_init__(self) -> None:
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm is {self.clip_norm}: it must be above 0, or None for none")
        if not callable(self.learning_rate) and not self.learning_rate >= 0:
            raise ValueError(f"learning_rate is {self.learning_rate}: it must be at least 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Average:
    """An exponential moving average of a network's weights, for evaluation and samples.

    After the n-th update that was not skipped (from 1), `copy += (1 - d) * (source - copy)` with
    `d = min(decay, n / (10 + n))`, so that early weights are forgotten soon. Both networks have the same weights in the same order.
    """

    source: keras.layers.Layer
    copy: keras.layers.Layer
    decay: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
    """One optimiser update, made `updates` times a step.

    Attributes:
      name: of the phase, in metrics, noise and messages.
      variables: those which the update moves, and no other.
      loss: `loss(batch, noise, step) -> (per_example_loss [b], metrics {name: [b]})`, a pure function of its arguments and
        the variables; `step` is a scalar int64 tensor. The trainer minimises the mean over the global batch, and adds
        it to the metrics as "loss".
      optimizer: how they move.
      updates: how often a step updates this phase, each time on fresh examples and noise.
      reads: False if the phase reuses the examples of the update before it (then `updates` is 1).
      average: moved after each update of the phase.
    """

    name: str
    variables: Sequence[keras.Variable]
    loss: Callable[[Batch, Noise, tf.Tensor], tuple[tf.Tensor, Metrics]]
    optimizer: Optimizer
    updates: int = 1
    reads: bool = True
    average: Average | None = None


class Objective(Protocol):
    """A model family, made from the data's element spec `{name: Feature}` (shapes without the batch)."""

    networks: Mapping[str, keras.layers.Layer]
    """After `build`: every network, by the name under which checkpoints keep it."""
    phases: Sequence[Phase]
    """After `build`: in the order in which a step runs them."""

    def build(self, noise: Noise) -> None:
        """Makes the networks; called once, in the strategy's scope. `noise` has one row, for initial weights."""

    def evaluate(self, batch: Batch, noise: Noise, step: tf.Tensor) -> Metrics:
        """Metrics of held-out examples, per example `[b]`; the trainer takes exact means over the split. See `Summarised`."""

    @property
    def sample(self) -> Callable[[Noise], Any] | None:
        """`sample(noise)` draws `noise.rows` samples, in the form of a feature of the source, for `source.decode`; None if
        the family draws none."""


class Carrying(Protocol):
    """An objective of which examples carry something to those after them in their stream: see `batches.Source.streams`.

    Each carried feature is in the batch of its loss and of `evaluate` under its name, as the example before it in the stream
    left it: zeros at first. Both give its next value among their metrics under the same name, `[b, *shape]`. Only an
    objective of one phase with one update a step can carry.
    """

    carry: Mapping[str, Sequence[int]]
    """Name -> shape without the batch, after `build`; the dtype is that of the noise. Empty if nothing is carried."""


class Pretrained(Protocol):
    """An objective with weights from outside the run, which `build` gives the same values each time.

    Those that nothing moves are not in checkpoints, which hold their digest instead.
    """

    pretrained: Sequence[keras.Variable]
    """After `build`; empty if there are none."""
    notes: Sequence[str]
    """After `build`: what a person should know of them, in one line each."""


class Summarised(Protocol):
    """An objective of which more is reported than means of one number an example.

    Its `evaluate` may give metrics of any shape `[b, …]`.
    """

    def summary(self, means: Mapping[str, np.ndarray]) -> Mapping[str, float]:
        """What is reported: functions of the exact means over the split, float64 without the axis of examples.

        Its names must not depend on the means: it is called on zeros to learn them.
        """


class Writing(Protocol):
    """An objective whose samples are tokens, each drawn after those before it, which can go on from a prompt."""

    @property
    def end(self) -> int | None:
        """The token with which a sample ends, and which fills it up to its length; None if none does."""

    def length(self, prompt: Sequence[int] | None = None) -> int:
        """Tokens of a sample after a prompt, or its own, which is not among them.

        Raises:
          ValueError: if it cannot go on from the prompt.
        """

    @property
    def streams(self) -> bool:
        """Whether the first tokens of a sample are known before the last."""

    def sample(self, noise: Noise, prompt: Sequence[int] | None = None) -> tf.Tensor:
        """As `Objective.sample`, int32 `[rows, length(prompt)]`, after a prompt of one or more tokens in place of its own."""

    def begin(self, noise: Noise, prompt: Sequence[int] | None = None) -> State:
        """The state of samples before their first tokens; only where it streams."""

    def go_on(
        self, noise: Noise, state: State, count: int, prompt: Sequence[int] | None = None
    ) -> tuple[tf.Tensor, State]:
        """The next tokens, int32 `[rows, count]`, with zeros after the last, and the state after them; only where it streams.

        The parts of a sample are those of `sample` on the same noise, after the prompt with which it began.
        """


class Conditional(Protocol):
    """An objective whose samples are of classes in turn."""

    @property
    def classes(self) -> int:
        """How many: sample i is of class i modulo them; 0 if samples have none."""


class Recognising(Protocol):
    """An objective in whose eyes the samples of others are judged."""

    def recognise(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Features `[b, features]` and probabilities of the classes `[b, classes]` of pictures `[b, height, width, channels]`."""


class Pictured(Protocol):
    """An objective that has more to show than samples."""

    def pictures(self, batch: Batch, noise: Noise) -> Mapping[str, tf.Tensor]:
        """Tables of pictures by name, such as reconstructions beside their originals.

        Args:
          batch: `noise.rows` examples, held-out ones if there are any.
          noise: theirs.

        Returns:
          name -> `[rows, columns, …]`, each entry in the form of a sample.
        """


class Charted(Protocol):
    """An objective of tokens that shows what goes on within it."""

    charts: Callable[[Batch], tuple[tf.Tensor, Mapping[str, Mapping[str, tf.Tensor]]]] | None
    """From examples, held-out ones if there are any, to tokens of the first of them, int32 `[time]`; and by the name of the picture
    and of its panels, in the order in which they are shown, numbers from -1 to 1 along these, `[rows, time]`. None if not wanted."""
