"""Saves of checkpoints that fail, or are killed, at each call of the system in turn; imports no TensorFlow, to fork fast.

    python -m tests.trainer.interrupted FOLDER

prints a line of JSON: for each fault how often it struck, and how often the new checkpoint was there afterwards.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import pathlib
import shutil
import signal
import sys
from collections.abc import Callable, Iterator

import numpy as np

from trainer.checkpoint import Checkpoints, Snapshot, read
from trainer.exits import CannotCreate

CALLS = ("open", "write", "fsync", "close", "replace", "unlink", "mkdir", "listdir", "stat")
KILL = "kill"
ERRORS = {name: getattr(errno, name) for name in ("ENOSPC", "EIO", "EROFS")}
FAULTS = (KILL, *ERRORS, *(f"{name} from then on" for name in ERRORS))


class Faults:
    """Counts the calls of the system that change or read files; at one of them, or in the midst of a write, something happens.

    Args:
      fault: one of `FAULTS`.
      number: of the call, from 0; a write counts twice, before it and after the first half of its bytes.
    """

    def __init__(self, fault: str, number: int) -> None:
        self.struck = False
        self._fault, self._number, self._count = fault, number, itertools.count()
        self._true = {name: getattr(os, name) for name in CALLS}

    def __enter__(self) -> Faults:
        for name in CALLS:
            setattr(os, name, self._wrapped(name))
        return self

    def __exit__(self, *exception: object) -> None:
        for name, call in self._true.items():
            setattr(os, name, call)

    def _wrapped(self, name: str) -> Callable:
        call = self._true[name]

        def counted(*args: object, **kwargs: object) -> object:
            if name == "close":
                call(*args)  # A file is closed whatever is said.
                return self._strike()
            self._strike()
            if name == "write":
                file, data = args
                # As a disk does that is nearly full; who writes must go on with the rest.
                count = call(file, data[: len(data) // 2 + 1])
                self._strike()
                return count
            return call(*args, **kwargs)

        return counted

    def _strike(self) -> None:
        number = next(self._count)
        on = self._fault.endswith("from then on")
        if number < self._number or (number > self._number and not on):
            return
        self.struck = True
        if self._fault == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        code = ERRORS[self._fault.split()[0]]
        raise OSError(code, os.strerror(code))


def snapshot(step: int) -> Snapshot:
    arrays = {"step": np.int64(step), "w": np.random.default_rng(step).normal(size=[7, 5])}
    return Snapshot(step, {name: np.asarray(array) for name, array in arrays.items()}, {"best": {}})


def save(folder: pathlib.Path, step: int) -> None:
    checkpoints = Checkpoints(folder, keep=2)
    checkpoints.save(snapshot(step), best=None)
    checkpoints.wait()


def attempt(folder: pathlib.Path, fault: str, number: int) -> bool:
    """Saves step 60 with a fault at a call; whether there were so many calls."""
    if fault != KILL:
        with Faults(fault, number) as faults:
            try:
                save(folder, 60)
            except CannotCreate as error:
                assert "the checkpoint of step 60 cannot be written" in str(error)
                assert faults.struck
        return faults.struck
    child = os.fork()
    if child == 0:
        with Faults(fault, number):
            save(folder, 60)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def check(folder: pathlib.Path, before: tuple[int, ...]) -> bool:
    """Demands that the state is that of before or after, and that the next save mends all; whether it is that of after."""
    checkpoints = Checkpoints(folder, keep=2)
    latest = checkpoints.latest(lambda note: sys.exit(f"damaged: {note}"))
    steps = checkpoints.steps()
    assert steps in (list(before), [*before, 60], [*before[-1:], 60]), steps
    assert (latest.step if latest else None) == (steps[-1] if steps else None)
    for step in steps:
        found = read(checkpoints.path(step))
        for name, array in snapshot(step).arrays.items():
            assert found.arrays[name].tobytes() == array.tobytes(), (step, name)
    save(folder, 80)
    names = [path.name for path in sorted(folder.iterdir())]
    assert names == [f"step-{step:08d}.safetensors" for step in [*steps, 80][-2:]], names
    return 60 in steps


def trials(folder: pathlib.Path, before: tuple[int, ...], fault: str) -> Iterator[bool]:
    """For each call in turn, whether the new checkpoint was there after the fault."""
    for number in itertools.count():
        shutil.rmtree(folder, ignore_errors=True)
        for step in before:
            save(folder, step)
        struck = attempt(folder, fault, number)
        after = check(folder, before)
        if not struck:
            assert after
            return
        yield after


if __name__ == "__main__":
    counts = {}
    for before in ((), (20, 40)):
        for fault in FAULTS:
            outcomes = list(trials(pathlib.Path(sys.argv[1], "checkpoints"), before, fault))
            counts[f"{fault}, {len(before)} before"] = [len(outcomes), sum(outcomes)]
    print(json.dumps(counts))
