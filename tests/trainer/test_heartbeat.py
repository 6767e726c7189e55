"""Workers that watch each other: who is missing is named on each that is left, which ends; who is done is not missing."""

from __future__ import annotations

import queue
import socket
import threading
import time

import pytest

from trainer import heartbeat
from trainer.exits import DataProblem
from trainer.heartbeat import Heartbeat

HOSTS = ["a:1", "b:2", "c:3"]
SECONDS = 2.0
REMEDY = "see its log, and start all workers again; they go on from the last checkpoint"


class UnavailableError(Exception):
    __module__ = "tensorflow.python.framework.errors_impl"


class Gang:
    """Three workers of this process, whose ends are recorded as (worker, code)."""

    def __init__(self, last_act=lambda missing: None):
        pairs = {number: socket.socketpair() for number in (1, 2)}
        self.ends: list[tuple[int, int]] = []
        self.ended = [threading.Event() for _ in HOSTS]
        self.connections = [{n: pair[0] for n, pair in pairs.items()}]
        self.connections += [{0: pair[1]} for pair in pairs.values()]
        self.workers = [
            Heartbeat(lines, HOSTS, number, SECONDS, last_act, end=self._end(number))
            for number, lines in enumerate(self.connections)
        ]

    def _end(self, number):
        def end(code):
            self.ends.append((number, code))
            self.ended[number].set()

        return end

    def wait(self, *workers):
        """The seconds until these have ended."""
        began = time.monotonic()
        for number in workers:
            assert self.ended[number].wait(20)
        return time.monotonic() - began

    def close(self):
        for lines in self.connections:
            for one in lines.values():
                one.close()


@pytest.fixture
def gang():
    made = Gang()
    yield made
    made.close()


@pytest.mark.parametrize(("lost", "left"), [(2, (0, 1)), (0, (1, 2))])
def test_a_closed_connection_is_a_worker_that_is_gone(lost, left, gang, capsys):
    for number in left:
        gang.workers[number].__enter__()
    for one in gang.connections[lost].values():
        one.close()
    assert gang.wait(*left) < SECONDS + 3
    assert sorted(gang.ends) == [(number, 75) for number in left]
    line = f"lockstep: worker {lost} ({HOSTS[lost]}) is gone: {REMEDY}"
    assert capsys.readouterr().err.splitlines() == [line] * 2


@pytest.mark.parametrize(("lost", "left"), [(1, (0, 2)), (0, (1, 2))])
def test_a_silent_worker_is_named_on_each_that_is_left(lost, left, gang, capsys):
    """Its connection stays, as that of a process that is stopped or behind a cut line; the first worker tells the others."""
    for number in left:
        gang.workers[number].__enter__()
    assert SECONDS - 0.5 < gang.wait(*left) < SECONDS + 5
    line = f"lockstep: worker {lost} ({HOSTS[lost]}) did not beat for 2 seconds, stopped or cut off: {REMEDY}"
    assert capsys.readouterr().err.splitlines() == [line] * 2


def test_workers_that_beat_or_are_done_are_not_missing(gang, capsys):
    """For twice the seconds: first all beat, then one is done and gone, then all are."""
    with gang.workers[0], gang.workers[1]:
        with gang.workers[2]:
            time.sleep(SECONDS)
        gang.connections[2][0].close()
        time.sleep(SECONDS * 1.5)
    assert (gang.ends, capsys.readouterr().err) == ([], "")


def test_the_first_worker_may_be_done_first(gang, capsys):
    with gang.workers[1], gang.workers[2]:
        with gang.workers[0]:
            pass
        for one in gang.connections[0].values():
            one.close()
        time.sleep(SECONDS * 1.5)
    assert (gang.ends, capsys.readouterr().err) == ([], "")


def test_an_error_of_its_own_is_not_hidden_by_the_same_one_of_another(gang, capsys):
    """Within a second of the other's end; this one's connection stays until its process has ended."""
    with pytest.raises(ValueError, match="own"), gang.workers[1]:
        gang.connections[0][1].close()
        time.sleep(0.2)
        raise ValueError("own")
    time.sleep(1.5)
    assert (gang.ends, capsys.readouterr().err) == ([], "")


def test_an_error_of_tensorflow_about_a_worker_waits_for_its_name(gang):
    """The thread is to end the process meanwhile."""
    began = time.monotonic()
    with pytest.raises(UnavailableError), gang.workers[1]:
        gang.connections[0][1].close()
        raise UnavailableError("Connection reset by peer")
    assert gang.ends == [(1, 75)]
    assert time.monotonic() - began < 2 * SECONDS


def test_what_is_being_written_is_waited_for_but_not_for_ever(monkeypatch):
    monkeypatch.setattr(heartbeat, "SAVING_SECONDS", 1.0)
    monkeypatch.setattr(heartbeat, "SETTLE_SECONDS", 0.0)
    wrote, never = [], threading.Event()

    def write(missing):
        time.sleep(0.3)
        wrote.append(str(missing))

    for act, least in ((write, 0.3), (lambda missing: never.wait(30), 1.0)):
        gang = Gang(act)
        gang.workers[1].__enter__()
        gang.connections[0][1].close()
        assert least <= gang.wait(1) < least + 5
        gang.close()
    never.set()
    assert wrote == [f"worker 0 (a:1) is gone: {REMEDY}"]


