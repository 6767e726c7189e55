"""Two ways to read a corpus: windows, each for itself, and streams, whose parts continue each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from input_pipeline.arrays import Arrays
from input_pipeline.batches import DataError, ElementSpec, Feature
from input_pipeline.corpus import Corpus


class Text:
    """Windows of one part of a corpus: "tokens", int32 `[window + 1]`, of which all but the first are targets."""

    def __init__(self, corpus: Corpus, part: str, window: int) -> None:
        if window < 1:
            raise ValueError(f"window is {window}: it must be at least 1")
        self.corpus, self.window = corpus, window
        tokens = corpus.part(part)
        if len(tokens) < window + 1:
            raise DataError(
                f'part "{part}" of the corpus has {len(tokens):,} tokens, but one window of {window} needs '
                f"{window + 1:,}: give a longer text or a smaller window"
            )
        self._arrays = Arrays({"tokens": tokens})
        self.element_spec: ElementSpec = {
            "tokens": Feature((window + 1,), "int32", corpus.tokenizer.size)
        }

    def encode(self, text: str) -> np.ndarray:
        """Tokens of a text, integers `[n]`.

        Raises:
          DataError: if the text has something that is not in the vocabulary.
        """
        return self.corpus.tokenizer.encode(text)

    def decode(self, samples: Any) -> list[str]:
        """Texts of tokens, integers `[n, length]`."""
        return [self.corpus.tokenizer.decode(row) for row in np.asarray(samples)]

    def _windows(self, starts: tf.Tensor) -> tf.Tensor:
        """Tokens int32 `[n, window + 1]` from these places on, `[n]`; after its end the last one of the text."""
        places = starts[:, tf.newaxis] + tf.range(self.window + 1, dtype=tf.int64)
        last = len(self._arrays) - 1
        return tf.cast(self._arrays.read(tf.minimum(places, last))["tokens"], tf.int32)


class TextWindows(Text):
    """Windows of a text, one every `stride` tokens, in any order; what is left at the end is not read.

    Feature: "tokens", int32 `[window + 1]`: `window` inputs, and as targets the same moved on by one.

    Args:
      corpus: the text.
      part: of it.
      window: tokens to predict in one example.
      stride: from the start of a window to the next. With `window`, the default, each token but the first is a target
        once.

    Raises:
      DataError: if the part is not there, or shorter than one window.
    """

    def __init__(
        self, corpus: Corpus, part: str = "train", window: int = 64, stride: int | None = None
    ) -> None:
        super().__init__(corpus, part, window)
        self.stride = window if stride is None else stride
        if self.stride < 1:
            raise ValueError(f"stride is {stride}: it must be at least 1")

    def __len__(self) -> int:
        return (len(self._arrays) - self.window - 1) // self.stride + 1

    def read(self, ids: tf.Tensor) -> dict[str, tf.Tensor]:
        """The windows of `ids` (int64 `[n]`)."""
        return {"tokens": self._windows(ids * self.stride)}


class TextStreams(Text):
    """A text cut into streams of equal length, read side by side a window at a time (Zaremba et al. 2014).

    Every token but the first is a target once in a pass. A model may carry its state from a window to the next of its
    stream: see `batches.Streamed`.

    Features: "tokens", int32 `[window + 1]`; "targets", int32, how many of those after the first are the stream's own, fewer
    than `window` at its end; "begins", bool, whether the window is the first of its stream.

    Args:
      corpus: the text.
      part: of it.
      window: tokens to predict in one example.
      streams: how many; of a training, the global batch. For the likelihood of a text as one, 1.

    Raises:
      DataError: if the part is not there, or shorter than a window of each stream.
    """

    def __init__(
        self, corpus: Corpus, part: str = "train", window: int = 64, streams: int = 64
    ) -> None:
        super().__init__(corpus, part, window)
        if streams < 1:
            raise ValueError(f"streams is {streams}: it must be at least 1")
        self.streams = streams
        self._targets = len(self._arrays) - 1
        if self._targets < streams * window:
            raise DataError(
                f'part "{part}" of the corpus has {self._targets + 1:,} tokens, but {streams} streams of at least one window '
                f"of {window} need {streams * window + 1:,}: give a longer text, or fewer streams or a smaller window"
            )
        self.element_spec = {
            **self.element_spec,
            "targets": Feature((), "int32"),
            "begins": Feature((), "bool"),
        }

    def __len__(self) -> int:
        longest = -(-self._targets // self.streams)
        return -(-longest // self.window) * self.streams

    def read(self, ids: tf.Tensor) -> dict[str, tf.Tensor]:
        """The windows of `ids` (int64 `[n]`)."""
        stream, window = ids % self.streams, ids // self.streams
        start = stream * self._targets // self.streams + window * self.window
        end = (stream + 1) * self._targets // self.streams
        return {
            "tokens": self._windows(start),
            "targets": tf.cast(tf.clip_by_value(end - start, 0, self.window), tf.int32),
            "begins": window == 0,
        }
