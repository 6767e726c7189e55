"""Checkpoints: one file a checkpoint, complete or not there.

A checkpoint is a safetensors file `step-00000100.safetensors`: named arrays, no code, readable by anything. It is written
under another name, flushed to the disk and renamed, so that a kill at any moment leaves either the whole file or none, and
its metadata holds everything that is not an array, with a checksum over all of it: the best checkpoint so far is named in
the same atomic write that saves it, so there is no moment between. Replicas are alike, so a checkpoint knows nothing of
their number.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import json
import pathlib
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from trainer import durable
from trainer.exits import CannotCreate, ConfigError, DataProblem, UsageError
from trainer.workdir import checkpoint_steps


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A training at one step.

    Attributes:
      step: of the training.
      arrays: every variable by name.
      notes: what else must go on: JSON values by name.
    """

    step: int
    arrays: Mapping[str, np.ndarray]
    notes: Mapping[str, Any]


class DamagedCheckpoint(Exception):
    """A file that is not what was written."""


def write(path: pathlib.Path, snapshot: Snapshot, check: Callable[[], None] = lambda: None) -> None:
    """Writes the snapshot so that `path` is complete or as it was before; `check` as `durable.write` calls it."""
    notes = json.dumps({"step": snapshot.step, **snapshot.notes}, sort_keys=True)
    metadata = {"lockstep": notes, "sha256": _digest(notes, snapshot.arrays)}
    arrays = {name: np.asarray(array, order="C") for name, array in snapshot.arrays.items()}
    durable.write(path, safetensors.numpy.save(arrays, metadata), check)


def read(path: pathlib.Path) -> Snapshot:
    """Reads and verifies a checkpoint.

    Raises:
      DamagedCheckpoint: if it is truncated or altered.
      DataProblem: if the file system does not give it.
    """
    if not path.is_file():
        raise DamagedCheckpoint(f"{path} is damaged (it is no file)")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        notes = metadata["lockstep"]
        if _digest(notes, arrays) != metadata["sha256"]:
            raise DamagedCheckpoint(f"{path} does not have the checksum it was written with")
        _check_padding(path)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise DamagedCheckpoint(f"{path} is damaged ({error})") from None
    except OSError as error:
        # Perhaps whole: falling back would write over it.
        raise DataProblem(f"{path} cannot be read ({error}): mend that and start again") from None
    values = json.loads(notes)
    return Snapshot(values.pop("step"), arrays, values)


def _check_padding(path: pathlib.Path) -> None:
    """What is in a header beside JSON that was read: safetensors pads it with spaces, and takes any white space."""
    with path.open("rb") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))
    if not header.rstrip(b" ").endswith(b"}"):
        raise DamagedCheckpoint(f"{path} is damaged (its header does not end as it was written)")


