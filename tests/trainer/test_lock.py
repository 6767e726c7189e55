"""One run in a workdir at a time: who is refused, who takes over, and that nobody writes who has lost it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from trainer import checkpoint, lock, peers
from trainer.environment import Workers
from trainer.exits import CannotCreate, UserError, WorkdirInUse

ROOT = pathlib.Path(__file__).resolve().parents[2]
STALE = 1.0
"""Seconds of the locks of these tests; a holder touches them twelve times within."""

HOLDER = """
import pathlib, sys
from trainer import lock
elsewhere, workdir = sys.argv[1:]
if elsewhere:
    lock.machine = lambda: elsewhere
with lock.take(pathlib.Path(workdir), "lockstep train a", stale_seconds=1.0) as held:
    print(held.generation, flush=True)
    for line in sys.stdin:
        try:
            held.check()
            print("mine", flush=True)
        except Exception as error:
            print(f"{type(error).__name__} {error.code}: {error}", flush=True)
"""


class Holder:
    """A process that has the lock, and answers whether it may write."""

    def __init__(self, workdir, elsewhere=""):
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, elsewhere, str(workdir)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.generation = int(self.process.stdout.readline())

    def asks(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def ends(self):
        self.process.stdin.close()
        assert self.process.wait(timeout=60) == 0


@contextlib.contextmanager
def holder(workdir, elsewhere=""):
    one = Holder(workdir, elsewhere)
    try:
        yield one
    finally:
        one.process.kill()
        one.process.wait()
        one.process.stdin.close()
        one.process.stdout.close()


def take(workdir, **fields):
    notes = []
    return lock.take(workdir, "lockstep train b", notes.append, **fields), notes


def files(workdir):
    return sorted(path.name for path in (workdir / "lock").iterdir())


def test_a_free_lock_is_taken_told_of_and_given_back(tmp_path):
    for generation in (1, 2):
        held, notes = take(tmp_path)
        with held:
            said = json.loads((tmp_path / f"lock/{generation:08d}.json").read_text())
            assert (held.generation, held.before, notes) == (generation, None, [])
            assert (said["pid"], said["host"]) == (os.getpid(), socket.gethostname())
            assert (said["command"], said["released"]) == ("lockstep train b", False)
            held.check()
            assert files(tmp_path) == [f"{generation:08d}.json"]
        assert json.loads((tmp_path / f"lock/{generation:08d}.json").read_text())["released"]


def test_a_second_run_is_refused_with_who_holds_it_and_since_when(tmp_path):
    """At once on the same machine, even if the holder is stopped and touches nothing."""
    with holder(tmp_path) as first:
        said = json.loads((tmp_path / "lock/00000001.json").read_text())
        os.kill(first.process.pid, signal.SIGSTOP)
        time.sleep(1.5 * STALE)
        began = time.monotonic()
        with pytest.raises(WorkdirInUse) as error:
            take(tmp_path)
        assert time.monotonic() - began < STALE
        assert str(error.value) == (
            f"workdir {tmp_path} is in use by process {first.process.pid} on {socket.gethostname()} since {said['time']} "
            "(lockstep train a): let it end, or choose another --workdir"
        )
        assert error.value.code == 73  # Not one that leads schedulers to start it again.
        os.kill(first.process.pid, signal.SIGCONT)
        assert first.asks() == "mine"
        first.ends()
    held, _ = take(tmp_path)
    assert (held.generation, held.before) == (2, None)


@pytest.mark.skipif(not lock.machine(), reason="whether a process is gone is seen in /proc")
def test_the_lock_of_a_killed_process_is_taken_over_at_once(tmp_path):
    with holder(tmp_path) as first:
        first.process.kill()
        # Not waited for: until its parent asks it is a zombie, which holds nothing.
        os.waitid(os.P_PID, first.process.pid, os.WEXITED | os.WNOWAIT)
        began = time.monotonic()
        held, (note,) = take(tmp_path)
        assert time.monotonic() - began < STALE
    assert (held.generation, held.before.pid) == (2, first.process.pid)
    assert note == (
        f"took {tmp_path} over from process {first.process.pid} on {socket.gethostname()}, which is gone"
    )
    assert files(tmp_path) == ["00000002.json"]


def leave(workdir, **fields):
    """A lock of this process that nobody touches, with some of its fields changed."""
    owner = lock.Owner.here("lockstep train a", STALE)
    (workdir / "lock").mkdir(exist_ok=True)
    path = workdir / "lock/00000004.json"
    path.write_text(json.dumps(dataclasses.asdict(dataclasses.replace(owner, **fields))))
    return path


@pytest.mark.skipif(not lock.machine(), reason="whether a process is gone is seen in /proc")
def test_a_process_id_that_was_used_again_is_not_taken_for_the_holder(tmp_path):
    leave(tmp_path)
    with pytest.raises(WorkdirInUse):
        take(tmp_path)
    leave(tmp_path, started=lock.Owner.here("", 1).started - 1)
    held, notes = take(tmp_path)
    assert (held.generation, held.before.pid, len(notes)) == (5, os.getpid(), 1)


@pytest.mark.parametrize("what", ["another machine", "no process table", "torn"])
def test_a_holder_that_cannot_be_seen_is_watched(what, tmp_path, monkeypatch):
    """For as long as its own lock says, by the watcher's clock: that of the other may be years ahead."""
    monkeypatch.setattr(lock, "STALE_SECONDS", STALE)
    path = leave(
        tmp_path,
        **{"another machine": {"machine": "other"}, "no process table": {"started": None}}.get(
            what, {}
        ),
    )
    if what == "torn":
        path.write_bytes(b"")
    os.utime(path, (time.time() + 1e8,) * 2)
    began = time.monotonic()
    held, notes = take(tmp_path)
    assert time.monotonic() - began >= STALE
    assert held.generation == 5
    assert "for 1 seconds" in notes[0] and notes[1].startswith(f"took {tmp_path} over from ")
    held.check()


