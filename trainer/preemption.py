"""SIGTERM: what a scheduler sends before it takes a machine away."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def stop_signal(handle: Callable[..., None]) -> Iterator[None]:
    """Within this context `handle(signal, frame)` is called on SIGTERM; only the main thread can take signals.

    A handler that saves would hang (TRAPS 13): set a flag, or raise where there is nothing to save.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        # None is a handler that was not set from Python, which cannot be set back.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
