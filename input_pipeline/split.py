"""A source in two parts, one to train on and one held out."""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf

from input_pipeline.batches import DataError, ElementSpec, Source
from input_pipeline.order import shuffled_ids
from input_pipeline.text import Text


@dataclasses.dataclass(frozen=True)
class Split:
    """One part of a source, by example id, in constant memory.

    Two splits with equal arguments but for `part` share no example and leave none out. Whatever else the source has, such as
    `classes`, the split has too. Texts are split as they become a corpus.

    Attributes:
      source: the whole.
      part: "train" or "validation".
      share: of the source's examples in the validation part, between 0 and 1; at least one example.
      by: "shuffle" holds out examples at random; "tail" the last ones, as sequences need it.
      seed: of "shuffle". It is no part of the experiment's seed: runs that differ in that hold out the same examples.

    Raises:
      ValueError: if an argument has none of its values, or the source is a text.
      DataError: if nothing is left to train on.
    """

    source: Source
    part: str = "train"
    share: float = 0.1
    by: str = "shuffle"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, values in {"part": ("train", "validation"), "by": ("shuffle", "tail")}.items():
            if getattr(self, name) not in values:
                raise ValueError(
                    f'{name} is {getattr(self, name)!r}: it must be "{values[0]}" or "{values[1]}"'
                )
        if not 0 < self.share < 1:
            raise ValueError(f"share is {self.share}: it must be between 0 and 1")
        if isinstance(self.source, Text):
            raise ValueError(
                f"{type(self.source).__name__} reads one part of its corpus: set its part, and the share held out where the "
                "corpus is made"
            )
        if self._train < 1:
            raise DataError(
                f"a split of {len(self.source)} examples, {self._validation} of them for validation, leaves none for "
                "training: take more data or a smaller share"
            )

    @property
    def element_spec(self) -> ElementSpec:
        """That of the source."""
        return self.source.element_spec

    def __len__(self) -> int:
        return self._train if self.part == "train" else self._validation

    def read(self, ids: tf.Tensor) -> dict[str, tf.Tensor]:
        """The examples of `ids` (int64 `[n]`), numbered from 0 within the part."""
        length = len(self.source)
        positions = ids if self.part == "train" else ids + (length - self._validation)
        shuffled = self.by == "shuffle"
        return self.source.read(
            shuffled_ids(positions, length, self.seed) if shuffled else positions
        )

    def decode(self, samples: Any) -> Any:
        """As the source does."""
        return self.source.decode(samples)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "source":  # Not set yet while being copied or unpickled.
            raise AttributeError(name)
        return getattr(self.source, name)

    @property
    def _validation(self) -> int:
        return max(1, round(self.share * len(self.source)))

    @property
    def _train(self) -> int:
        return len(self.source) - self._validation
