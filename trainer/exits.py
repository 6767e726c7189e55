"""Errors that a person can do something about, and the exit codes (sysexits.h) they end a run with."""

from __future__ import annotations

import difflib
import errno
import re
import traceback
from collections.abc import Collection, Iterable

INTERRUPTED = 130
"""What ends with Ctrl-C, as shells report it."""
PACKAGES = ("trainer", "models", "input_pipeline")
"""Whose checks of arguments are for people."""


class UserError(Exception):
    """Ends the run with one line, `str(error)`, and exit code `code`; no traceback."""

    code = 70


class UsageError(UserError):
    """The command line is wrong (EX_USAGE)."""

    code = 64


class DataProblem(UserError):
    """The data cannot be used (EX_DATAERR)."""

    code = 65


class MissingPackage(UserError):
    """Something that must be installed is not (EX_UNAVAILABLE)."""

    code = 69


class Diverged(UserError):
    """The training does not converge: too many updates in a row were not finite (EX_SOFTWARE)."""

    code = 70


class Unreliable(UserError):
    """The hardware computes or keeps wrong numbers (EX_SOFTWARE): leave the machine out."""

    code = 70


class CannotCreate(UserError):
    """An output cannot be made (EX_CANTCREAT)."""

    code = 73


class WorkdirInUse(UserError):
    """Another process writes in the workdir (EX_CANTCREAT): starting again would not help."""

    code = 73


class PreemptedExit(UserError):
    """The run was asked to stop and has saved: start it again (EX_TEMPFAIL)."""

    code = 75


class Corrupted(UserError):
    """What is held in memory went wrong, and only a new start reads it again (EX_TEMPFAIL)."""

    code = 75


class LostPeer(UserError):
    """Another worker is missing or gone, or this one's port is taken: start all again (EX_TEMPFAIL)."""

    code = 75


class NoPermission(UserError):
    """An output may not be written (EX_NOPERM)."""

    code = 77


class ConfigError(UserError):
    """The configuration is wrong, or does not fit what is there (EX_CONFIG)."""

    code = 78


def file_problem(error: OSError, file: str, again: str, instead: str | None = None) -> UserError:
    """What a person can do about a file that cannot be read or written.

    Args:
      error: of the system.
      file: its name, where the error does not know it.
      again: what to do then.
      instead: what else to do than to change its permissions.
    """
    shut = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    mend = "change its permissions" if shut else "make room" if full else "mend it"
    reason = (error.strerror or str(error)).lower()
    return (NoPermission if shut else CannotCreate)(
        f"{error.filename or file} cannot be read or written ({reason}): "
        + (f"{mend}, or {instead}" if shut and instead else f"{mend} and {again}")
    )


BY_KERAS = re.compile(
    r"Exception encountered when calling .*?\n\n\x1b\[1m(.*)\x1b\[0m\n\nArguments received by",
    re.DOTALL,
)


def one_line(error: BaseException) -> str:
    """The message as it was raised, on one line: gin and Keras add lines on the calls that they made."""
    message = str(error)
    if said := BY_KERAS.search(message):
        message = said[1]
    message = re.split(r"\n\s+(?:In call to configurable|No values supplied by Gin)", message)[0]
    return " ".join(message.split()) or type(error).__name__


def is_check(error: BaseException, modules: Collection[str] = ()) -> bool:
    """Whether an error says what is wrong with an argument, and so is for people: what came up in a call of gin's, or a ValueError
    that our own code raised. Another, as where a model is traced or in modules of the user's, is a bug until its place is looked at.

    Args:
      error: that was caught.
      modules: that the configuration imports.
    """
    frames = traceback.walk_tb(error.__traceback__)
    packages = [frame.f_globals.get("__name__", "").partition(".")[0] for frame, _ in frames]
    if {name.partition(".")[0] for name in modules}.intersection(packages):
        return False
    ours = isinstance(error, ValueError) and packages[-1] in PACKAGES
    return ours or "gin" in packages


def nearest(name: str, valid: Iterable[str]) -> str:
    """`"; did you mean x?"` for the valid name nearest to this one, or nothing if none is near."""
    folded = {candidate.lower(): candidate for candidate in sorted(valid)}
    found = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.5)
    return f"; did you mean {folded[found[0]]}?" if found else ""
