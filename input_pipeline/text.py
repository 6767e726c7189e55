"""Two ways to read a corpus: windows, each for itself, and streams, whose parts continue each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from input_pipeline.arrays import Arrays
from input_pipeline.batches import DataError, ElementSpec, Feature
from input_pipeline.corpus import Corpus


class Text:
    """Windows of one part of a corpus.

    Features: "tokens", int32 `[window + 1]`, of which all but the first are targets; and unless tokens do not say all of a text,
    as words do not, "characters", int32, how many the window's targets stand for: over windows in which each token is a target
    once they add up to the characters of the text behind its first token, whatever the tokens, so that nats divided by them are
    nats a character.
    """

    def __init__(self, corpus: Corpus, part: str, window: int) -> None:
        if window < 1:
            raise ValueError(f"window is {window}: it must be at least 1")
        self.corpus, self.part, self.window = corpus, part, window
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
        self.characters = corpus.tokenizer.characters
        """How many characters each token of the vocabulary stands for, int32 `[size]`, or None: see `tokenization.Tokenizer`."""
        self._characters = None
        if self.characters is not None:
            self._characters = Arrays({"characters": self.characters})
            self.element_spec = {**self.element_spec, "characters": Feature((), "int32")}

    @property
    def tokens(self) -> np.ndarray:
        """All tokens of the part, integers `[n]`."""
        return self._arrays.arrays["tokens"]

    @property
    def vocabulary(self) -> str:
        """What makes an equal tokenizer."""
        return self.corpus.tokenizer.to_json()

    @property
    def content(self) -> str:
        """A digest of the part's tokens."""
        return self.corpus.digest(self.part)

    def encode(self, text: str) -> np.ndarray:
        """Tokens of a text, integers `[n]`.

        Raises:
          DataError: if the text has something that is not in the vocabulary.
        """
        return self.corpus.tokenizer.encode(text)

    def decode(self, samples: Any) -> list[str]:
        """Texts of tokens, integers `[n, length]`."""
        return [self.corpus.tokenizer.decode(row) for row in np.asarray(samples)]

    def _windows(self, starts: tf.Tensor, targets: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
        """The windows from these places on, int64 `[n]`, of which the first `targets`, int32 `[n]`, are targets, or all.

        After its end the last token of the text follows.
        """
        places = starts[:, tf.newaxis] + tf.range(self.window + 1, dtype=tf.int64)
        last = len(self._arrays) - 1
        tokens = tf.cast(self._arrays.read(tf.minimum(places, last))["tokens"], tf.int32)
        if self._characters is None:
            return {"tokens": tokens}
        characters = self._characters.read(tokens[:, 1:])["characters"]
        if targets is not None:
            characters *= tf.sequence_mask(targets, self.window, tf.int32)
        return {"tokens": tokens, "characters": tf.reduce_sum(characters, 1)}


class TextWindows(Text):
    """Windows of a text, one every `stride` tokens, in any order; what is left at the end is not read, unless `whole`.

    Features: "tokens", int32 `[window + 1]`: `window` inputs, and as targets the same moved on by one; "characters", see `Text`;
    if `whole`, "targets", int32, how many of those after the first are there, fewer than `window` at the end of the text.

    Args:
      corpus: the text.
      part: of it.
      window: tokens to predict in one example.
      stride: from the start of a window to the next. With `window`, the default, each token but the first is a target
        once.
      whole: whether what is left at the end is a window too, of which only the beginning is there: to evaluate.

    Raises:
      DataError: if the part is not there, or shorter than one window.
    """

    def __init__(
        self,
        corpus: Corpus,
        part: str = "train",
        window: int = 64,
        stride: int | None = None,
        whole: bool = False,
    ) -> None:
        super().__init__(corpus, part, window)
        self.stride = window if stride is None else stride
        if self.stride < 1:
            raise ValueError(f"stride is {stride}: it must be at least 1")
        if whole and self.stride != window:
            raise ValueError(
                f"stride is {stride} and window {window}: leave the stride out, or whole, with which each token is a target once"
            )
        self.whole = whole
        if whole:
            self.element_spec = {**self.element_spec, "targets": Feature((), "int32")}

    def __len__(self) -> int:
        left = self.stride - 1 if self.whole else 0
        return (len(self._arrays) - self.window - 1 + left) // self.stride + 1

    def read(self, ids: tf.Tensor) -> dict[str, tf.Tensor]:
        """The windows of `ids` (int64 `[n]`)."""
        starts = ids * self.stride
        if not self.whole:
            return self._windows(starts)
        targets = tf.cast(tf.minimum(len(self._arrays) - 1 - starts, self.window), tf.int32)
        return {**self._windows(starts, targets), "targets": targets}


class TextStreams(Text):
    """A text cut into streams of equal length, read side by side a window at a time (Zaremba et al. 2014).

    Every token but the first is a target once in a pass. A model may carry its state from a window to the next of its
    stream: see `batches.Streamed`.

    Features: "tokens", int32 `[window + 1]`; "targets", int32, how many of those after the first are the stream's own, fewer
    than `window` at its end; "begins", bool, whether the window is the first of its stream; "characters", of these targets, see
    `Text`.

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
        targets = tf.cast(tf.clip_by_value(end - start, 0, self.window), tf.int32)
        return {**self._windows(start, targets), "targets": targets, "begins": window == 0}
