"""What is wrong with the data: as a line for people, and as events of the ledger while it is read again."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterator

from input_pipeline.batches import DataError, MissingLibrary
from trainer.exits import DataProblem, MissingPackage, UserError, one_line
from trainer.ledger import Ledger

FROM_TF_DATA = re.compile(r"\b(DataError|MissingLibrary): (.+)\nTraceback ")
EVENTS = {"input_pipeline.retrying": "retry", "input_pipeline.bad_records": "bad_record"}
"""Loggers that warn, with the attributes `file` and `error`, of each further try to read and of each bad record that is skipped."""


def data_problem(error: BaseException) -> UserError | None:
    """What an error says of the data or of a library that they need, None if it is of something else."""
    if isinstance(error, MissingLibrary):
        return MissingPackage(one_line(error))
    if isinstance(error, DataError):
        return DataProblem(one_line(error))
    # One that a source raised in tf.data's threads comes as TensorFlow's, with the traceback in its message.
    said = FROM_TF_DATA.search(str(error))
    if said is None:
        return None
    return (MissingPackage if said[1] == MissingLibrary.__name__ else DataProblem)(said[2])


def abort_message(line: str) -> str:
    """With which collectives are aborted because of another worker's data, so that `data_problem` finds the line."""
    return f"DataError: {line}\nTraceback on that worker"


@contextlib.contextmanager
def telling_of_data(note: Callable[[str], None], ledger: Ledger) -> Iterator[None]:
    """In this context each further try to read, and each bad record that is skipped, is noted and recorded."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            # Neither a full disk nor a closed terminal must keep data from being read.
            with contextlib.suppress(OSError, UserError):
                note(record.getMessage())
                fields = {name: getattr(record, name, "") for name in ("file", "error")}
                ledger.record(EVENTS[record.name], **fields)

    handler = Handler()
    loggers = [logging.getLogger(name) for name in EVENTS]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
