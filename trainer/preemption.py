"""SIGTERM or SIGUSR2: what a scheduler sends before it takes a machine away."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)


class Asked:
    """Whether a stop was asked for. `ask` is a handler that may interrupt itself, which `threading.Event` would not survive."""

    def __init__(self) -> None:
        self.asked = False

    def ask(self, *signal_and_frame: object) -> None:
        self.asked = True


@contextlib.contextmanager
def stop_signal(
    handle: Callable[..., None], signals: Sequence[signal.Signals] = SIGNALS
) -> Iterator[None]:
    """Within this context `handle(signal, frame)` is called on one of the signals; only the main thread can take them.

    A handler that saves would hang (TRAPS 13): set a flag, or raise where there is nothing to save.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handle) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is not handle:
                continue  # Ignored by now.
            # None is a handler that was not set from Python, which cannot be set back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def ignore_stop_signals() -> None:
    """For a process that has saved and is about to say so: being asked once more changes nothing, also after `stop_signal`."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
