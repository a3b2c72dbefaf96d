"""Early stop of a run: signals, and the time limit of the process."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from ramify.run.stop import INTERRUPTED, SIGNALS, STOPPED, Stop, Stopped, exit_status
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


def test_a_program_in_the_background_is_not_interrupted() -> None:
    """A shell without job control has it ignore SIGINT: Ctrl-C is for the program in front of it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.reason == ""
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.reason == "SIGTERM"
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_a_program_under_nohup_stays() -> None:
    """`nohup` has it ignore SIGHUP: the terminal may close."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.reason == ""
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_a_second_interrupt_aborts() -> None:
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.reason == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def swallowed(stop: Stop) -> None:
    """Something on the way takes the exception for its own."""
    with suppress(Stopped):
        os.kill(os.getpid(), signal.SIGUSR1)
    stop.begin()


def compiling(stop: Stop) -> None:
    """The signal has ended a compiler, too."""
    stop.begin()
    os.kill(os.getpid(), signal.SIGTERM)
    raise RuntimeError("the compiler has ended")


@pytest.mark.parametrize("work", [lambda stop: os.kill(os.getpid(), signal.SIGTERM), swallowed, compiling])
def test_before_the_first_step_a_signal_ends_the_work_at_once(work: Callable[[Stop], None]) -> None:
    with pytest.raises(Stopped, match=r"SIGTERM|SIGUSR1"), Stop(at_once=True) as stop:
        work(stop)


def test_after_the_first_step_it_does_not() -> None:
    with Stop(at_once=True) as stop:
        stop.begin()
        os.kill(os.getpid(), signal.SIGTERM)
        stop.stepped()
        assert stop.reason == "SIGTERM"


AFTER = """
import os, signal, sys
from ramify.run.stop import Stop, listening
with listening(["demo"]):
    with Stop(at_once=True) as stop:
        stop.begin()
        stop.stepped()
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))
"""


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", STOPPED), ("SIGINT", -signal.SIGINT)])
def test_after_a_training_nothing_is_said_of_its_first_step(name: str, status: int) -> None:
    """As while `ramify demo` evaluates: Ctrl-C is Python's own, which that command catches."""
    done = subprocess.run([sys.executable, "-c", AFTER, name], capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert "first step" not in done.stderr
    assert ("checkpoints are kept" in done.stderr) == (name == "SIGTERM")


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        ("SIGINT", INTERRUPTED),
        ("SIGTERM", STOPPED),
        ("SIGINT, SIGTERM", STOPPED),
        ("time limit", STOPPED),
        ("SIGUSR1", STOPPED),
    ],
)
def test_statuses(reason: str, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert exit_status(reason) == status
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert exit_status(reason) == 0


def test_afterwards_signals_mean_what_they_did() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    with Stop():
        assert all(signal.getsignal(number) is not signal.SIG_DFL for number in SIGNALS)
    assert all(signal.getsignal(number) is signal.SIG_DFL for number in SIGNALS)


def test_a_process_that_is_stopping_cannot_be_ended_by_one_more_signal() -> None:
    """Its exit status must be the one for schedulers, until the end of the interpreter."""
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
