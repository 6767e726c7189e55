"""Text as windows of characters."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from input_pipeline.arrays import Arrays
from input_pipeline.batches import DataError, ElementSpec, Feature


class TextWindows:
    """Windows of a text, one every `stride` characters; what is left at the end is not read.

    Feature: "tokens", int32 `[window + 1]`: `window` inputs, and as targets the same moved on by one. A token is the
    number of a character in the vocabulary, the sorted set of the text's characters.

    Args:
      text: the whole of it.
      window: characters to predict in one example.
      stride: from the start of a window to the next. With `window`, the default, each character but the first is a
        target once.

    Raises:
      DataError: if the text is shorter than one window.
    """

    def __init__(self, text: str, window: int = 64, stride: int | None = None) -> None:
        stride = window if stride is None else stride
        if window < 1 or stride < 1:
            raise ValueError(f"window is {window} and stride {stride}: each must be at least 1")
        if len(text) < window + 1:
            raise DataError(
                f"the text has {len(text)} characters, but one window of {window} needs {window + 1}: "
                "give a longer text or a smaller window"
            )
        self.window, self.stride = window, stride
        self._code_points = np.unique(_code_points(text))
        self.vocabulary = "".join(map(chr, self._code_points))
        self.element_spec: ElementSpec = {
            "tokens": Feature((window + 1,), "int32", len(self.vocabulary))
        }
        self._arrays = Arrays({"tokens": self.encode(text)})

    @property
    def overlap(self) -> int:
        """How many of the examples that follow example i share characters with it."""
        return self.window // self.stride

    def __len__(self) -> int:
        return (len(self._arrays) - self.window - 1) // self.stride + 1

    def read(self, ids: tf.Tensor) -> dict[str, tf.Tensor]:
        """The windows of `ids` (int64 `[n]`)."""
        starts = ids[:, tf.newaxis] * self.stride
        return self._arrays.read(starts + tf.range(self.window + 1, dtype=tf.int64))

    def encode(self, text: str) -> np.ndarray:
        """Tokens of a text, int32 `[characters]`.

        Raises:
          DataError: if a character is not in the vocabulary.
        """
        points = _code_points(text)
        tokens = np.searchsorted(self._code_points, points)
        known = self._code_points[np.minimum(tokens, len(self._code_points) - 1)] == points
        if not known.all():
            position = int(np.argmin(known))
            raise DataError(
                f"the character {text[position]!r} at position {position} is not among the {len(self.vocabulary)} "
                "of the vocabulary: leave it out, or train on a text that has it"
            )
        return tokens.astype(np.int32)

    def decode(self, samples: Any) -> list[str]:
        """Texts of tokens, integers `[n, length]`."""
        return ["".join(self.vocabulary[token] for token in row) for row in np.asarray(samples)]


def pydoc_topics(window: int = 64, stride: int | None = None) -> TextWindows:
    """Windows of the text behind Python's `help()`: 465 kB of English about the language, with code.

    It comes with every CPython (`pydoc_data.topics`) and differs a little from one version to the next.
    """
    from pydoc_data.topics import topics

    return TextWindows("\n".join(topics[name] for name in sorted(topics)), window, stride)


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
