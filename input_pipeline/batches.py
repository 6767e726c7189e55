"""Which examples each replica gets at which step, and their bytes, as tf.data datasets.

The position of an example is a pure function of the step, so there is no state to save: a run that goes on at step s
asks for the data from step s. An `Unindexed` source is the exception: which example has a position is up to it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import tensorflow as tf

from input_pipeline.noise import Noise
from input_pipeline.order import shuffled_ids


class DataError(ValueError):
    """Data that cannot be used; the message is one line that names the thing and the remedy."""


class MissingLibrary(DataError):
    """They need a library that is not installed."""


@dataclasses.dataclass(frozen=True)
class Feature:
    """One feature of an example.

    Attributes:
      shape: without the batch.
      dtype: name of the dtype, such as "float32".
      cardinality: of integer features, how many values there are: classes, or words of a vocabulary.
    """

    shape: tuple[int, ...]
    dtype: str
    cardinality: int | None = None


ElementSpec = Mapping[str, Feature]


class Source(Protocol):
    """Examples, numbered from 0."""

    @property
    def element_spec(self) -> ElementSpec:
        """The features of an example."""

    def __len__(self) -> int: ...

    def read(self, ids: tf.Tensor) -> dict[str, tf.Tensor]:
        """The examples of `ids` (int64 `[n]`): name -> `[n, *shape]`. Traced into a tf.data function, without autograph."""

    def decode(self, samples: Any) -> Any:
        """What a person reads: uint8 pictures `[n, height, width, 1 or 3]`, or a list of n texts."""


@runtime_checkable
class Unindexed(Protocol):
    """A source of examples without numbers, in an order of their own: others come after a restart and on another layout."""

    @property
    def element_spec(self) -> ElementSpec:
        """The features of an example."""

    @property
    def inexact(self) -> str:
        """Why a training is not exact, for people."""

    def records(self, worker: int, workers: int, seed: int, step: int) -> tf.data.Dataset:
        """What worker `worker` of `workers` reads from a step on, without end: of each example a structure of scalars."""

    def once(self, seed: int) -> tf.data.Dataset:
        """Of each example one such structure, in an order that depends on the seed."""

    def read(self, records: Any) -> dict[str, tf.Tensor]:
        """The examples of `[n]` of these: name -> `[n, *shape]`. Traced as `Source.read` is."""

    def decode(self, samples: Any) -> Any:
        """As that of `Source`."""


class Identified(Protocol):
    """A source that says what a training must find again when it goes on. It may have either, or `classes` for a vocabulary."""

    @property
    def vocabulary(self) -> str:
        """What its tokens stand for."""

    @property
    def content(self) -> str:
        """A digest of its examples, as far as they are read at the start anyway."""


class Streamed(Protocol):
    """A source whose examples continue each other: id window · streams + i is the part of that number of stream i.

    They are read in order, a part of every stream an update; after the last part the first follows.
    """

    @property
    def streams(self) -> int:
        """How many there are; it divides the number of examples, and is the global batch of a training."""


def streams_of(source: Source | Unindexed | None) -> int:
    """How many streams a source has, 0 if its examples do not continue each other."""
    return getattr(source, "streams", 0)


class Transform(Protocol):
    """A change of examples on their way to the model."""

    def element_spec(self, spec: ElementSpec) -> ElementSpec:
        """The features after the change."""

    def __call__(self, batch: dict[str, tf.Tensor], noise: Noise) -> dict[str, tf.Tensor]:
        """`batch` holds `noise.rows` examples; row i may draw row i of the noise and nothing else at random."""


@dataclasses.dataclass(frozen=True)
class Slice:
    """The part of each global batch that one worker holds: that of replicas `first` … `first + count - 1` of `replicas`."""

    replicas: int = 1
    first: int = 0
    count: int = 1


@dataclasses.dataclass(frozen=True)
class Batches:
    """Source, order, transforms and a global batch size, as the datasets of one worker.

    Attributes:
      source: what is read. An `Unindexed` one decides which examples come; everything else is as it is of a `Source`.
      global_batch: examples an update, over all replicas.
      seed: of the order and of the transforms' noise.
      transforms: applied to training examples in this order.
      validation_transforms: applied to validation examples; their noise depends on the example's id alone.
      validation: held-out examples, or None.

    Raises:
      ValueError: if an argument has none of its values, or transforms do not fit their examples.
      DataError: if there are no training examples, or the held-out ones are of another form or have other classes.
    """

    source: Source | Unindexed
    global_batch: int
    seed: int = 0
    transforms: Sequence[Transform] = ()
    validation: Source | None = None
    validation_transforms: Sequence[Transform] = ()

    def __post_init__(self) -> None:
        if self.examples == 0:
            raise DataError(
                "the source of training examples is empty: give one with at least one example"
            )
        if self.global_batch < 1:
            raise ValueError(f"global_batch is {self.global_batch}: it must be at least 1")
        streams = streams_of(self.source)
        if streams not in (0, self.global_batch):
            raise ValueError(
                f"global_batch is {self.global_batch} and the source has {streams} streams: an update reads a part of "
                "each, set both to the same number"
            )
        if self.validation_spec is not None:
            _check_meaning(self.source, self.validation)
            _check_held_out(self.element_spec, self.validation_spec)

    @property
    def element_spec(self) -> ElementSpec:
        """The features of a training example after the transforms."""
        return _transformed(self.source.element_spec, self.transforms)

    @property
    def validation_spec(self) -> ElementSpec | None:
        """The features of a held-out example after its transforms; None if there are none."""
        if self.validation is None:
            return None
        return _transformed(self.validation.element_spec, self.validation_transforms)

    @property
    def examples(self) -> int | None:
        """How many training examples there are; None of an unindexed source, which does not know."""
        return None if isinstance(self.source, Unindexed) else len(self.source)

    @functools.cached_property
    def identity(self) -> Mapping[str, str]:
        """Digests of what must be the same wherever a training goes on, of data that say so.

        "meaning", of what tokens or labels stand for, without which a model is of no use, and "examples", of those that are
        trained on.
        """
        source: Any = self.source
        meaning = getattr(source, "vocabulary", "") or list(getattr(source, "classes", None) or ())
        found = {"meaning": digest(meaning)} if meaning else {}
        if self.examples is not None:
            found["examples"] = digest([self.examples, getattr(source, "content", None)])
        return found

    @property
    def inexact(self) -> str | None:
        """Why the examples depend on the layout and on restarts, for people; None if they do not."""
        return self.source.inexact if isinstance(self.source, Unindexed) else None

    def ids(self, positions: tf.Tensor) -> tf.Tensor:
        """Ids of the examples at these positions of the training, int64 `[n]`."""
        assert self.examples is not None
        if streams_of(self.source):
            return positions % self.examples
        return shuffled_ids(positions, self.examples, self.seed)

    def training(self, worker: Slice, *, step: int = 0, updates: int = 1) -> tf.data.Dataset:
        """The worker's examples from `step` on, without end.

        Args:
          worker: whose.
          step: the first.
          updates: global batches a step.

        Returns:
          A dataset whose elements belong in turn to each replica of the worker, then to the next step: name ->
          `[updates, global_batch / replicas, …]`.
        """
        local = self.global_batch // worker.replicas
        # Without end, which tf.distribute sees: it would ask each worker before each step whether its data go on.
        indices = tf.data.Dataset.counter(step * worker.count)
        if isinstance(self.source, Unindexed):
            number, workers = worker.first // worker.count, worker.replicas // worker.count
            records = self.source.records(number, workers, self.seed, step)
            indices = tf.data.Dataset.zip(
                indices, records.batch(updates * local, drop_remainder=True)
            )

        def read(index: tf.Tensor, records: Any = None) -> dict[str, tf.Tensor]:
            at_step, replica = index // worker.count, worker.first + index % worker.count
            parts = []
            for update in range(updates):
                first = (at_step * updates + update) * self.global_batch + replica * local
                if records is None:
                    of_update = self.ids(first + tf.range(local, dtype=tf.int64))
                else:
                    rows = slice(update * local, (update + 1) * local)
                    of_update = tf.nest.map_structure(lambda x, rows=rows: x[rows], records)
                batch = self.source.read(of_update)
                noise = Noise(self.seed, "transform", rows=local, first=first)
                parts.append(apply(self.transforms, batch, noise))
            return tf.nest.map_structure(lambda *part: tf.stack(part), *parts)

        return _pipeline(indices, read, worker)

    def evaluation(self, worker: Slice, *, batch: int) -> tf.data.Dataset:
        """The worker's part of one pass over the validation examples, in order of their ids.

        Args:
          worker: whose.
          batch: examples a step over all replicas, at least one of each stream if there are streams. Padding repeats
            the last example: at the end, or with streams in each step, so that a stream stays in its row.

        Returns:
          A dataset whose elements belong in turn to each replica of the worker: (name -> `[batch / replicas, …]`, ids,
          int64 `[batch / replicas]`, in the padding that of no example). Every worker has as many as any other.
        """
        assert self.validation is not None
        source, local = self.validation, batch // worker.replicas
        read_a_step = streams_of(source) or batch

        def read(index: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
            at_step, replica = index // worker.count, worker.first + index % worker.count
            rows = replica * local + tf.range(local, dtype=tf.int64)
            first = at_step * read_a_step
            ids = tf.where(rows < read_a_step, first + rows, len(source))
            examples = source.read(tf.minimum(ids, len(source) - 1))
            noise = Noise(
                self.seed, "validation_transform", rows=local, first=first + replica * local
            )
            return apply(self.validation_transforms, examples, noise), ids

        steps = -(-len(source) // read_a_step)
        indices = tf.data.Dataset.range(steps * worker.count)
        return _pipeline(indices, read, worker)


def _transformed(spec: ElementSpec, transforms: Sequence[Transform]) -> ElementSpec:
    for transform in transforms:
        spec = transform.element_spec(spec)
    return spec


def digest(value: Any) -> str:
    """Of a JSON value, 32 hexadecimal digits."""
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=16).hexdigest()


def _check_meaning(source: Any, validation: Any) -> None:
    """Checks that a token or a label means the same in both, where they say what it means.

    Raises:
      DataError: if not, naming the first label that does not.
    """
    vocabularies = [getattr(one, "vocabulary", None) for one in (source, validation)]
    if None not in vocabularies and vocabularies[0] != vocabularies[1]:
        raise DataError(
            "the vocabulary of held-out texts is not that of training ones, so that tokens mean something else: give both as "
            "parts of one corpus, or the same tokenizer"
        )
    names, held_out = (getattr(one, "classes", None) or () for one in (source, validation))
    for label, (name, found) in enumerate(zip(names, held_out, strict=False)):
        if name != found:
            raise DataError(
                f'label {label} is "{found}" of held-out examples, and "{name}" of training ones: give both the same '
                "classes, folders of the same names with at least one picture in each"
            )


def _check_held_out(trained: ElementSpec, held_out: ElementSpec) -> None:
    """Checks the features that both have: what a model is made for must fit the held-out examples too.

    Windows of tokens, which have a cardinality, may have another length. Whether a feature that is missing is needed at all
    only the objective knows.

    Raises:
      DataError: naming the first that does not fit.
    """
    for name in trained:
        if name not in held_out:
            continue
        one, other = trained[name], held_out[name]
        fits = len(one.shape) == len(other.shape) if one.cardinality else one.shape == other.shape
        if one.dtype != other.dtype or not fits:
            raise DataError(
                f'feature "{name}" of held-out examples is {other.dtype} {list(other.shape)}, and of training ones '
                f"{one.dtype} {list(one.shape)}: make them alike, by the arguments of Experiment.validation or by "
                "Experiment.validation_transforms"
            )
        if one.cardinality and other.cardinality and other.cardinality > one.cardinality:
            raise DataError(
                f'feature "{name}" of held-out examples has {other.cardinality} values, and of training ones '
                f"{one.cardinality}: the model knows no more, take held-out examples of the same classes or vocabulary"
            )


def apply(
    transforms: Sequence[Transform], batch: dict[str, tf.Tensor], noise: Noise
) -> dict[str, tf.Tensor]:
    """The batch of `noise.rows` examples after the transforms, each with a stream of noise of its own."""
    for number, transform in enumerate(transforms):
        batch = transform(batch, noise(f"{number}/{type(transform).__name__}"))
    return batch


def _pipeline(indices: tf.data.Dataset, read: Callable, worker: Slice) -> tf.data.Dataset:
    options = tf.data.Options()
    options.deterministic = True
    # Ids are sharded here, by replica; sharding by file starves workers (TRAPS 20).
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    # As many are read at once as there are cores, without it too. Its thread sleeps for ever longer, and so long an iterator
    # may wait for it when it is destroyed, as at the end of a training.
    options.autotune.enabled = False
    # Nothing in it needs autograph, which takes a second to rewrite it at each start.
    read = tf.autograph.experimental.do_not_convert(read)
    dataset = indices.map(read, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.with_options(options).prefetch(2 * worker.count)
