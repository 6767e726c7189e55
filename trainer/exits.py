"""Errors that a person can do something about, and the exit codes (sysexits.h) they end a run with."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


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


def nearest(name: str, valid: Iterable[str]) -> str:
    """`"; did you mean x?"` for the valid name nearest to this one, or nothing if none is near."""
    folded = {candidate.lower(): candidate for candidate in sorted(valid)}
    found = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.5)
    return f"; did you mean {folded[found[0]]}?" if found else ""
