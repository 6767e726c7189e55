"""Subwords: byte pair encoding, by Hugging Face's `tokenizers`, which is imported when it is needed."""

from __future__ import annotations

import functools
import json
import re
import string
from collections.abc import Iterator
from typing import Any

import numpy as np

from input_pipeline.batches import DataError, MissingLibrary
from input_pipeline.sentence_pieces import SentencePieces
from input_pipeline.tokenization import (
    LINE_END,
    Bytes,
    Characters,
    Tokenizer,
    Words,
    cut,
    starts,
)

END_OF_TEXT = "<|endoftext|>"
LONGEST_WORD = re.compile(r"\S{1000}")
"""Merging a word takes time by the square of its length."""
NAMED = 20
"""Characters that a message names."""


class Subwords:
    """Tokens of a tokenizer.json.

    Args:
      state: contents of the file.

    Raises:
      MissingLibrary: if `tokenizers` is not installed.
      ValueError: if it cannot make a tokenizer of the state.
    """

    def __init__(self, state: str) -> None:
        try:
            self._tokenizer = _library().Tokenizer.from_str(state)
        except Exception as error:  # It has no class of its own.
            raise error if isinstance(error, MissingLibrary) else ValueError(str(error)) from None
        # Else long texts would be cut off, and short ones filled up.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._state = json.loads(self._tokenizer.to_str())
        if not self._tokenizer.get_vocab():
            raise ValueError("it has no tokens")

    @classmethod
    def of(cls, text: str, size: int) -> Subwords:
        """Byte pair encoding (Sennrich et al. 2016) of bytes (Radford et al. 2019), learnt from a text, the same each time.

        The text is divided into lines, and those as GPT-2's are, before pairs are counted; what has no white space for 1,000
        characters, there too. There is no token for what is unknown, since each byte is one.

        Args:
          text: to learn from.
          size: tokens at most; 256 are bytes.

        Raises:
          MissingLibrary: if `tokenizers` is not installed.
          ValueError: if there is no room for bytes.
        """
        if size < 256:
            raise ValueError(f"vocabulary is {size}: it must be at least 256, the number of bytes")
        library = _library()
        tokenizer = library.Tokenizer(library.models.BPE())
        before = library.pre_tokenizers
        lines = before.Split("\n", "merged_with_previous")
        words = before.ByteLevel(add_prefix_space=False)
        tokenizer.pre_tokenizer = before.Sequence([lines, words])
        tokenizer.decoder = library.decoders.ByteLevel()
        alphabet = sorted(before.ByteLevel.alphabet())
        trainer = library.trainers.BpeTrainer(
            vocab_size=size, initial_alphabet=alphabet, show_progress=False
        )
        divided = LONGEST_WORD.sub(r"\g<0>\n", text)
        tokenizer.train_from_iterator(cut(divided, behind=LINE_END), trainer)
        return cls(tokenizer.to_str())

    @classmethod
    def of_merges(cls, vocabulary: str, merges: str) -> Subwords:
        """GPT-2's tokenizer from its two files, with a token of its own for "<|endoftext|>" where the text has that.

        Args:
          vocabulary: contents of vocab.json, a JSON object of tokens and their numbers.
          merges: contents of merges.txt, a pair a line.

        Raises:
          MissingLibrary: if `tokenizers` is not installed.
          ValueError: if they make no tokenizer.
        """
        library = _library()
        tokens = json.loads(vocabulary)
        lines = [line for line in merges.split("\n") if line and not line.startswith("#version")]
        pairs = [tuple(line.split(" ")) for line in lines]
        try:
            tokenizer = library.Tokenizer(library.models.BPE(tokens, pairs))
        except Exception as error:  # It has no class of its own.
            raise ValueError(str(error)) from None
        tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = library.decoders.ByteLevel()
        if END_OF_TEXT in tokens:
            tokenizer.add_special_tokens([END_OF_TEXT])
        return cls(tokenizer.to_str())

    @property
    def size(self) -> int:
        return max(self._tokenizer.get_vocab().values()) + 1

    @property
    def characters(self) -> np.ndarray | None:
        """Of byte pair encoding and unigram models of bytes, as far as it is certain that they keep all of a text."""
        tokens, added = self._tokenizer.get_vocab(), self._state["added_tokens"]
        byte_of = {symbol: byte for byte, symbol in enumerate(_symbols())}
        symbols = {
            symbol for token in tokens.keys() - {x["content"] for x in added} for symbol in token
        }
        if not self._keeps_all or symbols != byte_of.keys() or not byte_of.keys() <= tokens.keys():
            return None
        counts = np.zeros(self.size, np.int32)
        for text, token in tokens.items():
            counts[token] = starts(np.array([byte_of.get(symbol, 0) for symbol in text])).sum()
        for token in added:
            counts[token["id"]] = len(token["content"])
        return counts

    def pieces(self, text: str) -> Iterator[str]:
        """Lines, if the tokenizer itself divides the text into these first; else the text."""
        return cut(text, behind=LINE_END) if self._by_line else iter([text] if text else [])

    def encode(self, text: str) -> np.ndarray:
        """Tokens of a text, int32 `[n]`, without those that mark its beginning or end.

        Raises:
          DataError: if there is none for a part of it.
        """
        if missing := self._left_out(text):
            raise DataError(
                f"the tokenizer has no token for {missing[:NAMED]!r}{'…' * (len(missing) > NAMED)}, and would leave out what "
                "it does not know: name one with an unknown token, or of bytes"
            )
        lines = re.split(r"(?<=\n)", text) if self._by_line else [text]
        try:
            encoded = self._tokenizer.encode_batch_fast(lines, add_special_tokens=False)
        except Exception as error:  # It has no class of its own.
            raise DataError(
                f"the tokenizer cannot encode the text ({error}): name one whose vocabulary has its unknown token"
            ) from None
        return np.array([token for line in encoded for token in line.ids], np.int32)

    def _left_out(self, text: str) -> str:
        """Characters that a model would pass over without a word: of byte pair encoding without bytes or an unknown token."""
        model = self._state["model"]
        known = model.get("unk_token") or model.get("byte_fallback")
        if model["type"] != "BPE" or known or "ByteLevel" in self._kinds:
            return ""
        # At the beginning, within and at the end of a word. White space may be what divides words.
        characters = sorted(set(text) - set(string.whitespace))
        found = self._tokenizer.encode_batch_fast(
            [3 * character for character in characters], add_special_tokens=False
        )
        return "".join(c for c, of in zip(characters, found, strict=True) if not of.ids)

    def decode(self, tokens: np.ndarray) -> str:
        return self._tokenizer.decode(np.asarray(tokens).tolist(), skip_special_tokens=False)

    def to_json(self) -> str:
        return self._tokenizer.to_str()

    @functools.cached_property
    def _by_line(self) -> bool:
        first = self._steps[0] if self._steps else {}
        return first.get("type") == "Split" and (first["pattern"], first["behavior"]) == (
            {"String": "\n"},
            "MergedWithPrevious",
        )

    @property
    def _keeps_all(self) -> bool:
        """Whether a text's bytes are divided, none changed, added or left out."""
        model, added = self._state["model"], self._state["added_tokens"]
        affixes = (model.get("continuing_subword_prefix"), model.get("end_of_word_suffix"))
        return (
            model["type"] in ("BPE", "Unigram")
            and not any(affixes)
            and not self._state["normalizer"]
            and self._kinds[-1:] == ["ByteLevel"]
            and set(self._kinds) <= {"ByteLevel", "Digits", "Split"}
            and not any(step.get("add_prefix_space") for step in self._steps)
            and not any(step.get("behavior") == "Removed" for step in self._steps)
            and not any(token["lstrip"] or token["rstrip"] for token in added)
        )

    @functools.cached_property
    def _steps(self) -> list[dict[str, Any]]:
        """What is done to a text before pairs are merged."""
        step = self._state.get("pre_tokenizer") or {}
        if step.get("type") == "Sequence":
            return step["pretokenizers"]
        return [step] if step else []

    @property
    def _kinds(self) -> list[str]:
        return [step["type"] for step in self._steps]


def _library() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise MissingLibrary(
            "subwords need the library tokenizers, which is not installed: pip install tokenizers"
        ) from None
    return tokenizers


def _symbols() -> list[str]:
    """The character that stands for each byte in a tokenizer.json: itself if it shows, else one from 256 on."""
    shows = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in shows]
    return [chr(byte if byte in shows else 256 + others.index(byte)) for byte in range(256)]


def read_tokenizer(text: str) -> Tokenizer:
    """The tokenizer that `to_json` wrote, or one in the form of Hugging Face's tokenizer.json.

    Raises:
      ValueError: if the text is neither.
      MissingLibrary: if the library for it is not installed.
    """
    state: Any = json.loads(text)
    if not isinstance(state, dict):
        raise ValueError("it is no tokenizer")
    kind = state.get("tokens")
    if kind == "characters":
        return Characters(state["vocabulary"])
    if kind == "bytes":
        return Bytes()
    if kind == "words":
        return Words(state["vocabulary"])
    if kind == "sentencepiece":
        return SentencePieces.of_json(state)
    return Subwords(text)
