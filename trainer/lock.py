"""The lock of a workdir: one run writes in it, and a run that has lost it writes no more.

A lock is the file `lock/00000007.json` of the highest number there, its generation. Who wants it makes the next one, which
link(2) gives to one alone, also on shared file systems. The holder touches its file every few seconds. A lock is stale if
its process is gone, where that can be seen, or if the file has not been touched for as long as it says; clocks of two
machines are never compared. Files stay when they are released, so that no generation comes twice.

Storage cannot refuse the writes of a process that was stopped, lost its lock and goes on: that process asks `check` before
each write. What is left is the moment between asking and renaming one file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import json
import os
import pathlib
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Self

from trainer import durable
from trainer.environment import Workers
from trainer.exits import CannotCreate, LostPeer, WorkdirInUse
from trainer.ledger import Ledger
from trainer.peers import dismiss

FOLDER = "lock"
NAME = re.compile(r"(\d{8,})\.json")
STALE_SECONDS = 60.0
"""Above the caches of shared file systems, and below the patience of people."""
TOUCHES = 12
"""Within the seconds after which a lock is stale."""
TELL_SECONDS = 60.0
"""How long the other workers are waited for, to tell them that there is no training."""
NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
"""What link(2) says on file systems without hard links, such as mounted buckets."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Owner:
    """What the file of a lock says.

    Attributes:
      token: of this one taking of the lock.
      host: name of the machine, for people.
      machine: within which process ids are unique, see `machine`; "" if that is not known.
      pid: of the process.
      started: clock ticks between the machine's and the process's start; None if not known.
      command: the command line of the process.
      time: when it took the lock, ISO 8601.
      stale_seconds: without a touch after which the lock may be taken over.
      released: whether the process has given it back.
    """

    token: str
    host: str
    machine: str
    pid: int
    started: int | None
    command: str
    time: str
    stale_seconds: float
    released: bool = False

    @classmethod
    def here(cls, command: str, stale_seconds: float) -> Owner:
        """This process, now."""
        return cls(
            token=uuid.uuid4().hex,
            host=socket.gethostname(),
            machine=machine(),
            pid=os.getpid(),
            started=_started(os.getpid()),
            command=command,
            time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            stale_seconds=stale_seconds,
        )

    def alive(self) -> bool | None:
        """Whether the process is there; None if that cannot be seen from here."""
        if not self.machine or self.machine != machine() or self.started is None:
            return None
        started = _started(self.pid)
        if started is not None:
            return started == self.started
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return None  # Hidden from /proc.

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.time} ({self.command})"


def holder(workdir: pathlib.Path) -> Owner | None:
    """Who has the lock of a workdir, perhaps without being there any more; None if it is free."""
    owner = _read(_path(workdir, _newest(workdir)))
    return None if owner is None or owner.released else owner


def machine() -> str:
    """Names the kernel's boot and the namespace in which process ids of this process are unique; "" if not known."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _started(pid: int) -> int | None:
    """Clock ticks between the machine's and a process's start; -1 if it has ended unnoticed by its parent, None if unknown."""
    try:
        status = pathlib.Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    state, *fields = status.rpartition(")")[2].split()
    return -1 if state in "ZXx" else int(fields[18])


class Lock:
    """A lock that was taken; a context manager that keeps it fresh and releases it.

    Attributes:
      generation: of the lock.
      before: from whom it was taken over, None if it was free.
    """

    def __init__(
        self, workdir: pathlib.Path, generation: int, owner: Owner, before: Owner | None = None
    ) -> None:
        self.generation, self.before = generation, before
        self._workdir, self._owner = workdir, owner
        self._path = _path(workdir, generation)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._touch, name="lock", daemon=True)

    def check(self) -> None:
        """To be called before each write.

        Raises:
          WorkdirInUse: if another has taken the lock over.
          CannotCreate: if the lock is gone, and the workdir with it.
        """
        newest = _newest(self._workdir)
        mine = _read(self._path)
        if newest == self.generation and mine and mine.token == self._owner.token:
            return
        by = _read(_path(self._workdir, newest))
        if by and by.token != self._owner.token:
            raise WorkdirInUse(
                f"workdir {self._workdir} was taken over by {by} while this process, {self._owner.pid} on "
                f"{self._owner.host}, did not touch its lock: it writes no more and ends"
            )
        raise CannotCreate(
            f"workdir {self._workdir} is not what it was ({self._path} has gone): it was removed, replaced or unmounted; "
            "bring it back and start again to go on from its last checkpoint"
        )

    def release(self) -> None:
        """Gives it back, unless another has it."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join()
        with contextlib.suppress(OSError, WorkdirInUse, CannotCreate):
            self.check()
            durable.write(self._path, _text(dataclasses.replace(self._owner, released=True)))

    def _touch(self) -> None:
        while not self._ending.wait(self._owner.stale_seconds / TOUCHES):
            # What keeps it from being touched, `check` will tell.
            with contextlib.suppress(OSError):
                os.utime(self._path)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