def _digest(notes: str, arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(notes.encode())
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


class Checkpoints:
    """The checkpoints of a workdir. Saves are made by a thread while training goes on, one at a time.

    Args:
      directory: of the files, made in a folder that is there.
      keep: how many of the latest are kept.
      fence: called before anything is written, removed or renamed; raises if that is not this process's right any more.
      record: called after each save with its step, the seconds of writing and those that the training waited.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        keep: int,
        fence: Callable[[], None] = lambda: None,
        record: Callable[..., None] = lambda **fields: None,
    ) -> None:
        self.directory, self._keep = directory, keep
        self._fence, self._record = fence, record
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: tuple[int, concurrent.futures.Future] | None = None

    def steps(self) -> list[int]:
        """Steps of the checkpoints there are, ascending."""
        return checkpoint_steps(self.directory)

    def path(self, step: int) -> pathlib.Path:
        return self.directory / f"step-{step:08d}.safetensors"

    def save(
        self,
        snapshot: Snapshot,
        best: int | None,
        needed: Collection[int] = (),
        *,
        before: Callable[[], None] = lambda: None,
        waited: float = 0.0,
    ) -> None:
        """Starts writing; afterwards only the last `keep`, the one of step `best` and those of the steps needed stay.

        Args:
          snapshot: to write.
          best: step of the best checkpoint.
          needed: steps of others that stay.
          before: what must be on the disk first, called by the thread.
          waited: seconds, to record.

        Raises:
          CannotCreate: of the save before, if it failed.
        """
        self.wait()
        stay = {best, *needed}
        saving = self._thread.submit(self._write, snapshot, stay, before, waited)
        self._pending = snapshot.step, saving

    def wait(self) -> None:
        """Returns when all saves are on the disk.

        Raises:
          CannotCreate: if one failed; what was saved before it is whole.
        """
        if self._pending is None:
            return
        (step, saved), self._pending = self._pending, None
        try:
            saved.result()
        except OSError as error:
            self._fence()  # Where the workdir is not what it was, it says so.
            raise CannotCreate(
                f"the checkpoint of step {step} cannot be written to {self.directory} ({error.strerror or error}): "
                "make room or mend it and start again; the checkpoints before it are whole"
            ) from None

    def flush(self) -> None:
        """Returns when what is being written is on the disk, or has failed; from any thread."""
        self._thread.submit(lambda: None).result()

    def remove_after(self, step: int) -> None:
        """Removes the checkpoints of later steps: of what was learnt after a run went back to this one."""
        self._fence()
        for later in self.steps():
            if later > step:
                self.path(later).unlink(missing_ok=True)

    def latest(self, note: Callable[[str], None]) -> Snapshot | None:
        """The newest checkpoint that is whole, or None where there is none at all.

        Args:
          note: is told of each one that is damaged.

        Raises:
          DataProblem: if there are checkpoints and none is whole.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return read(self.path(step))
            except DamagedCheckpoint as error:
                if not self.path(step).exists() and self.steps() != steps:
                    return self.latest(
                        note
                    )  # A training beside has removed it, and saved later ones.
                note(f"{error}: falling back to the checkpoint before it")
        if steps:
            raise DataProblem(
                f"none of the {len(steps)} checkpoints in {self.directory} is whole: "
                "restore one from a backup, or remove the directory to start from the beginning"
            )
        return None

    def find(self, which: str, note: Callable[[str], None]) -> Snapshot | None:
        """The checkpoint asked for; None for the last where there is none at all.

        Args:
          which: "last", "best" or a step.
          note: as for `latest`.

        Raises:
          UsageError: if it is not there.
          DataProblem: if it is damaged, and as `latest` does.
        """
        if which not in ("last", "best") and which in map(str, self.steps()):
            try:
                return read(self.path(int(which)))
            except DamagedCheckpoint as error:
                others = ", ".join(str(step) for step in self.steps() if str(step) != which)
                raise DataProblem(
                    f"{error}: {f'choose one of {others}' if others else 'there is no other'}"
                ) from None
        latest = self.latest(note)
        if which == "last":
            return latest
        if latest is None:
            raise UsageError(f"no checkpoint {which} in {self.directory}: there is none at all yet")
        steps = self.steps()
        there = ", ".join(map(str, steps))
        if which == "best" and not latest.notes["best"]:
            raise UsageError(
                f"no best checkpoint in {self.directory}: nothing was evaluated by a best_metric; "
                f"choose last or one of {there}"
            )
        if which != "best" or latest.notes["best"]["step"] not in steps:
            raise UsageError(
                f"no checkpoint {which} in {self.directory}: choose last, best or one of {there}"
            )
        return self.find(str(latest.notes["best"]["step"]), note)

    def _write(
        self,
        snapshot: Snapshot,
        stay: Collection[int | None],
        before: Callable[[], None],
        waited: float,
    ) -> None:
        began = time.perf_counter()
        self._fence()
        before()
        if not self.directory.is_dir():
            self.directory.mkdir()  # Not its parents: a workdir that has vanished must not come back empty.
            durable.sync(self.directory.parent)
        write(self.path(snapshot.step), snapshot, self._fence)
        # Later steps are damaged files that a restart fell back from; they are written anew when it gets there.
        steps = [step for step in self.steps() if step <= snapshot.step]
        for step in set(steps[: -self._keep]).difference(stay):
            self.path(step).unlink(missing_ok=True)
        for scratch in self.directory.glob(".step-*"):
            scratch.unlink(missing_ok=True)
        seconds = time.perf_counter() - began
        self._record(step=snapshot.step, seconds=round(seconds, 3), waited=round(waited, 4))


def form(array: Any) -> str:
    """Dtype and shape of an array or variable, as `check_fit` compares them."""
    dtype = getattr(array.dtype, "name", array.dtype)
    return f"{dtype} {tuple(array.shape)}"


def check_fit(snapshot: Snapshot, expected: Mapping[str, str], where: pathlib.Path) -> None:
    """Checks that a snapshot has exactly the arrays of these names and forms.

    Raises:
      ConfigError: naming the first that differs.
    """
    for name in sorted({*expected, *snapshot.arrays}):
        there = form(snapshot.arrays[name]) if name in snapshot.arrays else "missing"
        here = expected.get(name, "missing")
        if there != here:
            raise ConfigError(
                f"{where} does not fit the model: {name} is {there} there and {here} in the configuration; "
                "use the configuration it was made with, or another --workdir"
            )
