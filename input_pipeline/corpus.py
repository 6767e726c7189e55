"""Texts as tokens, in parts: what language models read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from input_pipeline.arrays import digest_of
from input_pipeline.batches import DataError
from input_pipeline.tokenization import Characters, Tokenizer


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A text as tokens.

    Attributes:
      parts: tokens by the name of the part, integers `[n]` each, in memory or mapped into it: "train", and what is held out.
      tokenizer: that made them.
      digests: of parts by their name, where they are known without reading them.
    """

    parts: Mapping[str, np.ndarray]
    tokenizer: Tokenizer
    digests: Mapping[str, str] = dataclasses.field(default_factory=dict)

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

    def digest(self, name: str) -> str:
        """Of the tokens of a part, in hexadecimal."""
        return self.digests.get(name) or digest_of(self.part(name))


def in_parts(tokens: np.ndarray, validation: float, test: float = 0.0) -> dict[str, np.ndarray]:
    """Tokens in parts that follow each other: "train", then "validation" and "test", which have these shares.

    Raises:
      ValueError: if the shares leave nothing to train on.
    """
    divided = np.split(tokens, cuts(len(tokens), validation, test))
    parts = dict(zip(("train", "validation", "test"), divided, strict=True))
    return {name: part for name, part in parts.items() if len(part)}


def cuts(length: int, validation: float, test: float) -> tuple[int, int]:
    """Where the validation part begins and where the test part does, if the end of `length` items is held out in these shares.

    Raises:
      ValueError: if the shares leave nothing to train on.
    """
    if not (min(validation, test) >= 0 and validation + test < 1):  # Nor if one is no number.
        raise ValueError(
            f"the shares held out are validation {validation} and test {test}: each must be at least 0, and their sum "
            "below 1"
        )
    return round(length * (1 - validation - test)), round(length * (1 - test))


def pydoc_topics(validation: float = 0.1, test: float = 0.0) -> Corpus:
    """The characters of the text behind Python's `help()`: 465 kB of English about the language, with code.

    It comes with every CPython (`pydoc_data.topics`) and differs a little from one version to the next. The shares held
    out are its end.
    """
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics))
    tokenizer = Characters(text)
    return Corpus(in_parts(tokenizer.encode(text), validation, test), tokenizer)