def take(
    workdir: pathlib.Path,
    command: str,
    note: Callable[[str], None] = lambda line: None,
    stale_seconds: float = STALE_SECONDS,
) -> Lock:
    """Takes the lock of a workdir, at once if it is free or its process is seen to be gone.

    Args:
      workdir: which is there.
      command: of this process, to tell others.
      note: is told, in a line, that this waits, and that it takes over.
      stale_seconds: without a touch after which others may take the lock over.

    Raises:
      WorkdirInUse: if another process has it.
      OSError: if the workdir cannot be written.
    """
    owner, least = Owner.here(command, stale_seconds), 0
    (workdir / FOLDER).mkdir(exist_ok=True)
    while True:
        # A listing may be older than what was learnt from an attempt.
        generation = max(_newest(workdir), least)
        before = _read(_path(workdir, generation)) if generation else None
        free = generation == 0 or (before is not None and before.released)
        if not free and not _is_stale(workdir, generation, before, note):
            least = 0
            continue
        if not _make(_path(workdir, generation + 1), owner):
            least = generation + 1
            continue
        if _newest(workdir) > generation + 1:  # Others have come and gone since the listing.
            _path(workdir, generation + 1).unlink(missing_ok=True)
            least = 0
            continue
        _clean(workdir, generation + 1)
        if not free:
            whom = f"process {before.pid} on {before.host}" if before else "an unknown process"
            note(f"took {workdir} over from {whom}, which is gone")
        return Lock(workdir, generation + 1, owner, None if free else before)


def _is_stale(
    workdir: pathlib.Path, generation: int, owner: Owner | None, note: Callable[[str], None]
) -> bool:
    """Watches a lock that was not released: whether it may be taken over; False if it changed hands meanwhile.

    Raises:
      WorkdirInUse: if its process is there.
    """
    alive = owner.alive() if owner else None
    if alive is False:
        return True
    in_use = WorkdirInUse(
        f"workdir {workdir} is in use by {_who(owner)}: let it end, or choose another --workdir"
    )
    if alive:
        raise in_use
    seconds, path = owner.stale_seconds if owner else STALE_SECONDS, _path(workdir, generation)
    note(
        f"workdir {workdir} is locked by {_who(owner)}, which cannot be seen from here: "
        f"watching for {seconds:g} seconds whether it touches its lock"
    )
    until, first = time.monotonic() + seconds, _stamp(path)
    while time.monotonic() < until:
        time.sleep(min(1.0, seconds / 2 / TOUCHES))
        stamp = _stamp(path)
        now = _read(path)
        if _newest(workdir) != generation or stamp is None or (now and now.released):
            return False
        if stamp != first:
            raise in_use
    return True


def _who(owner: Owner | None) -> str:
    return str(owner) if owner else "an unknown process"


def _make(path: pathlib.Path, owner: Owner) -> bool:
    """Makes the file of a lock unless it is there: whether this has made it."""
    scratch = path.with_name(f"{durable.SCRATCH}{owner.token}")
    scratch.write_bytes(_text(owner))
    try:
        os.link(scratch, path)
    except FileExistsError:
        # Over a network it may be there because the answer to the first request was lost.
        made = _read(path)
        return made is not None and made.token == owner.token
    except FileNotFoundError:
        return False  # Cleaned away by one that has just taken the lock.
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        return _make_exclusively(path, owner)
    finally:
        scratch.unlink(missing_ok=True)
    return True


def _make_exclusively(path: pathlib.Path, owner: Owner) -> bool:
    """As `_make`, but others may see the file before it is written, and wait then."""
    try:
        with path.open("xb") as file:
            file.write(_text(owner))
    except FileExistsError:
        return False
    return True


def _clean(workdir: pathlib.Path, generation: int) -> None:
    """Removes what is left of those before."""
    for path in (workdir / FOLDER).iterdir():
        match = NAME.fullmatch(path.name)
        if path.name.startswith(durable.SCRATCH) or (match and int(match[1]) < generation):
            path.unlink(missing_ok=True)


def _path(workdir: pathlib.Path, generation: int) -> pathlib.Path:
    return workdir / FOLDER / f"{generation:08d}.json"


def _newest(workdir: pathlib.Path) -> int:
    """The highest generation there, 0 without one."""
    try:
        names = os.listdir(workdir / FOLDER)
    except (FileNotFoundError, NotADirectoryError):
        return 0
    return max((int(match[1]) for match in map(NAME.fullmatch, names) if match), default=0)


def _read(path: pathlib.Path) -> Owner | None:
    """None if it is not there, or not written yet."""
    try:
        return Owner(**json.loads(path.read_bytes()))
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        return None


def _text(owner: Owner) -> bytes:
    return f"{json.dumps(dataclasses.asdict(owner), indent=1)}\n".encode()


def _stamp(path: pathlib.Path) -> tuple[int, int] | None:
    """Times of the last touch, from the machine that has the file; None if it is gone."""
    try:
        # NFS asks the server when a file is opened, and not for each stat.
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        status = os.fstat(file)
    finally:
        os.close(file)
    return status.st_mtime_ns, status.st_ctime_ns


@contextlib.contextmanager
def held(
    workdir: pathlib.Path, command: str, found: Workers, note: Callable[[str], None]
) -> Iterator[Callable[[], None]]:
    """Within this context the workdir is that of these workers, of which the first alone takes the lock.

    Gives what the chief must call before each write, see `Lock.check`.

    Raises:
      WorkdirInUse: if it is another's, after telling the other workers, which wait for the first.
    """
    if len(found.hosts) > 1 and found.worker:
        yield lambda: None
        return
    try:
        lock = take(workdir, command, note)
    except WorkdirInUse as error:
        if len(found.hosts) > 1:
            note(
                f"telling the other workers for up to {TELL_SECONDS:g} seconds that there is no training"
            )
            # Its port may be that of the training that goes on.
            with contextlib.suppress(LostPeer):
                dismiss(found.hosts, str(error), TELL_SECONDS)
        raise
    with lock:
        if lock.before:
            owner = {"host": lock.before.host, "pid": lock.before.pid, "since": lock.before.time}
            Ledger(workdir / "events.jsonl").record(
                "takeover", generation=lock.generation, owner=owner
            )
        yield lock.check
