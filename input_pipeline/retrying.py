"""Reading that outlasts a short failure of storage: an I/O error, a stale handle, a file that is gone for a moment."""

from __future__ import annotations

import errno
import logging
import os
import pathlib
import time
from collections.abc import Callable
from typing import TypeVar

DELAYS_SECONDS = (0.5, 1.0, 2.0, 4.0)
"""Before each further try."""

MOMENTARY = {
    errno.EIO,
    errno.ESTALE,
    errno.EAGAIN,
    errno.EBUSY,
    errno.ENXIO,
    errno.ENODEV,
    errno.ENOTCONN,
    errno.ETIMEDOUT,
    errno.ECONNRESET,
    errno.ECONNABORTED,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
}
"""Errors of storage that may be over soon. Others, as of permissions, are not."""
GONE = {errno.ENOENT, errno.ENOTDIR}

T = TypeVar("T")


def retrying(read: Callable[[], T], name: str, gone: bool = True) -> T:
    """What a function returns that reads, and is called again after a while if storage fails.

    Each further try is a warning of this module's logger, whose record has the attributes `file` and `error`.

    Args:
      read: may raise OSError.
      name: of the file, for the warning.
      gone: whether a file that is not there may come back, as one that was there before.

    Raises:
      OSError: that of the last try, or one that no further try would mend.
    """
    name, again = shown(name), MOMENTARY | GONE if gone else MOMENTARY
    for delay in DELAYS_SECONDS:
        try:
            return read()
        except OSError as error:
            if error.errno not in again:
                raise
            reason = reason_of(error)
        logging.getLogger(__name__).warning(
            "%s cannot be read (%s): trying again in %g seconds",
            name,
            reason,
            delay,
            extra={"file": name, "error": reason},
        )
        time.sleep(delay)
    return read()


def read_bytes(path: pathlib.Path, gone: bool = False) -> bytes:
    """The contents of a file, as `retrying` reads it; raises OSError."""
    return retrying(path.read_bytes, str(path), gone)


def shown(path: str | os.PathLike[str]) -> str:
    """A file's name for messages, which go through what takes UTF-8 only: other bytes, as names may have, as \\x and two digits."""
    return os.fsencode(path).decode(errors="backslashreplace")


def reason_of(error: OSError) -> str:
    """What is wrong, without the name of the file."""
    return error.strerror or str(error)
