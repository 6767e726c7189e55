"""Imports TensorFlow: late, with a clear line where it is missing, and without its greetings."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from typing import NoReturn

from trainer.exits import MissingPackage

ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "2",
    # TensorFlow leaves oneDNN off on some processors; on one of AMD with AVX2 it is worth a fifth of most steps.
    "TF_ENABLE_ONEDNN_OPTS": "1",
}
"""What TensorFlow reads when it is imported or started, where the user has not set it."""

# TensorFlow 2.21 says these at every import, whatever TF_CPP_MIN_LOG_LEVEL is.
GREETINGS = re.compile(rb"before absl::InitializeLog\(\)|oneDNN custom operations are on")


def start() -> None:
    """Imports TensorFlow; no device is touched.

    Raises:
      MissingPackage: if it is not installed.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise MissingPackage(
            'TensorFlow is not installed: pip install "lockstep-training[cpu]", or [gpu], or [tpu]; '
            "in a checkout, scripts/train does it"
        )
    prepare()
    with without_greetings():
        import tensorflow  # noqa: F401


def prepare() -> None:
    """Sets `ENVIRONMENT`, for this process and those it starts."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def end(code: int) -> NoReturn:
    """Ends the process.

    An iterator of tf.data that is in a cycle of references, as after an error, would be ended by the interpreter's own end, and
    wait for ever for Python functions that read examples: they run no more then.
    """
    gc.collect()
    sys.exit(code)


@contextlib.contextmanager
def without_greetings() -> Iterator[None]:
    """Holds back what is written to file descriptor 2, by C++ too; all but the greetings follows at the end."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            said.seek(0)
            for line in said:
                if not GREETINGS.search(line):
                    os.write(2, line)
