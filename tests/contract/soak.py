"""Promise 3 for an hour: a gang that loses something every few seconds ends with the bits of one that was left alone.

    scripts/soak --minutes=60 --seed=0 --workers=2

Trains small configurations in turn, each once undisturbed and then again and again under faults drawn at random, started anew
by `scripts/launch` or, where that is gone too, by this program, as a scheduler would. Prints a line for each fault, at
the end a table and a line of JSON; exit code 1 as soon as two runs differ or one does not go on.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from tests.contract.runs import ContractBroken, assert_equal, results
from trainer.ledger import events

ROOT = pathlib.Path(__file__).parents[2]
PATIENCE = 300.0
"""Seconds after which a gang that does not go on has failed."""

OFTEN = ("Experiment.checkpoint_every=20", "Experiment.log_every=5")
TRAININGS = {
    "vae/digits_mlp": (
        *OFTEN,
        "STEPS=2000",
        "Experiment.evaluate_every=200",
        "Experiment.samples=4",
    ),
    "gan/digits": (
        *OFTEN,
        "STEPS=600",
        "Experiment.samples=4",
        "Experiment.sample_every=100",
    ),
    "lstm/pydoc": (
        *OFTEN,
        "STEPS=1500",
        "Experiment.evaluate_every=500",
        "NGrams.order=2",
        "LSTMNetwork.widths=(32,)",
        "TextWindows.window=16",
        "Experiment.samples=0",
    ),
}
"""Configuration -> what makes it a training of half a minute that saves often."""


class Broken(Exception):
    """The soak has found a fault of ours."""


class Life:
    """One start of `scripts/launch`, and what it says."""

    def __init__(self, config: str, workdir: pathlib.Path, workers: int) -> None:
        self.pids: list[int] = []
        """Processes of the workers of the last start."""
        params = [f"--gin_param={binding}" for binding in TRAININGS[config]]
        train = ["train", config, *params, f"--workdir={workdir}", "--heartbeat_seconds=5"]
        launch = [sys.executable, "-m", "clusters.launch", f"--workers={workers}"]
        self.process = subprocess.Popen(
            [*launch, "--max_restarts=1000", "--grace=15", "--", *train],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "2"},
        )
        self.said: collections.deque[str] = collections.deque(maxlen=200)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.said.append(line)
            if started := re.search(r"^launch: .* processes ([\d, ]+)$", line):
                self.pids = [int(pid) for pid in started[1].split(",")]

    def last_words(self) -> str:
        """What it said, to the end if it has ended."""
        self._reader.join(0 if self.process.poll() is None else PATIENCE)
        return "".join(self.said)

    def end(self, number: signal.Signals) -> None:
        """Sends a signal to the launcher, with which its workers die, and waits for it."""
        self.process.send_signal(number)
        self.process.wait(PATIENCE)


@dataclasses.dataclass
class Folder:
    """The workdir of a run, as it can be seen from outside."""

    path: pathlib.Path

    def steps(self) -> int:
        """The step of the last row of metrics."""
        with contextlib.suppress(OSError, IndexError, ValueError):
            return json.loads((self.path / "metrics.jsonl").read_text().splitlines()[-1])["step"]
        return 0

    def starts(self) -> list[int]:
        """The steps from which the run was started, in order."""
        found = events(self.path / "events.jsonl")
        return [event["step"] for event in found if event["event"] == "start"]

    def done(self) -> bool:
        return (self.path / "DONE").exists()

    def newest(self) -> pathlib.Path | None:
        """The newest checkpoint, if there is another to fall back to."""
        there = sorted(self.path.glob("checkpoints/step-*"))
        return there[-1] if len(there) > 1 else None


# ---------------------------------------------------------------------- faults
# Each takes (life, folder, random) and returns whether something was done; a life that it ends is begun again.


def kill(life: Life, folder: Folder, draw: random.Random) -> bool:
    return _send(life, draw, signal.SIGKILL)


def stop(life: Life, folder: Folder, draw: random.Random) -> bool:
    return _send(life, draw, signal.SIGSTOP)


def preempt(life: Life, folder: Folder, draw: random.Random) -> bool:
    return _send(life, draw, signal.SIGTERM)


def preempt_all(life: Life, folder: Folder, draw: random.Random) -> bool:
    life.end(signal.SIGTERM)
    return True


def power_off(life: Life, folder: Folder, draw: random.Random) -> bool:
    life.end(signal.SIGKILL)
    return True


def flip_a_bit(life: Life, folder: Folder, draw: random.Random) -> bool:
    return _damage(life, folder, lambda data: _flipped(data, draw.randrange(8 * len(data))))


def truncate(life: Life, folder: Folder, draw: random.Random) -> bool:
    return _damage(life, folder, lambda data: data[: draw.randrange(len(data))])


def fill_disk(life: Life, folder: Folder, draw: random.Random) -> bool:
    """Until the training has ended because of it, or is done."""
    filler = folder.path.parent / "filler"
    block = 1 << 20
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while block:
            try:
                while True:
                    file.write(bytes(block))
            except OSError:
                block //= 2
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            life.process.wait(PATIENCE)
    finally:
        filler.unlink()
    return True


FAULTS: dict[str, Callable[[Life, Folder, random.Random], bool]] = {
    "worker killed (SIGKILL)": kill,
    "worker hangs (SIGSTOP)": stop,
    "worker preempted (SIGTERM)": preempt,
    "job preempted (SIGTERM)": preempt_all,
    "all killed (SIGKILL)": power_off,
    "all killed, newest checkpoint has a bit flipped": flip_a_bit,
    "all killed, newest checkpoint is truncated": truncate,
    "disk full": fill_disk,
}


def _send(life: Life, draw: random.Random, number: signal.Signals) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(draw.choice(life.pids), number)
        return True
    return False


def _damage(life: Life, folder: Folder, change: Callable[[bytes], bytes]) -> bool:
    life.end(signal.SIGKILL)
    newest = folder.newest()
    if newest is None or folder.done():
        return False
    newest.write_bytes(change(newest.read_bytes()))
    return True


def _flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


# ---------------------------------------------------------------------- the soak


@dataclasses.dataclass(frozen=True)
class Recovery:
    """How a run got over a fault: seconds until it trained again, steps that were done again."""

    fault: str
    seconds: float
    repeated: int


class Soak:
    """Rounds of a training under faults."""

    def __init__(
        self, storage: pathlib.Path, workers: int, draw: random.Random, faults: Sequence[str]
    ) -> None:
        self.recoveries: list[Recovery] = []
        self.equal = 0
        """Disturbed runs that ended with the bits of the undisturbed one."""
        self._storage, self._workers, self._draw, self._faults = storage, workers, draw, faults
        self._references: dict[str, pathlib.Path] = {}

    def round(self, config: str) -> None:
        """One training under faults, beside the one without."""
        if config not in self._references:
            self._references[config] = self._train(config, "undisturbed", 0)
        run = self._train(config, "disturbed", most=self._draw.randint(4, 10))
        try:
            assert_equal(results(run), results(self._references[config]))
        except ContractBroken as error:
            raise Broken(f"{config} in {run} differs from the undisturbed run: {error}") from None
        self.equal += 1
        shutil.rmtree(run)

    def _train(self, config: str, kind: str, most: int) -> pathlib.Path:
        folder = Folder(self._storage / f"{kind}-{config.replace('/', '-')}")
        life, faults = self._start(config, folder), 0
        try:
            while True:
                if faults < most and not self._wait(life, folder, self._draw.uniform(0, 8)):
                    faults += 1
                    life = self._disturb(config, life, folder)
                    continue
                life.process.wait(PATIENCE)
                if folder.done():
                    return folder.path
                self._failed(
                    life, f"{config} ended with {life.process.returncode} before it was done"
                )
        finally:
            life.end(signal.SIGKILL)

    def _start(self, config: str, folder: Folder) -> Life:
        life, starts = Life(config, folder.path, self._workers), len(folder.starts())
        self._until(
            lambda: self._trains(folder, starts) or folder.done(), life, f"{config} does not start"
        )
        return life

    def _disturb(self, config: str, life: Life, folder: Folder) -> Life:
        fault = self._draw.choice(self._faults)
        starts, step, began = len(folder.starts()), folder.steps(), time.monotonic()
        if not FAULTS[fault](life, folder, self._draw) and life.process.poll() is None:
            return life
        if not folder.done() and life.process.poll() is not None:
            life = self._start(config, folder)
        self._until(
            lambda: self._trains(folder, starts) or folder.done(),
            life,
            f"no recovery from: {fault}",
        )
        if len(folder.starts()) > starts:
            recovery = Recovery(
                fault, time.monotonic() - began, max(0, step - folder.starts()[starts])
            )
            self.recoveries.append(recovery)
            print(
                f"{config} step {step}: {fault}; trains again after {recovery.seconds:.1f} s, "
                f"{recovery.repeated} steps repeated",
                flush=True,
            )
        return life

    def _trains(self, folder: Folder, starts: int) -> bool:
        """Whether a start after these has done steps."""
        later = folder.starts()[starts:]
        return bool(later) and folder.steps() > later[-1]

    def _wait(self, life: Life, folder: Folder, seconds: float) -> bool:
        """Waits; returns whether the run has ended meanwhile."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            life.process.wait(seconds)
        return life.process.poll() is not None or folder.done()

    def _until(self, holds: Callable[[], bool], life: Life, otherwise: str) -> None:
        until = time.monotonic() + PATIENCE
        while not holds():
            if time.monotonic() > until or (life.process.poll() is not None and not holds()):
                self._failed(life, otherwise)
            time.sleep(0.05)

    def _failed(self, life: Life, line: str) -> None:
        raise Broken(f"{line}:\n{life.last_words()}")


