"""What asks a run to end early: signals, and the time that the process may take."""

import os
import signal
from collections.abc import Iterator

import pytest

from ramify.run.stop import SIGNALS, STOPPED, Stop
from ramify.system import process_age


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Puts the handlers of this process back."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_a_reason(number: signal.Signals) -> None:
    with Stop() as stop:
        assert stop.reason == ""
        os.kill(os.getpid(), number)
        assert stop.reason == number.name
        os.kill(os.getpid(), signal.SIGTERM)  # schedulers repeat themselves
        assert stop.reason == number.name


def test_afterwards_signals_mean_what_they_did() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    with Stop():
        assert all(signal.getsignal(number) is not signal.SIG_DFL for number in SIGNALS)
    assert all(signal.getsignal(number) is signal.SIG_DFL for number in SIGNALS)


def test_a_process_that_is_stopping_cannot_be_ended_by_one_more_signal() -> None:
    """Its exit status must stay the one that schedulers wait for, up to the very end of the interpreter."""
    with Stop():
        os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGUSR1)


def test_the_time_counts_from_the_start_of_the_process() -> None:
    with Stop(minutes=1e9) as stop:
        assert stop.reason == ""
    with Stop(minutes=process_age() / 60) as stop:
        assert stop.reason == "time limit"


def test_a_signal_comes_before_the_time() -> None:
    with Stop(minutes=1e-9) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.reason == "SIGTERM"


def test_the_status_is_no_other_programs() -> None:
    """Neither Python's (1, 2, 120) nor the shell's (126 and above); sysexits.h calls 75 a temporary failure."""
    assert os.EX_TEMPFAIL == STOPPED
