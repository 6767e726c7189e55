"""events.jsonl: what happened to a run, and when; one object a line, appended, never rewritten.

start      step, host, pid, cluster; seconds from the start of the program: building, and waiting for other workers
restore    step, seconds
alive      a sign of life: step, skipped updates in all, and seconds since the start by what they went into
save       step, seconds of writing, and seconds that the training waited for it
skip       updates that were not made since they were not finite
rollback   step, to
stall      step, its seconds, and how many of them it waited for data
retry      file, error: something could not be read, and is tried again
bad_record file, error: a picture or record that cannot be read, and was skipped
damaged    error: a checkpoint that is not what was written, and was passed over
lost       error: which worker is missing
takeover   of a lock whose owner is gone: generation, owner
preempted, interrupted, done, diverged, failed    the end, with what "alive" has; failed: error, the name of its type
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

from trainer import durable


class Ledger:
    """Appends events to a file.

    Args:
      path: of the file; None records nothing, as for workers that do not write.
      fence: called before each write; raises if the workdir is another's by now, see `trainer.lock`.
    """

    def __init__(self, path: pathlib.Path | None, fence: Callable[[], None] = lambda: None) -> None:
        self._path, self._fence = path, fence
        self._whole = False

    def record(self, event: str, **fields: object) -> None:
        """Appends `{"time": seconds since 1970, "event": event, **fields}` in one write, so that lines do not mix.

        Raises:
          OSError: if it cannot be written.
        """
        if self._path is None:
            return
        self._fence()
        line = json.dumps({"time": round(time.time(), 3), "event": event, **fields})
        with durable.naming(self._path):
            file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                # An earlier process, or a full disk, may have left half a line, at which this one must not go on.
                torn = not self._whole and _is_torn(file)
                self._whole = False
                durable.write_all(file, (b"\n" if torn else b"") + line.encode() + b"\n")
                self._whole = True
            finally:
                os.close(file)


def _is_torn(file: int) -> bool:
    size = os.fstat(file).st_size
    return size > 0 and os.pread(file, 1, size - 1) != b"\n"


def events(path: pathlib.Path) -> list[dict[str, Any]]:
    """The events of a file in their order, without lines that a kill has torn; none if there is no file.

    Raises:
      OSError: if it cannot be read.
    """
    found = []
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict) and {"time", "event"} <= event.keys():
                    found.append(event)
    return found
