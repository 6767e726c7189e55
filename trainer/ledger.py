"""events.jsonl: what happened to a run, and when; one object a line, appended, never rewritten."""

from __future__ import annotations

import json
import os
import pathlib
import time


class Ledger:
    """Appends events to a file.

    Args:
      path: of the file; None records nothing, as for workers that do not write.
    """

    def __init__(self, path: pathlib.Path | None) -> None:
        self._path = path

    def record(self, event: str, **fields: object) -> None:
        """Appends `{"time": seconds since 1970, "event": event, **fields}` in one write, so that lines do not mix.

        Raises:
          OSError: if it cannot be written.
        """
        if self._path is None:
            return
        line = json.dumps({"time": round(time.time(), 3), "event": event, **fields})
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(file, f"{line}\n".encode())
        finally:
            os.close(file)
