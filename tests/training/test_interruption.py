from __future__ import annotations

import os
import signal
import threading

import pytest

from llmreg.errors import TrainingInterrupted
from llmreg.training.interruption import note_stop_signals


@pytest.mark.parametrize(("number", "ends"), [(signal.SIGTERM, False), (signal.SIGINT, True)])
def test_a_first_signal_is_noted_and_a_second_ctrl_c_is_as_usual(number: signal.Signals, ends: bool) -> None:
    original = signal.getsignal(number)
    received = []
    signal.signal(number, lambda *_: received.append(number))
    try:
        usual = signal.getsignal(number)
        with note_stop_signals() as request:
            assert request.signal == 0
            os.kill(os.getpid(), number)
            assert (request.signal, received) == (number, [])
            os.kill(os.getpid(), number)
            assert received == ([number] if ends else [])
        assert signal.getsignal(number) is usual
    finally:
        signal.signal(number, original)


def test_in_another_thread_nothing_is_noted() -> None:
    seen = []

    def look() -> None:
        with note_stop_signals() as request:
            seen.append(request.signal)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [0]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_exit_code_is_that_of_shells(number: signal.Signals, code: int) -> None:
    error = TrainingInterrupted(number, 3, 8)
    assert (error.exit_code, error.done, error.total) == (code, 3, 8)
    assert str(error).startswith(number.name)
