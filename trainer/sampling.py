"""Samples and other pictures from an objective's weights as they stand, decoded to what a person reads."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from input_pipeline.batches import Batches, DataError, Slice
from input_pipeline.noise import Noise
from models.objective import Objective, State
from trainer.exits import ConfigError, UsageError
from trainer.heat_maps import heat_maps
from trainer.step import Step

CHUNK = 256
"""Samples drawn at once."""
STREAMED = 16
"""Tokens drawn at once where they are shown meanwhile."""
PICTURED = 8
"""Examples whose pictures are shown."""


class Sampling:
    """Draws samples; sample i depends on the weights, the seed and i alone.

    Args:
      objective: what draws them.
      batches: of which the source decodes them.
      step: gives their noise.
      xla: whether XLA compiles the drawing.
    """

    def __init__(self, objective: Objective, batches: Batches, step: Step, xla: bool) -> None:
        self._objective, self._batches, self._step = objective, batches, step
        self._xla = xla
        self._pictured: Callable | None = getattr(objective, "pictures", None)
        self._charted: Callable | None = getattr(objective, "charts", None)

    def __call__(
        self, count: int, seed: int, prompt: str | None = None, label: int | None = None
    ) -> Any:
        """`count` samples, as `Source.decode` gives them.

        Args:
          count: how many.
          seed: of their noise.
          prompt: text that they begin with, in place of what the objective goes on from.
          label: the only class of which they are, of a conditional objective; None for all in turn.

        Raises:
          ConfigError: if the objective draws none.
          UsageError: if it goes on from no prompt, or not from this one, or has no such class.
        """
        self.check()
        tokens = self._tokens(prompt)
        if label is None:
            chunks = [(first, min(CHUNK, count - first)) for first in range(0, count, CHUNK)]
        else:
            self._check_class(label)
            chunks = [(label + i * self.classes, 1) for i in range(count)]
        # Each part on its own: ten thousand large pictures in floats take gigabytes.
        parts = [
            self._decode(
                self._draw(seed, rows, tf.constant(first, tf.int64), tokens).numpy(), tokens or ()
            )
            for first, rows in chunks
        ]
        if isinstance(parts[0], np.ndarray):
            return np.concatenate(parts)
        return list(itertools.chain.from_iterable(parts))

    @property
    def streams(self) -> bool:
        """Whether the beginning of a sample can be had before its end: see `models.objective.Writing`."""
        return getattr(self._objective, "streams", False)

    def stream(self, seed: int, prompt: str | None = None) -> Iterator[str]:
        """Sample 0 while it grows, if it `streams`: each time some tokens more, at last the one that a call gives."""
        objective: Any = self._objective
        tokens = self._tokens(prompt)
        state = self._begin(seed, tokens)
        length = objective.length(tokens)
        drawn = np.zeros([1, 0], np.int32)
        while drawn.shape[1] < length and objective.end not in drawn:
            part, state = self._go_on(seed, state, tokens)
            drawn = np.concatenate([drawn, part.numpy()], 1)[:, :length]
            yield self._decode(drawn, tokens or ())[0]

    @property
    def classes(self) -> int:
        """How many classes samples have in turn, sample i that of i modulo them; 0 if they have none."""
        return getattr(self._objective, "classes", 0)

    def _check_class(self, label: int) -> None:
        if not self.classes:
            raise UsageError(
                f"{type(self._objective).__name__} draws no class that one could choose: leave --class={label} out"
            )
        if not 0 <= label < self.classes:
            raise UsageError(f"--class={label}: the model has classes 0 to {self.classes - 1}")

    def _tokens(self, prompt: str | None) -> tuple[int, ...] | None:
        if prompt is None:
            return None
        objective: Any = self._objective
        encode = getattr(self._batches.source, "encode", None)
        if encode is None or not hasattr(objective, "begin"):
            raise UsageError(
                f"{type(objective).__name__} goes on from no prompt: leave it out, it is for models that draw texts"
            )
        try:
            tokens = tuple(int(token) for token in encode(prompt))
        except DataError as error:
            raise UsageError(f"the prompt cannot be encoded: {error}") from error
        if not tokens:
            raise UsageError(f"the prompt {prompt!r} has no tokens: give more, or leave it out")
        try:
            objective.length(tokens)
        except ValueError as error:
            raise UsageError(str(error)) from error
        return tokens

    def _decode(self, samples: np.ndarray, prompt: Sequence[int]) -> Any:
        """What a person reads: texts with their prompt, and without their end and what fills them up."""
        source, end = self._batches.source, getattr(self._objective, "end", None)
        if not prompt and end is None:
            return source.decode(samples)
        texts = []
        for row in samples:
            ends = np.flatnonzero(row == end)
            whole = np.append(np.array(prompt, row.dtype), row[: ends[0]] if len(ends) else row)
            texts += source.decode(whole[np.newaxis])
        return texts

    def check(self) -> None:
        """Raises ConfigError if the objective draws no samples."""
        if self._objective.sample is None:
            raise ConfigError(
                f"{type(self._objective).__name__} draws no samples: leave Experiment.samples at 0, and evaluate it"
            )

    def pictures(self) -> Mapping[str, np.ndarray]:
        """The tables of `models.objective.Pictured`, uint8 `[rows, columns, height, width, channels]`; none of other objectives."""
        if self._pictured is None:
            return {}
        tables = self._show(self._examples())
        return {name: self._decode_table(table.numpy()) for name, table in sorted(tables.items())}

    def charts(self) -> Mapping[str, np.ndarray]:
        """The heat maps of `models.objective.Charted`, uint8 `[height, width, 3]`; none of other objectives."""
        if self._charted is None:
            return {}
        tokens, charts = self._chart(self._examples())
        labels = self._batches.source.decode(tokens.numpy()[:, np.newaxis])
        return {
            name: heat_maps({title: panels[title].numpy() for title in panels}, labels)
            for name, panels in charts.items()
        }

    def _decode_table(self, table: np.ndarray) -> np.ndarray:
        rows, columns = table.shape[:2]
        decoded = self._batches.source.decode(table.reshape(rows * columns, *table.shape[2:]))
        return decoded.reshape(rows, columns, *decoded.shape[1:])

    def _examples(self) -> dict[str, tf.Tensor]:
        """The first held-out examples, or else the first of the training."""
        if self._batches.validation is not None:
            rows = min(PICTURED, len(self._batches.validation))
            batch, _ = next(iter(self._batches.evaluation(Slice(), batch=rows)))
            return batch
        batch = next(iter(self._batches.training(Slice())))
        return {name: x[0][:PICTURED] for name, x in batch.items()}

    def _noise(self, seed: int, rows: int = 1, first: tf.Tensor | int = 0) -> Noise:
        return self._step.noise("sample", rows=rows, first=first, seed=seed)

    @functools.cached_property
    def _draw(self) -> Callable:
        sample: Any = self._objective.sample

        def draw(seed: int, rows: int, first: tf.Tensor, prompt: Sequence[int] | None) -> tf.Tensor:
            noise = self._noise(seed, rows, first)
            return sample(noise) if prompt is None else sample(noise, prompt)

        return self._compiled(draw)

    @functools.cached_property
    def _begin(self) -> Callable:
        objective: Any = self._objective
        return self._compiled(lambda seed, prompt: objective.begin(self._noise(seed), prompt))

    @functools.cached_property
    def _go_on(self) -> Callable:
        objective: Any = self._objective

        def go_on(seed: int, state: State, prompt: Sequence[int] | None) -> tuple[tf.Tensor, State]:
            return objective.go_on(self._noise(seed), state, STREAMED, prompt)

        return self._compiled(go_on)

    @functools.cached_property
    def _chart(self) -> Callable:
        assert self._charted is not None
        return tf.function(self._charted, autograph=False)

    @functools.cached_property
    def _show(self) -> Callable:
        pictured = self._pictured
        assert pictured is not None

        def show(batch: dict[str, tf.Tensor]) -> Mapping[str, tf.Tensor]:
            rows = next(iter(batch.values())).shape[0]
            return pictured(self._step.cast(batch), self._step.noise("pictures", rows=rows))

        return tf.function(show, autograph=False)

    def _compiled(self, function: Callable) -> Callable:
        return tf.function(function, jit_compile=self._xla, autograph=False)
