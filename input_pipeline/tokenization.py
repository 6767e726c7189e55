"""Between text and tokens: characters, bytes and words. Subwords have a module of their own."""

from __future__ import annotations

import collections
import json
import re
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

from input_pipeline.batches import DataError

PIECE = 1 << 20
"""Characters that are encoded at once."""
LINE_END, WHITE_SPACE = re.compile("\n"), re.compile(r"\s")
END_OF_LINE, UNKNOWN = "<eos>", "<unk>"


class Tokenizer(Protocol):
    """Between text and tokens, the numbers from 0 to `size` - 1."""

    @property
    def size(self) -> int:
        """Of the vocabulary."""

    @property
    def characters(self) -> np.ndarray | None:
        """How many characters each token stands for, int32 `[size]`, so that those of a text's tokens add up to the text's; None
        if tokens do not say all of a text. A character of several tokens counts for the one with its first byte."""

    def pieces(self, text: str) -> Iterator[str]:
        """Parts of a text whose tokens, one after the other, are its own; of about a megabyte, if they can be."""

    def encode(self, text: str) -> np.ndarray:
        """Tokens of a text, integers `[n]`.

        Raises:
          DataError: if the text has something that is not in the vocabulary.
        """

    def decode(self, tokens: np.ndarray) -> str:
        """The text of tokens, integers `[n]`."""

    def to_json(self) -> str:
        """What `subwords.read_tokenizer` makes an equal one of."""


class Characters:
    """One token a character: its number in the sorted set of a text's characters.

    Args:
      vocabulary: the characters, of which each counts once.
    """

    def __init__(self, vocabulary: str) -> None:
        seen = np.zeros(0x110000, bool)
        for piece in self.pieces(vocabulary):
            seen[_code_points(piece)] = True
        self._code_points = np.flatnonzero(seen)
        if not self.size:
            raise ValueError("the vocabulary is empty: give at least one character")
        self._tokens = np.full(self._code_points[-1] + 2, -1, np.int32)
        self._tokens[self._code_points] = np.arange(self.size)

    @property
    def vocabulary(self) -> str:
        """The characters in the order of their tokens."""
        return "".join(map(chr, self._code_points))

    @property
    def size(self) -> int:
        return len(self._code_points)

    @property
    def characters(self) -> np.ndarray:
        return np.ones(self.size, np.int32)

    def pieces(self, text: str) -> Iterator[str]:
        return cut(text)

    def encode(self, text: str) -> np.ndarray:
        """Tokens of a text, int32 `[characters]`.

        Raises:
          DataError: if a character is not in the vocabulary.
        """
        points = _code_points(text)
        tokens = self._tokens[np.minimum(points, len(self._tokens) - 1)]
        if len(tokens) and tokens.min() < 0:
            position = int(np.argmin(tokens))
            raise DataError(
                f"the character {text[position]!r} at position {position} is not among the {self.size} of the "
                "vocabulary: leave it out, or train on a text that has it"
            )
        return tokens

    def decode(self, tokens: np.ndarray) -> str:
        return "".join(map(chr, self._code_points[np.asarray(tokens)]))

    def to_json(self) -> str:
        return json.dumps({"tokens": "characters", "vocabulary": self.vocabulary})


class Bytes:
    """One token a byte of the text in UTF-8: 256 whatever the language. What is no UTF-8 is decoded as U+FFFD."""

    size = 256

    @property
    def characters(self) -> np.ndarray:
        return starts(np.arange(256)).astype(np.int32)

    def pieces(self, text: str) -> Iterator[str]:
        return cut(text)

    def encode(self, text: str) -> np.ndarray:
        """Bytes of a text, uint8 `[n]`."""
        return np.frombuffer(text.encode(), np.uint8)

    def decode(self, tokens: np.ndarray) -> str:
        return np.asarray(tokens).astype(np.uint8).tobytes().decode(errors="replace")

    def to_json(self) -> str:
        return json.dumps({"tokens": "bytes"})


class Words:
    """One token a word, as white space divides them, and "<eos>" for the end of a line (as in Zaremba et al. 2014).

    All other words are one token, "<unk>". Decoding puts a space between words and a new line for "<eos>", so all but the
    amount of white space comes back.

    Args:
      vocabulary: the words in the order of their tokens, with "<eos>" and "<unk>".
    """

    characters = None

    def __init__(self, vocabulary: Iterable[str]) -> None:
        self.vocabulary = tuple(vocabulary)
        self._tokens = {word: token for token, word in enumerate(self.vocabulary)}
        missing = {END_OF_LINE, UNKNOWN} - self._tokens.keys()
        if missing or len(self._tokens) < len(self.vocabulary):
            raise ValueError(
                f"the vocabulary of {len(self.vocabulary)} words has {len(self._tokens)} different ones and "
                f"{f'no {min(missing)}' if missing else 'all it needs'}: give each once, {END_OF_LINE} and {UNKNOWN} too"
            )

    @classmethod
    def of(cls, text: str, size: int | None = None) -> Words:
        """The vocabulary of a text: "<eos>", "<unk>" and its most frequent words; of equally frequent ones the first by code point.

        Args:
          text: to count words in.
          size: tokens at most, with "<eos>" and "<unk>"; None for all words.

        Raises:
          ValueError: if there is no room for a word.
        """
        if size is not None and size < 3:
            raise ValueError(
                f"vocabulary is {size}: it must be at least 3, {END_OF_LINE}, {UNKNOWN} and a word"
            )
        counts: collections.Counter[str] = collections.Counter()
        for piece in cut(text, behind=WHITE_SPACE):
            counts.update(piece.split())
        for special in (END_OF_LINE, UNKNOWN):
            counts.pop(special, None)
        words = sorted(counts, key=lambda word: (-counts[word], word))
        return cls([END_OF_LINE, UNKNOWN, *words][:size])

    @property
    def size(self) -> int:
        return len(self.vocabulary)

    def pieces(self, text: str) -> Iterator[str]:
        return cut(text, behind=WHITE_SPACE)

    def encode(self, text: str) -> np.ndarray:
        """Tokens of a text, int32 `[n]`."""
        unknown = self._tokens[UNKNOWN]
        words = text.replace("\n", f" {END_OF_LINE} ").split()
        return np.array([self._tokens.get(word, unknown) for word in words], np.int32)

    def decode(self, tokens: np.ndarray) -> str:
        lines: list[list[str]] = [[]]
        for token in np.asarray(tokens):
            word = self.vocabulary[token]
            if word == END_OF_LINE:
                lines.append([])
            else:
                lines[-1].append(word)
        return "\n".join(" ".join(line) for line in lines)

    def to_json(self) -> str:
        return json.dumps({"tokens": "words", "vocabulary": self.vocabulary}, indent=0)


def cut(text: str, behind: re.Pattern[str] | None = None) -> Iterator[str]:
    """A text in parts of about a megabyte, cut behind what the pattern finds, or anywhere."""
    start = 0
    while start < len(text):
        end = start + PIECE
        if behind and end < len(text):
            found = behind.search(text, end - 1)
            end = found.end() if found else len(text)
        yield text[start:end]
        start = end


def starts(values: np.ndarray) -> np.ndarray:
    """Which bytes begin a character in UTF-8: those that do not go on with one, 0b10……."""
    return values & 0xC0 != 0x80


def smallest_dtype(size: int) -> type[np.generic]:
    """Of tokens, for a vocabulary of this size: uint8, uint16 or int32."""
    return np.uint8 if size <= 2**8 else np.uint16 if size <= 2**16 else np.int32


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
