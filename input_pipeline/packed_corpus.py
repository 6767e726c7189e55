"""Corpora packed: a folder of token ids, which are mapped into memory and not loaded.

train.npy, validation.npy, test.npy   uint8, uint16 or int32 [n], those parts that there are
tokenizer.json                        see `subwords.read_tokenizer`
index.json                            format and version, vocabulary's size, and the size and SHA-256 of each file
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from input_pipeline.batches import DataError
from input_pipeline.corpus import Corpus
from input_pipeline.manifest import INDEX, TEXT, mapped, opened
from input_pipeline.text_files import load_tokenizer
from input_pipeline.tokenization import Tokenizer, smallest_dtype
from input_pipeline.writing import Identity, write_folder

TOKENIZER = "tokenizer.json"


def packed_corpus(folder: str) -> Corpus:
    """The corpus of a packed folder. It opens in the same short time and takes the same little memory whatever its size.

    Args:
      folder: that `scripts/convert text` has written.

    Raises:
      DataError: if it is no such folder, or a file of it is missing, of another length than it was written with, or, up to
        256 MiB, of other contents (`scripts/convert verify` compares those of all files); or if the library that made the
        subwords is not installed.
    """
    path = pathlib.Path(os.path.expanduser(folder))
    index = opened(str(path), TEXT)
    tokenizer = load_tokenizer(str(path / TOKENIZER))
    if tokenizer.size != index["vocabulary"]:
        raise DataError(
            f"{path / TOKENIZER} has {tokenizer.size} tokens, and {index['vocabulary']} by {INDEX}: convert it again"
        )
    dtype = smallest_dtype(tokenizer.size)
    names = ("train", "validation", "test")
    parts = {
        name: mapped(path / f"{name}.npy", dtype, (None,))
        for name in names
        if f"{name}.npy" in index["files"]
    }
    digests = {name: index["files"][f"{name}.npy"]["sha256"] for name in parts}
    return Corpus(parts, tokenizer, digests)


def pack_corpus(
    texts: Mapping[str, str],
    tokenizer: Tokenizer,
    destination: str,
    identity: Identity = lambda done, skipped: "",
    report: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Packs texts into a new folder, for `packed_corpus`, as `writing.write_folder` does.

    Args:
      texts: by the name of their part, "train", "validation" or "test".
      tokenizer: that encodes them.
      destination: must not be there.
      identity: of what is converted and how.
      report: told the characters done, first those of an earlier start, and in all.

    Raises:
      DataError: if the destination is there, another conversion writes it, or the tokenizer has no token for something.
      OSError: if it cannot be written.
    """
    dtype = smallest_dtype(tokenizer.size)

    def chunks(start: int) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        done = 0
        for name, text in texts.items():
            for piece in tokenizer.pieces(text):
                done += len(piece)
                if done > start:
                    yield done, {f"{name}.npy": tokenizer.encode(piece).astype(dtype)}

    write_folder(
        destination,
        TEXT,
        {"vocabulary": tokenizer.size},
        identity=identity,
        rows={f"{name}.npy": (dtype, ()) for name in texts},
        total=sum(map(len, texts.values())),
        chunks=chunks,
        texts={TOKENIZER: tokenizer.to_json()},
        report=report,
    )
