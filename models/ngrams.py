"""An n-gram model, beside whose likelihood that of a language model says something."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np


@dataclasses.dataclass
class NGrams:
    """What counting reaches: see `ngram_baseline`. As a string it says of how much text, once that was not all.

    Attributes:
      order: n at most.
      most: tokens of the training that are counted, its last, which are next to what is held out; and held-out tokens that are
        predicted, the first. 10 million of each need 2 GB of memory.

    Raises:
      ValueError: if either is out of range.
    """

    order: int = 5
    most: int = 10_000_000
    _cut: str = dataclasses.field(default="", init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.order < 1:
            raise ValueError(f"NGrams.order is {self.order}: it must be at least 1")
        if self.most < 2:
            raise ValueError(f"NGrams.most is {self.most}: it must be at least 2")

    def __str__(self) -> str:
        return f"NGrams(order={self.order}){self._cut}"

    def __call__(self, source: Any, validation: Any) -> dict[str, float]:
        """The "loss" in nats a token of a held-out text, its "perplexity", and as of `LanguageModel.summary` "nats_per_character"
        and "bits_per_character".

        Args:
          source: of the training, with `tokens`, integers `[n]`, and a feature "tokens" whose cardinality is the vocabulary.
          validation: the held-out one, likewise, with `characters`, how many each token of the vocabulary stands for, or None.

        Raises:
          ValueError: if it is no text.
        """
        if not hasattr(source, "tokens") or not hasattr(validation, "tokens"):
            raise ValueError("NGrams counts tokens, which these data have not: leave it out")
        vocabulary = source.element_spec["tokens"].cardinality
        train, held_out = source.tokens[-self.most :], validation.tokens[: self.most]
        of = f" of the last {self.most:,} tokens" if len(train) < len(source.tokens) else ""
        on = f" on the first {self.most:,}" if len(held_out) < len(validation.tokens) else ""
        self._cut = of + on
        nats = ngram_baseline(train, held_out, vocabulary, self.order)
        metrics = {"loss": nats, "perplexity": float(np.exp(nats))}
        if validation.characters is not None:
            characters = validation.characters[held_out[1:]].mean(dtype=np.float64)
            metrics["nats_per_character"] = nats / float(characters)
            metrics["bits_per_character"] = metrics["nats_per_character"] / math.log(2)
        return metrics


def ngram_baseline(train: np.ndarray, held_out: np.ndarray, vocabulary: int, order: int) -> float:
    """-log p of a held-out text by an n-gram model with interpolated Witten-Bell smoothing, in nats a token.

    Of n tokens the last, w, has after the others, h, the probability

        p(w | h) = (c(hw) + T(h) p(w | h')) / (c(h) + T(h))

    with c how often, and T(h) how many different tokens, followed h in the training text, and h' without its first token; that
    of no context is 1 / vocabulary. After an h that was never followed, p(w | h) = p(w | h'). (Witten & Bell 1991, method C;
    interpolated as by Chen & Goodman 1999.) It has no parameter to choose but the order.

    It takes as many sorts of as many numbers as the training text has tokens as the order is high.

    Args:
      train: the training text, integers from 0 to `vocabulary` - 1, `[n]`.
      held_out: the held-out text, `[m]`. Its first token is only context.
      vocabulary: number of tokens.
      order: n at most.

    Returns:
      The mean over the tokens of the held-out text but its first.

    Raises:
      ValueError: if the order is below 1, there is no training text, or less than two held-out tokens, or one of them is not in the
        vocabulary.
    """
    if order < 1:
        raise ValueError(f"order is {order}: it must be at least 1")
    if len(train) < 1 or len(held_out) < 2:
        raise ValueError(
            f"there are {len(train)} tokens to count and {len(held_out)} to predict: there must be at least 1 and 2"
        )
    for text in (train, held_out):
        if text.min() < 0 or text.max() >= vocabulary:
            raise ValueError(
                f"tokens go from {text.min()} to {text.max()}: they must be from 0 to {vocabulary - 1}"
            )
    train, held_out = train.astype(np.int64), held_out.astype(np.int64)
    probability = np.full(len(held_out), 1 / vocabulary)
    # The number of the context before each token, among those of the training text; -1 if it has no such. That before
    # the first tokens, which have too little before them, is also -1.
    contexts, found = np.zeros(len(train), np.int64), np.zeros(len(held_out), np.int64)
    for _ in range(order):
        codes = np.where(contexts < 0, -1, contexts * vocabulary + train)
        known, numbers, counts = _numbered(codes)
        if not len(known):
            break
        sought = np.where(found < 0, -1, found * vocabulary + held_out)
        places = np.minimum(np.searchsorted(known, sought), len(known) - 1)
        there = known[places] == sought

        followed = np.bincount(known // vocabulary, counts)
        different = np.bincount(known // vocabulary)
        # Nothing follows a context that is only the end of the training text.
        counted = (found >= 0) & (found < len(followed))
        context = np.where(counted, found, 0)
        counted &= followed[context] > 0
        count = np.where(there, counts[places], 0)
        smoothed = count + different[context] * probability
        total = followed[context] + different[context]
        probability = np.divide(smoothed, total, out=probability, where=counted)

        contexts = np.concatenate([[-1], numbers[:-1]])
        found = np.concatenate([[-1], np.where(there, places, -1)[:-1]])
    return float(-np.log(probability[1:]).mean())


def _numbered(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The different codes in order, the number among them of each code, and how often each occurs; -1 is none and stays -1."""
    known, inverse, counts = np.unique(codes, return_inverse=True, return_counts=True)
    if known[0] < 0:
        return known[1:], inverse - 1, counts[1:]
    return known, inverse, counts
