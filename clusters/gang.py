"""Workers on this machine that live and die together, and are started again from their last checkpoint."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO

from trainer.exits import PreemptedExit
from trainer.output import say
from trainer.preemption import SIGNALS, stop_signal

PR_SET_PDEATHSIG = 1
PASSED_ON = (*SIGNALS, signal.SIGINT)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gang:
    """How workers are started, and started again.

    Attributes:
      command: of a worker; `--hosts=… --worker=i` follows.
      workers: at the start.
      least: never fewer than so many; each loss of a worker by a signal takes one off down to it.
      restarts: how often, after one of them asked for it (75) or was ended by a signal.
      grace: seconds from SIGTERM to SIGKILL for those that are left when one has failed.
      note: is told, in one line each, what happens.
    """

    command: tuple[str, ...]
    workers: int
    least: int
    restarts: int = 0
    grace: float = 30.0
    note: Callable[[str], None] = print

    def run(self) -> int:
        """Runs until all are done or one has failed for good; returns the exit code of the first that failed, as a shell does.

        SIGTERM, SIGUSR2 and SIGINT are passed on to all, and end it. To be called by the main thread, which takes the signals.
        """
        workers, restart = self.workers, 0
        while True:
            attempt = _Attempt(self, workers)
            code = attempt.run()
            again = code == PreemptedExit.code or code < 0
            if not again or attempt.asked or restart == self.restarts:
                return code if code >= 0 else 128 - code
            restart += 1
            if code < 0:
                workers = max(self.least, workers - 1)
            self.note(f"restart {restart} of {self.restarts} with {workers} workers")


class _Attempt:
    """One life of a gang."""

    def __init__(self, gang: Gang, workers: int) -> None:
        self.asked = False
        """Whether this process was told to stop."""
        self._gang, self._count = gang, workers
        self._alive: dict[int, subprocess.Popen[bytes]] = {}
        self._ended: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()

    def run(self) -> int:
        """Returns the exit code of the first worker that failed, negative for a signal, or 0."""
        with self._passing_on():
            try:
                self._start()
                return self._wait()
            finally:
                self._signal(signal.SIGKILL)

    def _start(self) -> None:
        hosts = ",".join(f"127.0.0.1:{port}" for port in free_ports(self._count))
        threads = []
        for worker in range(self._count):
            process = subprocess.Popen(
                [*self._gang.command, f"--hosts={hosts}", f"--worker={worker}"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                # Ctrl-C in a terminal comes to this process alone, which passes it on.
                process_group=0,
                preexec_fn=_end_with_parent(os.getpid()),
            )
            self._alive[worker] = process
            threads.append(threading.Thread(target=self._attend, args=(worker, process)))
        numbers = ", ".join(str(process.pid) for process in self._alive.values())
        self._gang.note(f"{self._count} workers, processes {numbers}")
        if self.asked:  # Between two starts.
            self._signal(signal.SIGTERM)
        for thread in threads:
            thread.start()

    def _attend(self, worker: int, process: subprocess.Popen[bytes]) -> None:
        """Passes on what a worker prints, then reports its end."""
        assert process.stdout and process.stderr
        errors = threading.Thread(target=_prefix, args=(worker, process.stderr, sys.stderr))
        errors.start()
        output = threading.Thread(target=_prefix, args=(worker, process.stdout, sys.stdout))
        output.start()
        # Until it is waited for, the number of its group is not another's.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # What it has started and left behind.
        code = process.wait()
        errors.join()
        output.join()
        self._ended.put((worker, code))

    def _wait(self) -> int:
        first, deadline = 0, float("inf")
        while self._alive:
            try:
                worker, code = self._ended.get(
                    timeout=min(3600.0, max(0.0, deadline - time.monotonic()))
                )
            except queue.Empty:
                if time.monotonic() >= deadline:
                    self._gang.note(f"{self._names()} did not end in time: SIGKILL")
                    self._signal(signal.SIGKILL)
                    deadline = float("inf")
                continue
            del self._alive[worker]
            if code == 0 or first:
                continue
            first, deadline = code, time.monotonic() + self._gang.grace
            how = (
                f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
            )
            rest = f": ending {self._names()}" if self._alive else ""
            self._gang.note(f"worker {worker} {how}{rest}")
            self._signal(signal.SIGTERM)
            self._signal(signal.SIGCONT)  # One that is stopped does not hear it before.
        return first

    def _names(self) -> str:
        return "worker " + ", ".join(map(str, self._alive))

    def _signal(self, number: int) -> None:
        for process in list(self._alive.values()):
            # One that was waited for has no group any more.
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, number)

    @contextlib.contextmanager
    def _passing_on(self) -> Iterator[None]:
        def pass_on(number: int, frame: object) -> None:
            self.asked = True
            self._signal(number)

        with stop_signal(pass_on, PASSED_ON):
            yield


def free_ports(count: int) -> list[int]:
    """Different ports of this machine that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _prefix(worker: int, source: IO[bytes], destination: IO[str]) -> None:
    for line in source:
        text = line.decode(errors="replace").rstrip("\n")
        say(f"[{worker}] {text}", destination)


def _end_with_parent(parent: int) -> Callable[[], None] | None:
    """For the child to call before it becomes a worker: nobody is left behind when this process is killed."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl

    def call() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return call


def command(arguments: Sequence[str]) -> tuple[str, ...]:
    """The launcher, by the Python that runs now."""
    # -P: else a folder of the user's that is called as one of ours would come first.
    return (sys.executable, "-P", "-m", "trainer.main", *arguments)
