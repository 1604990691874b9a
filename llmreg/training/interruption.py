"""Signals that ask a training to stop: it ends after the current step, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass
class StopRequest:
    """Whether a signal has asked the process to stop.

    Attributes:
        signal: number of the first signal that arrived, 0 when none has.
    """

    signal: int = 0


@contextmanager
def note_stop_signals() -> Iterator[StopRequest]:
    """Note SIGTERM and SIGINT instead of ending the process; a second SIGINT ends it as usual.

    A second SIGTERM does not end it: launchers and clusters send several, and the checkpoint that the first one asked
    for may be half written. Outside the main thread Python allows no handlers, and nothing is noted.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    handlers: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(number, handlers[number])
        request.signal = request.signal or number

    handlers.update({number: signal.signal(number, note) for number in SIGNALS})
    try:
        yield request
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
