"""Whether the files of a run are what was written: checkpoints by their checksums, the others by what they must hold."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from trainer import checkpoint, config_files, workdir
from trainer.exits import DataProblem, UserError, one_line

SAVED = "checkpoints/"
LAUNCHED = ("config.gin", "run.json")
"""What `lockstep train` writes, and a training that is started from Python does not."""


@dataclasses.dataclass(frozen=True)
class Verified:
    """What was found.

    Attributes:
      folder: of the run.
      files: name within the folder -> what is wrong, None if it is whole.
      notes: name -> what is not wrong and worth to be said, of files that are not there too.
    """

    folder: Path
    files: dict[str, str | None]
    notes: dict[str, str]

    @property
    def problem(self) -> DataProblem | None:
        """The line of the first file that is damaged."""
        wrong = {name: found for name, found in self.files.items() if found}
        if not wrong:
            return None
        name, found = next(iter(wrong.items()))
        whole = [name for name, found in self.files.items() if name.startswith(SAVED) and not found]
        goes_on = all(name.startswith(SAVED) for name in wrong) and whole
        return DataProblem(
            f"{len(wrong)} of {len(self.files)} files in {self.folder} are damaged, {name} among them ({found}): restore them "
            f"from a backup{f', or start again, which goes on from {whole[-1]}' if goes_on else ''}"
        )

    def print(self) -> None:
        """A table, and a line of JSON."""
        from rich.table import Table
        from rich.text import Text

        from trainer.tables import show

        table = Table("file", "state")
        for name in self.files | self.notes:
            found = self.files.get(name)
            state = [f"DAMAGED: {found}" if found else "whole"] if name in self.files else []
            state += [self.notes[name]] if name in self.notes else []
            table.add_row(Text(name), Text("; ".join(state)))
        show(table)
        whole = self.problem is None
        print(json.dumps({"workdir": str(self.folder), "whole": whole, "files": self.files}))


def verify(folder: Path) -> Verified:
    """Reads all files of a run but samples and summaries, which no training reads.

    A value in metrics.jsonl or events.jsonl that reads as another number is not found: these have no checksums.

    Raises:
      ConfigError: if there is no run.
    """
    steps = workdir.checkpoint_steps(folder / "checkpoints")
    if not steps:
        workdir.config_file(folder)
    found = Verified(folder, {}, {})
    launched = any((folder / name).exists() for name in LAUNCHED)
    if not launched:
        found.notes[" and ".join(LAUNCHED)] = "not there: it was not lockstep train that began it"
    for name, check in (
        ("config.gin", _config),
        ("run.json", _starts),
        ("metrics.jsonl", _metrics),
        ("events.jsonl", _events),
        ("DONE", _done),
    ):
        path = folder / name
        if not path.exists():
            if steps and name != "DONE" and (launched or name not in LAUNCHED):
                found.files[name] = "missing"
            continue
        try:
            found.files[name] = check(path)
        except _Torn as torn:
            found.files[name], found.notes[name] = None, str(torn)
        except (OSError, ValueError, TypeError, KeyError, UserError) as error:
            found.files[name] = one_line(error)
    for name, wrong in _checkpoints(folder, steps):
        found.files[name] = wrong
    return found


class _Torn(Exception):
    """What a kill leaves and the next start mends."""


def _checkpoints(folder: Path, steps: list[int]) -> Iterator[tuple[str, str | None]]:
    files, best = checkpoint.Checkpoints(folder / "checkpoints", keep=1), None
    for step in steps:
        path, wrong = files.path(step), None
        try:
            snapshot = checkpoint.read(path)
            best = snapshot.notes.get("best", {}).get("step")
            if snapshot.step != step:
                wrong = f"it is of step {snapshot.step}"
        except (checkpoint.DamagedCheckpoint, DataProblem) as error:
            if not path.exists():
                continue  # Removed by a training that goes on.
            wrong = one_line(error).removeprefix(f"{path} ")
        yield f"{SAVED}{path.name}", wrong
    if best is not None and best not in steps:
        yield f"{SAVED}{files.path(best).name}", "missing, and the best"


def _config(path: Path) -> str | None:
    config_files.read([str(path)])
    try:
        start = json.loads(path.with_name("run.json").read_bytes())[-1]
    except (OSError, ValueError, LookupError):
        return None
    digest = start.get("config_sha256") if isinstance(start, dict) else None
    if digest in (None, hashlib.sha256(path.read_bytes()).hexdigest()):
        return None
    return "it is not what the last start has written, by the checksum in run.json"


def _starts(path: Path) -> str | None:
    starts = json.loads(path.read_bytes())
    listed = isinstance(starts, list) and all(
        isinstance(start, dict) and {"time", "command", "versions"} <= start.keys()
        for start in starts
    )
    return None if listed else "it is no list of starts"


def _done(path: Path) -> str | None:
    steps = json.loads(path.read_bytes())["steps"]
    if steps not in workdir.checkpoint_steps(path.parent / "checkpoints"):
        return f"there is no checkpoint of its step {steps}"
    rows = (path.parent / "metrics.jsonl").read_bytes().splitlines()
    last = None
    with contextlib.suppress(ValueError, LookupError, TypeError):
        last = json.loads(rows[-1])["step"]
    if last != steps:
        return f"metrics.jsonl does not end with its step {steps}"
    return None


def _metrics(path: Path) -> str | None:
    last = -1

    def check(row: dict) -> str | None:
        nonlocal last
        if not isinstance(row["step"], int) or row["step"] <= last:
            return f"a row of step {row['step']} after one of step {last}"
        last = row["step"]
        if not isinstance(row["examples"], int) or not isinstance(row["metrics"], dict):
            return "no row of metrics"
        return None

    return _lines(path, check)


def _events(path: Path) -> str | None:
    def check(event: dict) -> str | None:
        whole = isinstance(event["time"], float | int) and isinstance(event["event"], str)
        return None if whole else "no event"

    return _lines(path, check)


def _lines(path: Path, check: Callable[[dict], str | None]) -> str | None:
    """Checks each line of JSON; those that were cut off by a kill are known by their end.

    Raises:
      _Torn: if that is all that there is to say.
    """
    torn = 0
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        try:
            row = json.loads(line)
            wrong = check(row) if isinstance(row, dict) else "no object"
        except (ValueError, KeyError) as error:
            # A full disk may have torn a line in the midst too, where the next start began another.
            if not line.endswith((b"}\n", b"}")) and line.startswith(b"{"):
                torn += 1
                continue
            wrong = f"not what was written: {one_line(error)}"
        if wrong:
            return f"line {number}: {wrong}"
    if torn:
        raise _Torn(f"a kill or a full disk has cut off {torn} line{'s' * (torn > 1)}")
    return None