def test_what_is_being_written_is_waited_for_where_nobody_reads_what_is_said(monkeypatch):
    class Closed:
        def write(self, text):
            raise BrokenPipeError

        flush = write

    monkeypatch.setattr(heartbeat, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(heartbeat.sys, "stderr", Closed())
    wrote = []
    gang = Gang(wrote.append)
    gang.workers[1].__enter__()
    gang.connections[0][1].close()
    gang.wait(1)
    gang.close()
    assert len(wrote) == 1 and gang.ends == [(1, 75)]


def test_a_process_that_stood_still_itself_blames_nobody(gang, monkeypatch):
    """As when a whole gang is stopped and let go on."""
    clock, jump = time.monotonic, [0.0]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: clock() + jump[0])
    with gang.workers[0], gang.workers[1], gang.workers[2]:
        time.sleep(0.3)
        jump[0] = 100.0
        until = clock() + SECONDS * 1.5
        while clock() < until:
            time.sleep(0.05)
    assert gang.ends == []


def test_strange_words_mean_nothing(gang):
    with gang.workers[1]:
        for said in (b"\n\nhello\nbea", b"t\nbeat x y\n"):
            gang.connections[0][1].send(said)
            time.sleep(0.2)
    assert gang.ends == []


class Unread(Exception):
    """Data that cannot be read, or the error of collectives that were aborted for it."""


class Training(threading.Thread):
    """The main thread of a worker of a gang, which waits in a collective, or whose data fail.

    Attributes:
      step: for which it waits.
      left: the step at which it was to leave its collective.
      said: the line with which it ended.
    """

    def __init__(self, gang, worker, *, own=None, saves=lambda: None, deaf=False):
        super().__init__(daemon=True)
        self.beat, self.own, self.saves = gang.workers[worker], own, saves
        self.step, self.left, self.said = 7, None, None
        self.lines: queue.Queue = queue.Queue()
        self.beat._data_problem = lambda error: (
            DataProblem(str(error)) if isinstance(error, Unread) else None
        )
        self.beat._abort = (lambda line: None) if deaf else self.abort
        self.beat._stepping = lambda: self.step

    def abort(self, line):
        self.left = self.step
        self.lines.put(line)

    def run(self):
        try:
            with self.beat:
                line = self.own or self.lines.get()
                self.saves()
                raise Unread(line)
        except DataProblem as problem:
            self.said = str(problem)


def ended(*trainings):
    for training in trainings:
        training.join(20)
    return [training.said for training in trainings]


@pytest.mark.parametrize("failing", [0, 2])
def test_data_that_fail_on_one_worker_end_all_with_its_line(failing, gang, capsys):
    """Each once it is where that one was; the first saves meanwhile, for longer than a silent worker is waited for."""
    left = []

    def save():
        time.sleep(1.5 * SECONDS)
        left.extend(t for t in trainings if not t.is_alive())

    trainings = [
        Training(
            gang,
            number,
            own="shard 7: mend it" if number == failing else None,
            saves=save if number == 0 else lambda: None,
        )
        for number in range(3)
    ]
    trainings[1].step = 6
    for training in trainings:
        training.start()
    time.sleep(1.0)
    trainings[1].step = 7
    assert ended(*trainings) == [f"worker {failing} ({HOSTS[failing]}): shard 7: mend it"] * 3
    assert [t.left for t in trainings] == [None if t.own else 7 for t in trainings]
    assert (left, gang.ends, capsys.readouterr().err) == ([], [], "")


def test_data_that_fail_on_two_workers_at_once_are_told_by_each(gang):
    trainings = [Training(gang, number, own=f"shard {number}") for number in (0, 2)]
    trainings.append(Training(gang, 1))
    for training in trainings:
        training.start()
    first, last, other = ended(*trainings)
    assert (first, last) == ("worker 0 (a:1): shard 0", "worker 2 (c:3): shard 2")
    assert other in (first, last) and gang.ends == []


def test_a_worker_that_does_not_leave_its_collectives_ends_as_if_the_other_were_gone(
    gang, monkeypatch, capsys
):
    monkeypatch.setattr(heartbeat, "SAVING_SECONDS", 1.0)
    deaf = Training(gang, 0, deaf=True)
    failing, other = Training(gang, 1, own="shard 7"), Training(gang, 2)
    for training in (deaf, failing, other):
        training.start()
    assert 1 <= gang.wait(0) < 10
    for one in gang.connections[0].values():
        one.close()
    assert ended(failing, other) == ["worker 1 (b:2): shard 7"] * 2
    assert gang.ends == [(0, 75)]
    assert capsys.readouterr().err == f"lockstep: worker 1 (b:2) is gone: {REMEDY}\n"
    deaf.lines.put("shard 7")