def test_a_holder_elsewhere_that_touches_its_lock_is_let_be(tmp_path):
    with holder(tmp_path, "elsewhere") as first:
        with pytest.raises(WorkdirInUse, match=f"in use by process {first.process.pid} on "):
            take(tmp_path)
        assert first.asks() == "mine"


def test_a_holder_elsewhere_that_ends_while_it_is_watched_gives_way(tmp_path):
    path = leave(tmp_path, machine="other")
    released = json.dumps(json.loads(path.read_text()) | {"released": True})
    threading.Timer(0.3 * STALE, path.write_text, [released]).start()
    held, _ = take(tmp_path)
    assert (held.generation, held.before) == (5, None)


def test_a_stopped_process_that_lost_its_lock_writes_no_more(tmp_path):
    """Of another machine, where it is not seen that it is only stopped: it ends at its next write."""
    with holder(tmp_path, "elsewhere") as first:
        assert first.asks() == "mine"
        os.kill(first.process.pid, signal.SIGSTOP)
        held, notes = take(tmp_path)
        with held:
            assert (held.generation, len(notes)) == (2, 2)
            os.kill(first.process.pid, signal.SIGCONT)
            said = first.asks()
            assert said.startswith(
                f"WorkdirInUse 73: workdir {tmp_path} was taken over by process {os.getpid()} on "
            )
            assert said.endswith(": it writes no more and ends")
            first.ends()  # Which must not give back what is another's.
            held.check()
        assert files(tmp_path) == ["00000002.json"]


