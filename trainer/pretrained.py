"""Weights from outside the run: the same on every worker, and at every start."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Iterable, Sequence

import keras
import numpy as np

from models.objective import Objective
from trainer.exits import ConfigError
from trainer.update import Update


def pretrained(objective: Objective) -> Sequence[keras.Variable]:
    """Variables whose first values come from outside."""
    return getattr(objective, "pretrained", ())


def frozen(objective: Objective, updates: Iterable[Update]) -> list[keras.Variable]:
    """Those of them that nothing moves, which no checkpoint holds."""
    moved: set[int] = set()
    for update in updates:
        average = update.phase.average
        copies = average.copy.weights if average else ()
        moved |= {id(v) for v in (*update.phase.variables, *update.statistics, *copies)}
    return [variable for variable in pretrained(objective) if id(variable) not in moved]


def digest(variables: Iterable[keras.Variable]) -> str | None:
    """Of paths and values, in hexadecimal; None if there are none."""
    variables = list(variables)
    if not variables:
        return None
    found = hashlib.sha256()
    for variable in variables:
        array = np.asarray(variable.value.numpy(), order="C")
        found.update(f"{variable.path} {array.dtype} {array.shape}".encode())
        found.update(array.reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def check_same(before: str | None, now: str | None, where: pathlib.Path) -> None:
    """Checks that weights which a checkpoint does not hold are those that it was made with.

    Raises:
      ConfigError: if not.
    """
    if before != now:
        raise ConfigError(
            f"{where} does not fit the pretrained weights, which nothing moves and no checkpoint holds: their digest was "
            f"{_short(before)} and is {_short(now)}; put the model back that the run began with, or use another --workdir"
        )


def _short(digest: str | None) -> str:
    return "none" if digest is None else digest[:12]
