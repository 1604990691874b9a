from __future__ import annotations

import os
import signal
import threading

import pytest

from llmreg.errors import Interrupted
from llmreg.training.interruption import noted_signals


@pytest.mark.parametrize(("number", "ends"), [(signal.SIGTERM, False), (signal.SIGINT, True)])
def test_a_first_signal_is_noted_and_a_second_ctrl_c_is_as_usual(number: signal.Signals, ends: bool) -> None:
    before = signal.getsignal(number)
    met = []
    signal.signal(number, lambda *_: met.append(number))
    try:
        usual = signal.getsignal(number)
        with noted_signals() as request:
            assert request.signal == 0
            os.kill(os.getpid(), number)
            assert (request.signal, met) == (number, [])
            os.kill(os.getpid(), number)
            assert met == ([number] if ends else [])
        assert signal.getsignal(number) is usual
    finally:
        signal.signal(number, before)


def test_in_another_thread_nothing_is_noted() -> None:
    seen = []

    def look() -> None:
        with noted_signals() as request:
            seen.append(request.signal)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [0]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_exit_code_is_that_of_shells(number: signal.Signals, code: int) -> None:
    error = Interrupted(number, "go on with --continue.")
    assert error.exit_code == code
    assert str(error) == f"{number.name}: go on with --continue."