@pytest.mark.parametrize("how", ["removed", "emptied", "replaced"])
def test_a_workdir_that_vanishes_is_noticed(how, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    with take(workdir)[0] as held:
        workdir.rename(tmp_path / "away")
        if how != "removed":
            workdir.mkdir()
        if how == "replaced":
            leave(workdir)
        with pytest.raises(WorkdirInUse if how == "replaced" else CannotCreate) as error:
            held.check()
        assert error.value.code == 73 and str(workdir) in str(error.value)
    assert not (workdir / "lock/00000001.json").exists()  # Giving it back makes nothing.


def race(workdir, takers):
    """How many of so many threads that all want the lock get it."""
    ready = threading.Barrier(takers)

    def one(_):
        ready.wait()
        try:
            return lock.take(workdir, "lockstep train")
        except WorkdirInUse:
            return None

    with concurrent.futures.ThreadPoolExecutor(takers) as pool:
        return [held for held in pool.map(one, range(takers)) if held]


@pytest.mark.skipif(not lock.machine(), reason="whether a process is gone is seen in /proc")
@pytest.mark.parametrize("links", [True, False])
def test_of_several_that_take_over_at_once_one_wins(links, tmp_path, monkeypatch):
    if not links:

        def link(*paths):
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

        monkeypatch.setattr(os, "link", link)
        monkeypatch.setattr(lock, "STALE_SECONDS", 0.3)  # For a file that is not written yet.
    for number in range(20):
        workdir = tmp_path / str(number)
        workdir.mkdir()
        leave(workdir, started=1)
        winners = [held for held in race(workdir, 4) if _has(held)]
        assert len(winners) == 1
        assert files(workdir)[-1] == f"{winners[0].generation:08d}.json"


def _has(held):
    with contextlib.suppress(UserError):
        held.check()
        return True
    return False


def test_a_listing_that_is_late_lets_nobody_in_beside_the_holder(tmp_path, monkeypatch):
    """Of generation 2, while 3 to 5 have come and 5 has cleaned up."""
    leave(tmp_path, machine="other").rename(tmp_path / "lock/00000005.json")
    true, answers = lock._newest, iter([2])
    monkeypatch.setattr(lock, "_newest", lambda workdir: next(answers, None) or true(workdir))
    monkeypatch.setattr(
        lock,
        "_read",
        lambda path, read=lock._read: released() if "02.json" in path.name else read(path),
    )

    def released():
        return dataclasses.replace(lock.Owner.here("", STALE), released=True)

    held, _ = take(tmp_path)
    assert held.generation == 6 and held.before.machine == "other"
    assert files(tmp_path) == ["00000006.json"]


def test_an_answer_that_was_lost_is_no_refusal(tmp_path, monkeypatch):
    """NFS asks again when an answer does not come, and is told that the file is there."""
    link = os.link

    def twice(source, target):
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", twice)
    held, _ = take(tmp_path)
    assert held.generation == 1
    held.check()


def test_a_checkpoint_of_one_that_lost_the_lock_is_not_written(tmp_path):
    """Also if it was lost while the file was being written: it is not renamed, and nothing is removed."""
    one = checkpoint.Snapshot(1, {"w": np.arange(3.0)}, {"best": {}})
    with take(tmp_path)[0] as held:
        checkpoints = checkpoint.Checkpoints(tmp_path / "checkpoints", 1, held.check)
        checkpoints.save(one, None)
        checkpoints.wait()
        before = lambda: leave(tmp_path, machine="other")  # noqa: E731
        checkpoints.save(dataclasses.replace(one, step=2), None, before=before)
        with pytest.raises(WorkdirInUse):
            checkpoints.wait()
        checkpoints.save(dataclasses.replace(one, step=3), None)
        with pytest.raises(WorkdirInUse):
            checkpoints.wait()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [
        "step-00000001.safetensors"
    ]


# ---------------------------------------------------------------------- several workers


def test_only_the_first_worker_takes_it_and_a_take_over_is_recorded(tmp_path):
    hosts = ("127.0.0.1:1", "127.0.0.1:2")
    with lock.held(tmp_path, "lockstep", Workers(hosts, 1, "flags"), print) as fence:
        fence()
        assert not list(tmp_path.iterdir())
    leave(tmp_path, machine="other", host="lost", pid=7, time="then")
    with lock.held(tmp_path, "lockstep", Workers(hosts, 0, "flags"), lambda line: None) as fence:
        fence()
        (event,) = map(json.loads, (tmp_path / "events.jsonl").read_text().splitlines())
        assert (event["event"], event["generation"]) == ("takeover", 5)
        assert event["owner"] == {"host": "lost", "pid": 7, "since": "then"}


def test_the_other_workers_hear_of_the_refusal(tmp_path):
    """They wait for the first one to meet them, and end as it does, well before they would give up."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    hosts = tuple(f"127.0.0.1:{one.getsockname()[1]}" for one in sockets)
    for one in sockets:
        one.close()
    leave(tmp_path)

    def worker(index):
        try:
            with lock.held(tmp_path, "lockstep", Workers(hosts, index, "flags"), lambda line: None):
                peers.meet(hosts, index, 100)
        except UserError as error:
            return error.code, str(error)

    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        answers = set(pool.map(worker, range(3)))
    ((code, line),) = answers
    assert code == 73 and line.startswith(
        f"workdir {tmp_path} is in use by process {os.getpid()} on "
    )
    assert time.monotonic() - began < 50
