"""Folders of NumPy arrays with an index.json, which says what they are, and size and SHA-256 of each file.

Arrays are mapped into memory and not loaded. `input_pipeline.writing` writes such folders; whatever knows NumPy's files can
read them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import mmap
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from input_pipeline.batches import DataError
from input_pipeline.retrying import read_bytes

INDEX = "index.json"
CHECKED_BYTES = 1 << 28
"""Files up to this size are compared with their checksum whenever they are opened: some tenths of a second."""
BLOCK_BYTES = 1 << 22


@dataclasses.dataclass(frozen=True)
class Format:
    """Of a folder.

    Attributes:
      name: in its index.
      version: in its index.
      fields: that its index has beside format, version and files.
      command: of scripts/convert, which makes it.
    """

    name: str
    version: int
    fields: frozenset[str]
    command: str


PICTURES = Format(
    "lockstep images", 1, frozenset({"count", "shape", "classes", "cardinality"}), "images"
)
TEXT = Format("lockstep text", 1, frozenset({"vocabulary"}), "text")


def opened(folder: str, kind: Format) -> dict[str, Any]:
    """What the index of a folder says, which has the files it names, of their sizes, small ones of their contents.

    Raises:
      DataError: naming the first thing that is not as it was written. `verify` compares the contents of all files.
    """
    index = read_index(folder, kind)
    check_sizes(folder, index)
    for name, file in index["files"].items():
        if file["bytes"] <= CHECKED_BYTES:
            _check_contents(pathlib.Path(folder, name), file)
    return index


def verify(folder: str, report: Callable[[int, int], None] = lambda done, total: None) -> int:
    """Compares all contents of a folder, of pictures or text, with their checksums.

    Args:
      folder: that `scripts/convert` has written.
      report: told bytes done and in all.

    Returns:
      The number of bytes.

    Raises:
      DataError: naming the first file that is not what was written.
    """
    index = read_index(folder, PICTURES, TEXT)
    check_sizes(folder, index)
    total = sum(file["bytes"] for file in index["files"].values())
    done = 0
    for name, file in index["files"].items():

        def advance(read: int, before: int = done) -> None:
            report(before + read, total)

        _check_contents(pathlib.Path(folder, name), file, advance)
        done += file["bytes"]
    return total


def read_index(folder: str, *kinds: Format) -> dict[str, Any]:
    """What index.json says.

    Raises:
      DataError: if there is none, or one of another kind.
    """
    path = pathlib.Path(folder, INDEX)
    try:
        index = json.loads(read_bytes(path))
    except FileNotFoundError:
        commands = " or ".join(kind.command for kind in kinds)
        raise DataError(
            f"{folder} is no packed folder, or an incomplete one (it has no {INDEX}): make it by "
            f"scripts/convert {commands} SRC {folder}"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}): convert it again") from None
    found = (index.get("format"), index.get("version")) if isinstance(index, dict) else None
    kind = next((kind for kind in kinds if (kind.name, kind.version) == found), None)
    if kind is None:
        formats = " or ".join(f"{kind.name!r}, version {kind.version}" for kind in kinds)
        raise DataError(f"{path} is not of the format {formats}: convert it again")
    missing = {*kind.fields, "files"} - index.keys()
    if missing:
        raise DataError(f"{path} lacks {', '.join(sorted(missing))}: convert it again")
    if not _are_files(index["files"]):
        raise DataError(f"{path} does not say of each file its bytes and SHA-256: convert it again")
    return index


def _are_files(found: Any) -> bool:
    """Whether an index names files, at least one, each with what is known of it."""
    files = list(found.values()) if isinstance(found, dict) else []
    return bool(files) and all(
        isinstance(file, dict)
        and isinstance(file.get("bytes"), int)
        and isinstance(file.get("sha256"), str)
        for file in files
    )


def check_sizes(folder: str, index: dict[str, Any]) -> None:
    """Checks that each file is there and has the length it was written with.

    Raises:
      DataError: naming the first that has not.
    """
    for name, file in index["files"].items():
        path = pathlib.Path(folder, name)
        try:
            found = path.stat().st_size
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}): convert it again") from None
        if found != file["bytes"]:
            raise DataError(
                f"{path} has {found:,} bytes, and {file['bytes']:,} by {INDEX}: it was cut off or altered, copy or "
                "convert it again"
            )


def digest(path: pathlib.Path, report: Callable[[int], None] = lambda read: None) -> str:
    """SHA-256 of a file, in hexadecimal digits; `report` is told the bytes read so far."""
    state, read = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            state.update(block)
            read += len(block)
            report(read)
    return state.hexdigest()


def mapped(path: pathlib.Path, dtype: type, shape: tuple[int | None, ...]) -> np.memmap:
    """The array of an .npy file, mapped into memory.

    Args:
      path: of the file.
      dtype: it has.
      shape: it has; None stands for any length.

    Raises:
      DataError: if it is another array, or none.
    """
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}): convert it again") from None
    fits = len(shape) == array.ndim and all(
        length in (None, found) for length, found in zip(shape, array.shape, strict=True)
    )
    if array.dtype != dtype or not fits:
        expected = ["any" if length is None else length for length in shape]
        raise DataError(
            f"{path} is {array.dtype} {list(array.shape)}, and {np.dtype(dtype)} {expected} by {INDEX}: convert it "
            "again"
        )
    if array.nbytes > _memory_bytes() // 2 and isinstance(array.base, mmap.mmap):
        # Else each read of a row brings in megabytes around it, to push others out: 13 ms a row where 22 µs do.
        array.base.madvise(mmap.MADV_RANDOM)
    return array


def _check_contents(
    path: pathlib.Path, file: dict[str, Any], report: Callable[[int], None] = lambda read: None
) -> None:
    found = digest(path, report)
    if found != file["sha256"]:
        raise DataError(
            f"{path} has the SHA-256 {found[:12]}…, and {file['sha256'][:12]}… by {INDEX}: it was altered, copy or "
            "convert it again"
        )


def _memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
