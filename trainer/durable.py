"""Files that are whole or not there, whenever the process or the machine stops."""

from __future__ import annotations

import os
import pathlib

SCRATCH = "."
"""Names of files that are not whole begin so."""


def write(path: pathlib.Path, data: bytes) -> None:
    """Writes a file so that `path` is what it was before or all of `data`, and stays so once this returns.

    Raises:
      OSError: if it cannot; the file is then as it was before.
    """
    scratch = path.with_name(f"{SCRATCH}{path.name}.{os.getpid()}")
    try:
        with scratch.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except BaseException as error:
        scratch.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # A failed write does not know its file.
        raise
    sync_folder(path.parent)


def sync_folder(folder: pathlib.Path) -> None:
    """Returns when the names in a folder are on the disk."""
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
