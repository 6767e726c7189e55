"""Corpora of files: plain text and columns of tables, as characters, bytes, words or subwords."""

from __future__ import annotations

import itertools
import os
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from input_pipeline.batches import DataError
from input_pipeline.corpus import Corpus, cuts
from input_pipeline.reading import TABLES, read_column, read_utf8
from input_pipeline.retrying import read_bytes
from input_pipeline.sentence_pieces import SentencePieces
from input_pipeline.subwords import Subwords, read_tokenizer
from input_pipeline.tokenization import (
    Bytes,
    Characters,
    Tokenizer,
    Words,
    smallest_dtype,
)

TOKENS = ("characters", "bytes", "words", "subwords", "sentencepiece")
LEARNT = ("words", "subwords", "sentencepiece")
"""Tokens of which `vocabulary` says how many."""
DIVISIBLE = ("characters", "bytes")
"""Tokens of which texts are cut anywhere."""
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocabulary.spm")
"""Files of one tokenizer in a folder, the first that is there."""
ASSETS = "assets/tokenizer"
"""Where keras-hub keeps them in the folder of a preset."""
GPT2_OF_HUB = '"GPT2Tokenizer"'
"""What its tokenizer.json contains if the tokenizer is GPT-2's."""
NAMED = 20
"""Characters that an error names at most."""


def text_files(
    path: str,
    tokens: str = "characters",
    vocabulary: int | None = None,
    extra_characters: str = "",
    validation: float | str = 0.1,
    test: float | str = 0.0,
    column: str | None = None,
) -> Corpus:
    """The corpus of text files, in UTF-8, or of a column of tables.

    A vocabulary is that of the training part alone. What it lacks of the held-out parts is "<unk>" among words, cannot be among
    bytes and subwords, and is an error among characters, which names them.

    Args:
      path: of a file, or of a folder, whose files `*.txt` are read in the order of their names, a new line between two.
      tokens: "characters", "bytes", "words" (see `tokenization.Words`), "subwords" (see `subwords.Subwords`) or "sentencepiece" (see
        `sentence_pieces.SentencePieces`), or the path of a tokenizer.json, of a packed corpus or in the form of Hugging Face's, of
        a SentencePiece `.model`, or of a folder: see `load_tokenizer`.
      vocabulary: how many words, with "<eos>" and "<unk>", or subwords; of words all, if None.
      extra_characters: that have tokens even if the training part lacks them.
      validation: the share held out to validate by, or the path of a file or folder of its own.
      test: the same, for a last test. Shares are the end of the text, validation before test, and are cut anywhere if tokens are
        characters or bytes, and else at the end of a line, or at white space if there are no more lines.
      column: if given, the files are tables `*.csv`, `*.tsv` or `*.jsonl` (an object a line), of which this column is read, a new
        line between two rows.

    Raises:
      DataError: if a file cannot be read, is not UTF-8 or no table with the column, or has no text to train on.
      ValueError: if the shares leave nothing to train on, or there is no such kind of tokens.
    """
    texts = read_texts(path, tokens, validation, test, column)
    tokenizer = make_tokenizer(texts, tokens, vocabulary, extra_characters)
    return Corpus({name: encode(tokenizer, text) for name, text in texts.items()}, tokenizer)


def read_texts(
    path: str, tokens: str, validation: float | str, test: float | str, column: str | None
) -> dict[str, str]:
    """Texts by the name of their part, as `text_files` says."""
    whole = read_text(path, column)
    shares = [0.0 if isinstance(share, str) else share for share in (validation, test)]
    places = list(cuts(len(whole), *shares))
    if tokens not in DIVISIBLE:
        places = [_end_of_line(whole, place) for place in places]
    edges = [0, *places, len(whole)]
    names = ("train", "validation", "test")
    texts = {
        name: whole[start:end]
        for name, (start, end) in zip(names, itertools.pairwise(edges), strict=True)
    }
    for name, given in (("validation", validation), ("test", test)):
        if isinstance(given, str):
            texts[name] = read_text(given, column)
            if not texts[name]:
                raise DataError(f"{given} is empty: name a text to hold out as {name}")
    if not texts["train"]:
        raise DataError(
            f"{path} has {len(whole):,} characters, none of them to train on: give a longer text"
        )
    return {name: text for name, text in texts.items() if text}


def read_text(path: str, column: str | None = None) -> str:
    """The text of a file, or of the files of a folder, or of a column of such tables.

    Raises:
      DataError: if there is none, or it cannot be read.
    """
    if column is None:
        files = files_of(path)
        if files[0].suffix in TABLES and files[0].is_file():
            raise DataError(
                f"{path} is a table: name the column that is to be read (text_files.column, --column), or rename the file to .txt "
                "if all of it is"
            )
        return "\n".join(map(read_utf8, files))
    return "\n".join(read_column(file, column) for file in files_of(path, TABLES))


def files_of(path: str, suffixes: Sequence[str] = (".txt",)) -> list[pathlib.Path]:
    """The file, or those of a folder that have one of the suffixes, in the order of their names; hidden ones are left out.

    Raises:
      DataError: if a folder has none.
    """
    if not path:
        raise DataError("the path of the text is empty: name a file or a folder")
    folder = pathlib.Path(os.path.expanduser(path))
    if not folder.is_dir():
        return [folder]
    there = [file for file in folder.iterdir() if not file.name.startswith(".")]
    files = sorted(file for file in there if file.suffix in suffixes and not file.is_dir())
    if not files:
        named = " or ".join(f"*{suffix}" for suffix in suffixes)
        raise DataError(
            f"{path} has no files {named}: name a folder that has, or a file, and of tables the column"
        )
    return files


