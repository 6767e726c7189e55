"""Storage that fails under a training: one line, the code that says so, and the same bits once it is mended."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.runs import assert_equal, results
from tests.trainer.objectives import Regression, experiment, points, quiet
from trainer import checkpoint, durable, lock, main, verify
from trainer.hardware import Hardware
from trainer.metrics import MetricWriter

TINY = (
    "train vae/digits_mlp --strategy=one_device --steps_per_loop=2 --gin_param=MLPEncoder.widths=(8,) "
    "--gin_param=MLPDecoder.widths=(8,) --gin_param=VAE.latent=2 --gin_param=Experiment.samples=0 "
    "--gin_param=STEPS=10 --gin_param=Experiment.log_every=2 --gin_param=Experiment.checkpoint_every=2 "
    "--gin_param=Experiment.evaluate_every=0 --gin_param=Experiment.best_metric=None "
    "--gin_param=Experiment.keep_checkpoints=9"
).split()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert main.main([*TINY, f"--workdir={folder}"]) == 0
    return folder


def ends(folder: Path, code: int, capsys: pytest.CaptureFixture) -> str:
    """The last line of a training that must end with this code, and tell no more than that."""
    capsys.readouterr()
    assert main.main([*TINY, f"--workdir={folder}"]) == code
    _, said = capsys.readouterr()
    assert "Traceback" not in said
    lines = said.splitlines()
    assert sum(line.startswith("lockstep: ") for line in lines) == (code != 0)
    return lines[-1] if lines else ""


def goes_on(folder: Path, undisturbed: Path, capsys: pytest.CaptureFixture) -> None:
    ends(folder, 0, capsys)
    assert_equal(results(folder), results(undisturbed))
    assert verify.verify(folder).problem is None


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="knows files by /proc")
def test_a_disk_that_is_full_whatever_is_written_then(
    tmp_path: Path,
    undisturbed: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Half of the data is written of an event, a row of metrics, a checkpoint and DONE, one start after the other."""
    folder, write = tmp_path / "run", os.write
    saved = []
    for name, call in (("events.jsonl", 3), ("metrics.jsonl", 2), (".step-", 2), (".DONE", 1)):
        calls = 0

        def full(file: int, data: bytes, name: str = name, call: int = call) -> int:
            nonlocal calls
            if name in os.path.basename(os.readlink(f"/proc/self/fd/{file}")):
                calls += 1
                if calls == call:
                    write(file, data[: len(data) // 2])
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(file, data)

        with monkeypatch.context() as patched:
            patched.setattr(os, "write", full)
            line = ends(folder, 73, capsys)
        assert "o space left on device" in line and "make room" in line, name
        assert calls >= call
        assert verify.verify(folder).problem is None  # What was saved before is whole.
        saved.append(max(checkpoint.Checkpoints(folder / "checkpoints", 9).steps(), default=0))
    assert saved == sorted(saved) and saved[-1] == 10
    goes_on(folder, undisturbed, capsys)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here ({error})")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_file_system_that_is_full(
    small_disk: Path, undisturbed: Path, capsys: pytest.CaptureFixture
) -> None:
    """In the midst of a training, and again at the next start, which finds no room at all."""
    folder, ballast = small_disk / "run", small_disk / "ballast"
    needed = sum(4096 * -(-path.stat().st_size // 4096) for path in undisturbed.rglob("*"))
    room = int(0.7 * needed)
    ballast.write_bytes(bytes(os.statvfs(small_disk).f_bavail * 4096 - room))
    line = ends(folder, 73, capsys)
    assert "o space left on device" in line and "make room" in line
    saved = checkpoint.Checkpoints(folder / "checkpoints", 9).steps()
    assert saved and saved[-1] < 10
    with contextlib.suppress(OSError), (small_disk / "rest").open("wb", buffering=0) as rest:
        while True:
            rest.write(bytes(4096))
    assert "o space left on device" in ends(folder, 73, capsys)
    assert checkpoint.Checkpoints(folder / "checkpoints", 9).steps() == saved
    assert verify.verify(folder).problem is None
    ballast.unlink()
    goes_on(folder, undisturbed, capsys)


def test_a_file_system_that_is_read_only(small_disk: Path, capsys: pytest.CaptureFixture) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert ends(small_disk / "run", 73, capsys) == (
        f"lockstep: workdir {small_disk}/run cannot be made or written (read-only file system): choose another --workdir"
    )


@pytest.mark.skipif(not lock.machine(), reason="whether a process is gone is seen in /proc")
def test_a_workdir_that_vanishes_or_is_taken_over(
    tmp_path: Path,
    undisturbed: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a save in the midst of a training; brought back, it goes on. Nothing is written where it was, or by who lost it."""
    folder, away, write = tmp_path / "run", tmp_path / "away", checkpoint.write

    def vanish(*_: object) -> None:
        folder.rename(away)

    def unmount(*_: object) -> None:
        vanish()
        folder.mkdir()

    def take_over(*_: object) -> None:
        owner = lock.Owner.here("lockstep train other", 60.0)
        newest = lock._newest(folder)
        lock._path(folder, newest + 1).write_bytes(lock._text(owner))

    for fault, step, says in (
        (vanish, 2, "is not what it was ("),
        (unmount, 4, "is not what it was ("),
        (take_over, 6, "was taken over by process "),
    ):

        def then(
            path: Path, snapshot: checkpoint.Snapshot, check: object, step=step, fault=fault
        ) -> None:
            write(path, snapshot, check)
            if snapshot.step == step:
                fault()

        with monkeypatch.context() as patched:
            patched.setattr(checkpoint, "write", then)
            line = ends(folder, 73, capsys)
        assert line.startswith(f"lockstep: workdir {folder} {says}")
        if fault is vanish:
            assert not folder.exists()
        elif fault is unmount:
            assert list(folder.iterdir()) == []
            folder.rmdir()
        if away.exists():
            away.rename(folder)
        assert checkpoint.Checkpoints(folder / "checkpoints", 9).steps()[-1] == step
        # The owner of the lock is this process, which is there.
        assert "is in use by process" in ends(folder, 73, capsys)
        newest = lock._path(folder, lock._newest(folder))
        newest.write_text(json.dumps(json.loads(newest.read_text()) | {"started": 1}))
    goes_on(folder, undisturbed, capsys)
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    found = [event for event in events if event["event"] == "takeover"]
    assert [event["owner"]["pid"] for event in found] == [os.getpid()] * 3


# ---------------------------------------------------------------------- slow storage


def regression(**fields: object):
    usual = {"steps": 24, "log_every": 4, "checkpoint_every": 12, "seed": 5}
    return experiment(Regression, points(21), **(usual | fields))


LOOPS_OF_2 = Hardware(strategy="one_device", steps_per_loop=2)


def saves(folder: Path) -> list[dict]:
    events = (json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines())
    return [event for event in events if event["event"] == "save"]


def test_a_training_goes_on_while_a_slow_save_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The save of step 12, rows of metrics first, does not end before step 20 is made: else both would wait for ever."""
    trainer, write, sync = quiet(regression(), LOOPS_OF_2, tmp_path), durable.write, durable.sync
    reached, slow, threads = threading.Event(), [], set()

    def storage(original, path, *more):
        if (
            threading.current_thread() is not threading.main_thread()
            and path.parent != tmp_path.parent
        ):
            slow.append((path.name, reached.wait(60)))
            time.sleep(0.1)
        threads.add((path.name, threading.current_thread() is threading.main_thread()))
        return original(path, *more)

    monkeypatch.setattr(durable, "write", lambda *args: storage(write, *args))
    monkeypatch.setattr(durable, "sync", lambda *args: storage(sync, *args))
    row = MetricWriter.write

    def watched(self, step, *more):
        if step == 20:
            reached.set()
        return row(self, step, *more)

    monkeypatch.setattr(MetricWriter, "write", watched)
    trainer.train()
    assert all(in_time for _, in_time in slow)
    assert slow[0][0] == "metrics.jsonl"
    assert ("step-00000012.safetensors", False) in threads
    assert ("step-00000012.safetensors", True) not in threads
    assert ("metrics.jsonl", True) not in threads
    one, other = saves(tmp_path)
    assert (one["step"], other["step"]) == (12, 24)
    assert one["seconds"] >= 0.3
    assert one["waited"] < one["seconds"] / 2


def test_the_training_thread_waits_for_no_write_that_is_done_before_the_next_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each write takes two seconds; of these the training thread spends none in a save, but for copies from the device."""
    delay = 2.0
    trainer = quiet(regression(steps=8, log_every=2, checkpoint_every=4), LOOPS_OF_2, tmp_path)
    snapshot, save = trainer._kept.snapshot, trainer._kept.save
    write, row = durable.write, MetricWriter.write
    copies, spent = [], []

    def timed(seconds: list[float], function, *arguments):
        began = time.perf_counter()
        result = function(*arguments)
        seconds.append(time.perf_counter() - began)
        return result

    def slow(path, *more):
        if path.suffix == ".safetensors":
            time.sleep(delay)
        write(path, *more)

    def written_before(self, step, *more):
        if step == 6:
            trainer.checkpoints.flush()
        return row(self, step, *more)

    monkeypatch.setattr(trainer._kept, "snapshot", lambda: timed(copies, snapshot))
    monkeypatch.setattr(trainer._kept, "save", lambda writer: timed(spent, save, writer))
    monkeypatch.setattr(durable, "write", slow)
    monkeypatch.setattr(MetricWriter, "write", written_before)
    trainer.train()
    assert [event["step"] for event in saves(tmp_path)] == [4, 8]
    for event, copy, seconds in zip(saves(tmp_path), copies, spent, strict=True):
        assert event["seconds"] >= delay
        assert max(event["waited"], seconds) - copy < delay / 2


def test_seconds_of_snapshots_and_of_saves_that_are_too_slow_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second save that must wait for the first, and copies from a device that is slow."""
    trainer = quiet(regression(steps=4, checkpoint_every=2), LOOPS_OF_2, tmp_path)
    snapshot, write = trainer._kept.snapshot, durable.write

    def slow_snapshot():
        time.sleep(0.2)
        return snapshot()

    def slow_write(path, *more):
        if path.suffix == ".safetensors":
            time.sleep(0.8)
        write(path, *more)

    monkeypatch.setattr(trainer._kept, "snapshot", slow_snapshot)
    monkeypatch.setattr(durable, "write", slow_write)
    trainer.train()
    one, other = saves(tmp_path)
    assert 0.2 <= one["waited"] < 0.8 <= one["seconds"]
    assert one["waited"] + 0.2 < other["waited"]
