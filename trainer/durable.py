"""Files that are whole or not there, whenever the process or the machine stops."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
from collections.abc import Callable, Iterator

SCRATCH = "."
"""Names of files that are not whole begin so."""


def write(path: pathlib.Path, data: bytes, check: Callable[[], None] = lambda: None) -> None:
    """Writes a file so that `path` is what it was before or all of `data`, and stays so once this returns.

    Args:
      path: of the file, in a folder that is there.
      data: all of it.
      check: called when all is written but the name; what it raises leaves the file as it was.

    Raises:
      OSError: if it cannot; the file is then as it was before.
    """
    scratch = path.with_name(f"{SCRATCH}{path.name}.{os.getpid()}")
    with naming(path):
        try:
            file = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            try:
                write_all(file, data)
                os.fsync(file)
            finally:
                os.close(file)
            check()
            os.replace(scratch, path)
        except BaseException:
            with contextlib.suppress(OSError):  # The first error says what is wrong.
                os.unlink(scratch)
            raise
        sync(path.parent)


def write_all(file: int, data: bytes) -> None:
    """Writes to a file descriptor what one call of the system may write in parts: above 2 GiB, or to a disk that is nearly full."""
    left = memoryview(data)
    while left:
        left = left[os.write(file, left) :]


@contextlib.contextmanager
def naming(path: pathlib.Path) -> Iterator[None]:
    """Errors of the system tell this file: a failed write does not know its name."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def sync(path: pathlib.Path) -> None:
    """Returns when what was written to a file, or the names in a folder, are on the disk."""
    with naming(path):
        opened = os.open(path, os.O_RDONLY)
        try:
            os.fsync(opened)
        except OSError as error:
            # Some file systems know no fsync of folders.
            if not path.is_dir() or error.errno not in (errno.EINVAL, errno.EBADF):
                raise
        finally:
            os.close(opened)
