"""Signals that ask a training to stop: it ends at the next step, with all of its work kept."""

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
    """Attributes:
    signal: the first that came; 0 as long as none did.
    """

    signal: int = 0


@contextmanager
def noted_signals() -> Iterator[StopRequest]:
    """SIGTERM and SIGINT are noted instead of ending the process; a second SIGINT ends it as usual.

    A second SIGTERM does not: launchers and clusters send several, and the first one's checkpoint may be half written.

    Outside the main thread, where Python allows no handlers, nothing is noted.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    usual: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(number, usual[number])
        request.signal = request.signal or number

    usual.update({number: signal.signal(number, note) for number in SIGNALS})
    try:
        yield request
    finally:
        for one, handler in usual.items():
            signal.signal(one, handler)
