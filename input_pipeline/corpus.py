"""Texts as tokens, in parts: what language models read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from input_pipeline.batches import DataError


class Tokenizer(Protocol):
    """Between text and tokens, the numbers from 0 to `size` - 1."""

    @property
    def size(self) -> int:
        """Of the vocabulary."""

    def encode(self, text: str) -> np.ndarray:
        """Tokens of a text, integers `[n]`.

        Raises:
          DataError: if the text has something that is not in the vocabulary.
        """

    def decode(self, tokens: np.ndarray) -> str:
        """The text of tokens, integers `[n]`."""


class Characters:
    """One token a character: its number in the sorted set of a text's characters.

    Args:
      vocabulary: the characters, of which each counts once.
    """

    def __init__(self, vocabulary: str) -> None:
        self._code_points = np.unique(_code_points(vocabulary))

    @property
    def vocabulary(self) -> str:
        """The characters in the order of their tokens."""
        return "".join(map(chr, self._code_points))

    @property
    def size(self) -> int:
        return len(self._code_points)

    def encode(self, text: str) -> np.ndarray:
        """Tokens of a text, int32 `[characters]`.

        Raises:
          DataError: if a character is not in the vocabulary.
        """
        points = _code_points(text)
        tokens = np.searchsorted(self._code_points, points)
        known = self._code_points[np.minimum(tokens, self.size - 1)] == points
        if not known.all():
            position = int(np.argmin(known))
            raise DataError(
                f"the character {text[position]!r} at position {position} is not among the {self.size} of the "
                "vocabulary: leave it out, or train on a text that has it"
            )
        return tokens.astype(np.int32)

    def decode(self, tokens: np.ndarray) -> str:
        return "".join(map(chr, self._code_points[np.asarray(tokens)]))


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A text as tokens.

    Attributes:
      parts: tokens by the name of the part, integers `[n]` each: "train", and what is held out.
      tokenizer: that made them.
    """

    parts: Mapping[str, np.ndarray]
    tokenizer: Tokenizer

    def part(self, name: str) -> np.ndarray:
        """The tokens of a part.

        Raises:
          DataError: if there is none of that name.
        """
        if name not in self.parts:
            raise DataError(
                f'the corpus has no part "{name}": choose one of {", ".join(self.parts)}'
            )
        return self.parts[name]


def in_parts(tokens: np.ndarray, validation: float, test: float = 0.0) -> dict[str, np.ndarray]:
    """Tokens in parts that follow each other: "train", then "validation" and "test", which have these shares.

    Raises:
      ValueError: if the shares leave nothing to train on.
    """
    if min(validation, test) < 0 or validation + test >= 1:
        raise ValueError(
            f"the shares held out are validation {validation} and test {test}: each must be at least 0, and their sum "
            "below 1"
        )
    ends = [round(len(tokens) * share) for share in (1 - validation - test, 1 - test)]
    parts = dict(zip(("train", "validation", "test"), np.split(tokens, ends), strict=True))
    return {name: part for name, part in parts.items() if len(part)}


def pydoc_topics(validation: float = 0.1, test: float = 0.0) -> Corpus:
    """The characters of the text behind Python's `help()`: 465 kB of English about the language, with code.

    It comes with every CPython (`pydoc_data.topics`) and differs a little from one version to the next. The shares held
    out are its end.
    """
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics))
    tokenizer = Characters(text)
    return Corpus(in_parts(tokenizer.encode(text), validation, test), tokenizer)


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
