"""Writes folders of arrays: whole or not at all, going on where it was stopped, the same bytes each time."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import math
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any

import numpy as np

from input_pipeline.batches import DataError
from input_pipeline.manifest import INDEX, Format, digest

SAVE_SECONDS = 2.0
PROGRESS = "progress.json"

Chunks = Callable[[int], Iterator[tuple[int, Mapping[str, np.ndarray]]]]
Identity = Callable[[int, Sequence[str]], str]
"""Of what is converted and how, as far as it matters to so many units that are done and names of what was skipped."""


def check_new(destination: str) -> None:
    """Raises DataError if the destination is there."""
    if pathlib.Path(destination).exists():
        raise DataError(f"{destination} is there already: remove it, or name another folder")


def write_folder(
    destination: str,
    kind: Format,
    fields: Mapping[str, Any],
    *,
    identity: Identity,
    rows: Mapping[str, tuple[type, tuple[int, ...]]],
    total: int,
    chunks: Chunks,
    texts: Mapping[str, str] | None = None,
    skipped: list[str] | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Writes a folder with an index, for `manifest`.

    It is written beside the destination, as `.NAME.partial`, and renamed when it is complete and on the disk. One that
    is there from a conversion with the same identity and contents is gone on with.

    Args:
      destination: must not be there.
      kind: of folder.
      fields: of the index.
      identity: another one of what an earlier start has done is of another conversion, which is begun again.
      rows: dtype and shape of a row of each array, by the name of its .npy file.
      total: the whole work, in units of its own.
      chunks: gives from what is done on, in order: units done after it, and rows of some files.
      texts: contents of other files, by name.
      skipped: names of what could not be read, to which `chunks` adds; those of an earlier start are put in.
      report: told what is done, first that of an earlier start, and the whole.

    Raises:
      DataError: if the destination is there, or another conversion writes it.
      OSError: if it cannot be written.
    """
    check_new(destination)
    target, texts = pathlib.Path(destination), texts or {}
    index = {"format": kind.name, "version": kind.version, **fields}
    partial = target.with_name(f".{target.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    lock = os.open(partial, os.O_RDONLY)
    try:
        _lock(lock, target)
        contents = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
        state = {"contents": contents, **index}
        start, lengths, known = _done_before(partial, state, identity, rows)
        lengths = {name: lengths.get(name, 0) for name in rows}
        skipped = [] if skipped is None else skipped
        skipped += [name for name in known if name not in skipped]
        for name, text in texts.items():
            _replace(partial / name, text)
        with contextlib.ExitStack() as stack:
            files = {
                name: stack.enter_context(_opened(partial / name, *row, lengths[name]))
                for name, row in rows.items()
            }
            saved = time.monotonic()
            report(start, total)
            for done, arrays in chunks(start):
                for name, array in arrays.items():
                    files[name].write(np.ascontiguousarray(array, rows[name][0]).tobytes())
                    lengths[name] += len(array)
                if time.monotonic() - saved > SAVE_SECONDS or done == total:
                    _on_disk(files)
                    names = list(skipped)  # To which others add at any time.
                    before = {"done": done, "lengths": lengths, "skipped": names}
                    before["identity"] = identity(done, names)
                    _replace(partial / PROGRESS, _json(state | before))
                    saved = time.monotonic()
                report(done, total)
            for name, file in files.items():
                _write_header(file, *rows[name], lengths[name])
            _on_disk(files)
        index["files"] = {
            name: {"bytes": (partial / name).stat().st_size, "sha256": digest(partial / name)}
            for name in (*rows, *texts)
        }
        _replace(partial / INDEX, _json(index))
        os.fsync(lock)
        os.rename(partial, target)
        _sync(target.parent)
        (target / PROGRESS).unlink()
    finally:
        os.close(lock)


def _lock(folder: int, target: pathlib.Path) -> None:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DataError(f"another conversion writes {target}: wait for it, or end it") from None


def _done_before(
    partial: pathlib.Path,
    state: dict[str, Any],
    identity: Identity,
    rows: Mapping[str, tuple[type, tuple[int, ...]]],
) -> tuple[int, dict[str, int], list[str]]:
    """Units done and rows of each file that an earlier start of the same conversion has written, and the names of what it
    skipped; without one, or where files are damaged, the folder is emptied."""
    try:
        before = json.loads((partial / PROGRESS).read_bytes())
    except (FileNotFoundError, ValueError):
        before = {}
    before = before if isinstance(before, dict) else {}
    done, lengths = before.pop("done", 0), before.pop("lengths", {})
    skipped = before.pop("skipped", [])
    same = before.pop("identity", None) == identity(done, skipped) and before == state
    if same and all(_holds(partial / name, *rows[name], n) for name, n in lengths.items()):
        return done, lengths, skipped
    for entry in partial.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    return 0, {}, []


def _holds(path: pathlib.Path, dtype: type, row: tuple[int, ...], length: int) -> bool:
    """Whether an .npy file has so many rows at least: one that was cut off since would be filled up with zeros."""
    header = io.BytesIO()
    _write_header(header, dtype, row, length)
    needed = header.tell() + length * _row_bytes(dtype, row)
    return path.is_file() and path.stat().st_size >= needed


def _row_bytes(dtype: type, row: tuple[int, ...]) -> int:
    return np.dtype(dtype).itemsize * math.prod(row)


def _opened(path: pathlib.Path, dtype: type, row: tuple[int, ...], length: int) -> IO[bytes]:
    """An .npy file behind its first `length` rows; what was written after them is cut off."""
    file = path.open("r+b" if length else "w+b")
    _write_header(file, dtype, row, length)
    file.seek(length * _row_bytes(dtype, row), os.SEEK_CUR)
    file.truncate()
    return file


def _write_header(file: IO[bytes], dtype: type, row: tuple[int, ...], length: int) -> None:
    """At the beginning of a file; it is as long for each number of rows, since NumPy leaves room for 20 digits."""
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False}
    file.seek(0)
    np.lib.format.write_array_header_1_0(file, {**header, "shape": (length, *row)})


def _on_disk(files: Mapping[str, IO[bytes]]) -> None:
    for file in files.values():
        file.flush()
        os.fsync(file.fileno())


def _json(contents: dict[str, Any]) -> str:
    return json.dumps(contents, indent=1, sort_keys=True)


def _replace(path: pathlib.Path, contents: str) -> None:
    """Writes a file so that it is what it was or whole, also if the machine stops."""
    scratch = path.with_name(f".{path.name}")
    with scratch.open("w", encoding="utf-8") as file:
        file.write(contents)
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)
    _sync(path.parent)


def _sync(folder: pathlib.Path) -> None:
    """Returns when the names in a folder are on the disk."""
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
