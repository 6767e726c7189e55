"""Records that cannot be read: errors, or skipped up to a budget."""

from __future__ import annotations

import logging
import threading

from input_pipeline.batches import DataError

NAMED = 3
"""Bad records that a message names."""


class BadRecord(Exception):
    """A record that cannot be read; the message is a line for the user: its name, "cannot be read", why, and what to do."""


class BadRecords:
    """What a source does about them.

    Args:
      owner: the class that the other arguments are given to, for messages.
      on_bad_record: "fail", each is an error; or "skip", another takes its place.
      bad_budget: of "skip": how many may be bad.

    Attributes:
      names: of those skipped so far. Whoever goes on with what an earlier process began puts in those that it skipped.

    Raises:
      ValueError: if an argument has none of its values.
    """

    def __init__(self, owner: str, on_bad_record: str = "fail", bad_budget: int = 0) -> None:
        if on_bad_record not in ("fail", "skip"):
            raise ValueError(
                f'{owner}.on_bad_record is "{on_bad_record}": it must be "fail" or "skip"'
            )
        if bad_budget < 0:
            raise ValueError(f"{owner}.bad_budget is {bad_budget}: it must be at least 0")
        self._owner, self._skips, self._budget = owner, on_bad_record == "skip", bad_budget
        self.names: list[str] = []
        self._lock = threading.Lock()

    def skip(self, error: BadRecord) -> None:
        """Returns where a record may be skipped, by any thread; each is a warning the first time.

        Raises:
          DataError: where none is skipped, or too many are bad.
        """
        if not self._skips:
            raise DataError(str(error)) from None
        name = str(error).partition(" cannot be read")[0]
        with self._lock:
            known = name in self.names
            if not known:
                self.names.append(name)
            if len(self.names) > self._budget:
                more = ", …" if len(self.names) > NAMED else ""
                raise DataError(
                    f"{len(self.names)} pictures cannot be read, more than {self._owner}.bad_budget = {self._budget}: "
                    f"mend or replace {', '.join(self.names[-NAMED:])}{more}"
                )
        if not known:
            logging.getLogger(__name__).warning(
                "skipped: %s", error, extra={"file": name, "error": str(error)}
            )