def make_tokenizer(
    texts: Mapping[str, str], tokens: str, vocabulary: int | None, extra_characters: str
) -> Tokenizer:
    """The tokenizer of texts in parts, learnt from the part "train", as `text_files` says."""
    if vocabulary is not None and tokens not in LEARNT:
        raise ValueError(
            f'vocabulary is {vocabulary}: it is for words and subwords, and tokens is "{tokens}"'
        )
    if extra_characters and tokens != "characters":
        raise ValueError(
            f'extra_characters is {extra_characters!r}: it is for characters, and tokens is "{tokens}"'
        )
    tokenizer = _make_tokenizer(texts["train"], tokens, vocabulary, extra_characters)
    if isinstance(tokenizer, Characters):
        _check_characters(
            tokenizer, texts, "add them by extra_characters, or " if tokens == "characters" else ""
        )
    return tokenizer


def _make_tokenizer(
    text: str, tokens: str, vocabulary: int | None, extra_characters: str
) -> Tokenizer:
    if tokens == "characters":
        return Characters(text + extra_characters)
    if tokens == "bytes":
        return Bytes()
    if tokens == "words":
        return Words.of(text, vocabulary)
    if tokens in ("subwords", "sentencepiece"):
        if vocabulary is None:
            raise ValueError("vocabulary is None: say how many subwords, such as 8192")
        return (Subwords if tokens == "subwords" else SentencePieces).of(text, vocabulary)
    if tokens.endswith((".json", ".model", ".spm")) or os.path.isdir(os.path.expanduser(tokens)):
        return load_tokenizer(tokens)
    raise ValueError(
        f'tokens is "{tokens}": no folder is called so, choose one of {", ".join(TOKENS)}, or the path of a tokenizer.json '
        "or a .model, or of a folder that has one"
    )


def load_tokenizer(path: str) -> Tokenizer:
    """The tokenizer of a tokenizer.json, of a SentencePiece .model, or of a model's folder: of its tokenizer.json, else
    tokenizer.model, else GPT-2's vocab.json and merges.txt. In the folder of a keras-hub preset, where a tokenizer.json is of
    another form, that of SentencePiece or of GPT-2 in assets/tokenizer.

    Raises:
      DataError: if it cannot be read, is none, or the library for it is not installed.
    """
    file = pathlib.Path(os.path.expanduser(path))
    if (file / ASSETS).is_dir():
        file = _assets(file)
    elif _is_preset(file):
        raise DataError(
            f"{path} is a preset without {ASSETS}: save the whole model by save_to_preset"
        )
    if file.is_dir():
        names = [n for n in TOKENIZERS if (file / n).exists()]
        if not names:
            return _load_merges(file)
        file /= names[0]
    if file.suffix in (".model", ".spm"):
        return _load_sentence_pieces(file)
    text = read_utf8(file)
    try:
        return read_tokenizer(text)
    except DataError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"{file} is no tokenizer.json ({error}): name another") from None


def _is_preset(folder: pathlib.Path) -> bool:
    """Whether keras-hub's save_to_preset left it."""
    metadata = folder / "metadata.json"
    return metadata.is_file() and '"keras_version"' in read_utf8(metadata)


def _assets(preset: pathlib.Path) -> pathlib.Path:
    """The folder in a keras-hub preset with its tokenizer's files."""
    files = preset / ASSETS
    if (files / "merges.txt").exists() and GPT2_OF_HUB not in read_utf8(preset / "tokenizer.json"):
        raise DataError(
            f"the tokenizer of {preset} is not GPT-2's, and its merges.txt does not say how it divides texts: name the "
            "tokenizer.json of the same model from Hugging Face"
        )
    return files


def _load_sentence_pieces(file: pathlib.Path) -> SentencePieces:
    try:
        return SentencePieces(read_bytes(file))
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}): check the path") from None
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{file} is {error}: name another") from None


def _load_merges(folder: pathlib.Path) -> Subwords:
    name = "vocabulary.json" if (folder / "vocabulary.json").exists() else "vocab.json"
    files = [folder / name, folder / "merges.txt"]
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise DataError(
            f"{folder} has no tokenizer.json, and no {' and no '.join(missing)} to make one of: save the tokenizer there, or "
            "name another"
        )
    vocabulary, merges = map(read_utf8, files)
    try:
        return Subwords.of_merges(vocabulary, merges)
    except DataError:
        raise
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(
            f"{name} and merges.txt of {folder} make no tokenizer ({error}): save the tokenizer again"
        ) from None


def encode(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """Tokens of a text, `[n]`, in the smallest dtype, a piece at a time.

    Raises:
      DataError: if the tokenizer has no token for something.
    """
    dtype = smallest_dtype(tokenizer.size)
    return np.concatenate(
        [tokenizer.encode(piece).astype(dtype) for piece in tokenizer.pieces(text)]
    )


def _check_characters(tokenizer: Characters, texts: Mapping[str, str], remedy: str) -> None:
    known = set(tokenizer.vocabulary)
    for name, text in texts.items():
        missing = "".join(sorted(set(text) - known))
        if missing:
            raise DataError(
                f"the vocabulary lacks {missing[:NAMED]!r}{'…' * (len(missing) > NAMED)}, "
                f'{len(missing)} of the characters of part "{name}": {remedy}choose tokens = "bytes"'
            )


def _end_of_line(text: str, place: int) -> int:
    """The first end of a line from a place on, but not that of the text; without one the first white space, or the place."""
    if place in (0, len(text)):
        return place
    for pattern in ("\n", r"\s"):
        found = re.compile(pattern).search(text, place - 1, len(text) - 1)
        if found:
            return found.end()
    return place
