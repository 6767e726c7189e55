"""Whether the other workers are still there while they train: each beats, and who is silent is missing.

TensorFlow's own heartbeat aborts collectives, but does not say that it is the first worker that has stopped, ends a run for one
beat that comes late, and is heard only once the main thread comes to a collective. So the connections by which the workers have
met stay open: all beat to the first worker and it to all, and it tells the others who is missing; that it is missing itself each
of them sees alone. Nobody can go on without the missing one, so the process ends, by a thread, wherever the main one is.

A worker whose data fail is not missing: it says what it cannot read, all leave their collectives with that, the first worker
saves, and all end once it is done.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType

from trainer.exits import DataProblem, LostPeer, UserError
from trainer.peers import gone, lost, name, silent

BEATS = 5
"""In the time after which a silent worker is missing."""
SETTLE_SECONDS = 1.0
"""From a connection's end to this process's: where all workers fail alike, each may still say why by itself."""
SAVING_SECONDS = 60.0
"""How long the end waits for what is being written, and for a main thread that is to leave its collectives."""
TICK_SECONDS = 0.1
BEAT, BYE, GONE, SILENT = b"beat", b"bye", b"gone", b"silent"
DATA, OUT = b"data", b"out"
"""This worker's data failed: its number, its step, the line. This worker has left its collectives since another's failed."""


@dataclasses.dataclass
class _Peer:
    """Another worker: when it was heard last, its words so far without an end of line, and whether it needs nobody any more."""

    connection: socket.socket
    heard: float
    text: bytes = b""
    closed: bool = False
    out: bool = False

    def words(self) -> list[bytes]:
        """What it has said; marks it closed where there is nothing to come."""
        try:
            said = self.connection.recv(4096)
        except BlockingIOError:
            return []
        except OSError:
            said = b""
        self.closed = not said
        if said:
            self.heard = time.monotonic()
        *words, self.text = (self.text + said).split(b"\n")
        return words


class Heartbeat:
    """A context in which the workers watch each other; leaving it without an error tells them that this one is done.

    An error of the data, or the one with which collectives were aborted for another worker's, becomes a DataProblem that names
    the worker, once the other workers do not need this one any more.

    Args:
      connections: from `peers.meet`: on the first worker to all others, on these to the first.
      hosts: "name:port" of all workers.
      worker: which of them this is.
      seconds: of silence after which a worker is missing.
      last_act: is called in a thread before the end, and given up after `SAVING_SECONDS`.
      stepping: the step for which the main thread waits, and -1 where it is not between two steps of a loop.
      end: ends the process with an exit code.
      data_problem: what an error says of the data, None if it is of something else.
      abort: makes all collectives fail with an error in which `data_problem` finds this line.
    """

    def __init__(
        self,
        connections: Mapping[int, socket.socket],
        hosts: Sequence[str],
        worker: int,
        seconds: float,
        last_act: Callable[[LostPeer], None] = lambda missing: None,
        stepping: Callable[[], int] = lambda: -1,
        *,
        end: Callable[[int], None] = os._exit,
        data_problem: Callable[[BaseException], UserError | None] = lambda error: None,
        abort: Callable[[str], None] = lambda line: None,
    ) -> None:
        now = time.monotonic()
        self._peers = {number: _Peer(one, now) for number, one in connections.items()}
        self._hosts, self._worker, self._seconds = hosts, worker, seconds
        self._last_act, self._stepping, self._end = last_act, stepping, end
        self._data_problem, self._abort = data_problem, abort
        self._left, self._ending, self._out = (threading.Event() for _ in range(3))
        self._found: LostPeer | None = None
        self._heard: str | None = None
        self._patience = (float("inf"), 0)
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        now = time.monotonic()
        for peer in self._peers.values():
            peer.connection.setblocking(False)
            peer.heard = now
        self._thread.start()
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        problem = None if error is None else self._data_problem(error)
        if problem:
            problem = self._leave_with_all(str(problem))
        elif error and isinstance(lost(error, self._hosts, self._worker), LostPeer):
            # TensorFlow was faster; the thread knows better who it is.
            self._ending.wait(self._seconds + 2 * SETTLE_SECONDS)
        self._left.set()
        self._thread.join()
        peers = self._peers.values()
        if error is None or problem:
            _tell(peers, BYE)
        else:
            # The others learn of it when the process has ended, with an exit code of its own before theirs.
            for peer in peers:
                peer.connection.detach()
        if problem:
            raise problem from error

    def _leave_with_all(self, line: str) -> DataProblem:
        """Says that this worker is out of its collectives, and waits for the others; returns what to end with."""
        word = OUT
        if line != self._heard:
            word = b"%s %d %d %s" % (DATA, self._worker, self._stepping(), line.encode())
            line = f"{name(self._hosts, [self._worker])}: {line}"
        self._out.set()
        _tell(self._peers.values(), word)
        self._thread.join()
        return DataProblem(line)

    # ------------------------------------------------------------------ the thread

    def _watch(self) -> None:
        interval = self._seconds / BEATS
        turn = time.monotonic()
        beat, until = turn, float("inf")
        with selectors.DefaultSelector() as selector:
            for number, peer in self._peers.items():
                selector.register(peer.connection, selectors.EVENT_READ, number)
            while self._peers and not self._left.is_set():
                for key, _ in selector.select(min(TICK_SECONDS, interval)):
                    self._hear(key.data)
                    if key.data not in self._peers or self._peers[key.data].closed:
                        selector.unregister(key.fileobj)
                now = time.monotonic()
                if now - turn > 2 * interval:
                    # It was this process that stood still, perhaps all of them.
                    for peer in self._peers.values():
                        peer.heard = now
                turn = now
                if now >= beat:
                    _tell(self._peers.values(), BEAT)
                    beat = now + interval
                if self._out.is_set():
                    if self._found or all(map(self._is_out, self._peers.values())):
                        return
                elif self._heard is not None:
                    self._lose_patience(now)
                elif self._found is None:
                    self._look(now, interval)
                if self._found and until == float("inf"):
                    until = now + SETTLE_SECONDS
                if now >= until:
                    self._finish()
                    return

    def _hear(self, number: int) -> None:
        """Takes in what a peer has said."""
        peer = self._peers[number]
        for line in filter(None, peer.words()):
            word, *rest = line.split()
            if self._out.is_set() or self._heard is not None:
                peer.out |= word == BYE or (self._worker == 0 and word in (OUT, DATA))
            elif word == DATA:
                peer.out = self._worker == 0
                self._leave_collectives(number, line)
            elif word == BYE:
                if number == 0:
                    self._peers.clear()
                self._peers.pop(number, None)
                return
            elif word in (GONE, SILENT) and self._found is None:
                self._found = self._missing(word, [int(one) for one in rest])

    def _leave_collectives(self, number: int, said: bytes) -> None:
        """Has the main thread learn of the data of another worker, once it is where that one was."""
        _tell((peer for other, peer in self._peers.items() if other != number), said)
        _, worker, step, line = said.split(b" ", 3)
        self._heard = f"{name(self._hosts, [int(worker)])}: {line.decode()}"
        self._patience = (time.monotonic() + SAVING_SECONDS, int(worker))
        # What is asked here could wait for a device.
        threading.Thread(target=self._abort_at, args=(int(step), self._heard), daemon=True).start()

    def _abort_at(self, step: int, line: str) -> None:
        # Before that, the last collective of the step before may not be done here.
        while self._stepping() < step:
            time.sleep(TICK_SECONDS)
        self._abort(line)

    def _is_out(self, peer: _Peer) -> bool:
        return peer.out or peer.closed or time.monotonic() - peer.heard > self._seconds

    def _lose_patience(self, now: float) -> None:
        until, worker = self._patience
        if now > until and self._found is None:
            self._found = gone(self._hosts, [worker])

    def _look(self, now: float, interval: float) -> None:
        """Finds who is missing, and tells the others."""
        quiet = {number: now - peer.heard for number, peer in self._peers.items()}
        word, missing = GONE, [number for number, peer in self._peers.items() if peer.closed]
        if not missing and max(quiet.values(), default=0.0) > self._seconds:
            # Of several that fell silent together, some have beaten a little later.
            word = SILENT
            missing = [n for n, seconds in quiet.items() if seconds > self._seconds - interval]
        if missing:
            self._found = self._missing(word, missing)
            others = [peer for number, peer in self._peers.items() if number not in missing]
            _tell(others, b" ".join([word, *(b"%d" % number for number in missing)]))

    def _missing(self, word: bytes, workers: Sequence[int]) -> LostPeer:
        if word == GONE:
            return gone(self._hosts, workers)
        return silent(self._hosts, workers, self._seconds)

    def _finish(self) -> None:
        """Says who is missing, and ends the process once what is being written is written."""
        missing = self._found
        assert missing is not None
        self._ending.set()

        def act() -> None:
            with contextlib.suppress(OSError):  # Nobody may read it any more.
                print(f"lockstep: {missing}", file=sys.stderr, flush=True)
            self._last_act(missing)

        # Neither a terminal nor a disk that stands still may hold the end.
        last = threading.Thread(target=act, daemon=True)
        last.start()
        last.join(SAVING_SECONDS)
        self._end(missing.code)


def _tell(peers: Iterable[_Peer], word: bytes) -> None:
    for peer in peers:
        with contextlib.suppress(OSError):  # Reading finds what became of it.
            peer.connection.send(word + b"\n")