@contextlib.contextmanager
def small_disk(megabytes: int):
    """A file system of its own if this process may mount one, else a folder; yields it and whether it is one."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="soak-"))
    options = f"size={megabytes}m"
    mounted = not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], stderr=subprocess.DEVNULL
    ).returncode
    try:
        yield folder, mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", folder], check=True)
        shutil.rmtree(folder, ignore_errors=True)


def table(recoveries: Sequence[Recovery]) -> dict[str, dict[str, float]]:
    """Of each fault: how often, seconds to recover (median, most), steps repeated (median, most)."""
    rows = {}
    for fault in FAULTS:
        ours = [one for one in recoveries if one.fault == fault]
        if ours:
            seconds, steps = [one.seconds for one in ours], [one.repeated for one in ours]
            rows[fault] = {
                "times": len(ours),
                "seconds": round(statistics.median(seconds), 1),
                "most_seconds": round(max(seconds), 1),
                "repeated": statistics.median(steps),
                "most_repeated": max(steps),
            }
    return rows


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    line = parser.parse_args(arguments)
    # A soak that is ended leaves no gang and no disk behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    draw, until = random.Random(line.seed), time.monotonic() + 60 * line.minutes
    configs = list(TRAININGS)
    with small_disk(256) as (storage, own):
        faults = [fault for fault in FAULTS if own or fault != "disk full"]
        if not own:
            print("no disk is filled: only root may mount a small one")
        soak, problem = Soak(storage, line.workers, draw, faults), None
        try:
            for number in range(10**9):
                if time.monotonic() >= until and number:
                    break
                soak.round(configs[number % len(configs)])
        except Broken as error:
            problem = str(error)
    rows = table(soak.recoveries)
    shown = Table()
    for column in ("fault", "times", "seconds (median, most)", "steps repeated (median, most)"):
        shown.add_column(column, justify="left" if column == "fault" else "right")
    for fault, row in rows.items():
        seconds = f"{row['seconds']:g}, {row['most_seconds']:g}"
        shown.add_row(
            fault, f"{row['times']:g}", seconds, f"{row['repeated']:g}, {row['most_repeated']:g}"
        )
    Console().print(shown)
    total = {
        "seed": line.seed,
        "workers": line.workers,
        "faults": len(soak.recoveries),
        "equal_runs": soak.equal,
    }
    print(json.dumps(total | {"by_fault": rows}))
    if problem:
        print(problem, file=sys.stderr)
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
