"""Why a run should end before its time: a signal to this process, or its time limit.

Each rank knows only of itself here; the loop adds these up over all ranks after every step, so that all stop at the
same one, write a checkpoint and end with the status `STOPPED`. Before the first step of a process there is nothing to
write: a signal ends it where it stands. Nothing large is imported here, so that the command line can listen to signals
before it loads PyTorch.
"""

import _thread
import os
import signal
import stat
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import FrameType, TracebackType
from typing import Any, Self

from ramify.system import process_age

STOPPED = 75
"""Exit status of a run that stopped early and waits to be continued: EX_TEMPFAIL of BSD's sysexits.h, "the user is
invited to retry". Python uses 1 and 2, shells 126 and above (128 + number of a signal); schedulers requeue on any."""
INTERRUPTED = 130
"""That of a run that was stopped at the keyboard: what shells give a program that SIGINT ended."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
"""What schedulers send before they end a job: SIGTERM by themselves, SIGUSR1 when asked to (`sbatch --signal`); SIGHUP
of a terminal or remote shell that closes; and Ctrl-C at the keyboard."""
IGNORABLE = (signal.SIGHUP, signal.SIGINT)
"""Signals that a program started by a shell or by `nohup` may have been told to ignore; it goes on ignoring them."""
PATIENCE = 5.0
"""Seconds that the first step of a process may take once a signal has come; it may be compiling, for minutes."""
VERBS = ("train", "finetune", "demo")
"""Of the command line, those that write checkpoints."""
RANKS = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
"""Where launchers say which rank this is (`ramify.parallel.startup.launch`, which needs PyTorch)."""


_TRAINED = threading.Event()
"""Whether this program has taken a step; what comes after that (`ramify demo` evaluates) has other things to say."""


class Stopped(BaseException):
    """A signal has come before there was anything to keep; its argument says which. No `Exception`, so that nothing on
    its way takes it for a failure of its own."""


class Stop:
    """Listens to signals between `with` and its end. Further ones change nothing, the process is stopping already; but
    a second SIGINT aborts.

    Once there was one, SIGTERM, SIGUSR1 and SIGHUP are ignored to the end of the process: schedulers repeat themselves,
    and the exit status must not become that of the second signal.

    Args:
        minutes: that the process may run, counted from its start, imports included; None for no limit.
        at_once: a signal raises `Stopped` until `begin`, and ends a first step that takes longer than `PATIENCE`.
    """

    def __init__(self, minutes: float | None = None, *, at_once: bool = False) -> None:
        self.minutes = minutes
        self._signal = ""
        self._interrupts = 0
        self._at_once = at_once
        self._begun = threading.Event()  # a step is done, or the `with` is over: from here on the loop sees to signals
        self._before: dict[signal.Signals, Any] = {}
        self._pipe: tuple[int, int] | None = None
        self._wakeup_before = -1
        if not at_once:
            self._begun.set()

    @property
    def reason(self) -> str:
        """`SIGTERM`, `SIGUSR1`, `SIGHUP`, `SIGINT` or `time limit`; empty while there is none."""
        if not self._signal and self.minutes is not None and process_age() >= 60 * self.minutes:
            return "time limit"
        return self._signal

    def begin(self) -> None:
        """Steps begin: from here on the loop looks at `reason` after each.

        Raises:
            Stopped: there was a signal already.
        """
        if self._at_once and self._signal:
            raise Stopped(self._signal)
        self._at_once = False

    def stepped(self) -> None:
        """A step is done, and so is what is compiled in the first one."""
        self._begun.set()
        _TRAINED.set()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # no other may install handlers
            # a shell has programs in the background ignore SIGINT, and `nohup` has its program ignore SIGHUP
            heard = [n for n in SIGNALS if n not in IGNORABLE or signal.getsignal(n) != signal.SIG_IGN]
            self._before = {n: signal.signal(n, self._hear) for n in heard}
            if not self._begun.is_set():
                self._pipe = os.pipe()
                os.set_blocking(self._pipe[1], False)
                self._wakeup_before = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
                threading.Thread(target=self._insist, args=(self._pipe[0],), daemon=True, name="ramify-stop").start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        early = not self._begun.is_set()
        self._begun.set()
        if self._pipe is not None:
            signal.set_wakeup_fd(self._wakeup_before)
            os.close(self._pipe[1])  # ends the thread, which closes the other end
            self._pipe = None
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._hear:
                ignored = self._signal and number != signal.SIGINT
                signal.signal(number, signal.SIG_IGN if ignored else handler)
        self._before = {}
        if early and self._signal and isinstance(error, Exception):
            raise Stopped(self._signal) from error  # a compiler or another rank that the same signal has ended

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            _leave_closed_terminal()
        self._signal = self._signal or signal.Signals(number).name
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1 and not self._at_once:
            raise KeyboardInterrupt
        if self._at_once:
            raise KeyboardInterrupt if _TRAINED.is_set() and number == signal.SIGINT else Stopped(self._signal)

    def _insist(self, pipe: int) -> None:
        """Ends a process whose main thread heeds no signal, because it compiles or waits for other ranks: by an
        exception there, and where that does not come through, at once. The system writes a byte for every signal."""
        while numbers := os.read(pipe, 64):
            heard = [signal.Signals(number) for number in numbers if number in SIGNALS]
            if not heard or self._begun.wait(PATIENCE):
                continue
            self._signal, self._at_once = self._signal or heard[0].name, True
            _thread.interrupt_main(heard[0])
            if not self._begun.wait(PATIENCE):
                _say(self._signal)
                os._exit(exit_status(self._signal))
        os.close(pipe)


@contextmanager
def listening(arguments: Sequence[str]) -> Iterator[None]:
    """Around the whole command line, from its first moment on: where a training is wanted, a signal before its first
    step ends the process with the status of one that is to be continued, and says so."""
    verb = next((word for word in arguments if not word.startswith("-")), "")
    _TRAINED.clear()
    free = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # nobody listens yet
    try:
        with Stop(at_once=True) if verb in VERBS and free else nullcontext():
            yield
    except Stopped as stopped:
        _say(str(stopped))
        sys.exit(exit_status(str(stopped)))


def exit_status(reason: str) -> int:
    """Of a process that was stopped for a `reason`, or for several with commas between.

    torchrun takes any other status than 0 for a failure: it would start the processes again, and tells nobody which it
    was.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return 0
    return INTERRUPTED if set(reason.split(", ")) == {signal.SIGINT.name} else STOPPED


def _leave_closed_terminal() -> None:
    """Output to a terminal that has closed goes nowhere: each write to it would fail, and end the run before it has
    written its checkpoint."""
    for stream in (0, 1, 2):
        try:
            closed = stat.S_ISCHR(os.fstat(stream).st_mode) and not os.isatty(stream)
        except OSError:  # it was never open
            continue
        if closed:
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, stream)
            os.close(nowhere)


def _say(reason: str) -> None:
    """One message, of the first rank; written by the system, since this may be a thread beside one that prints."""
    if all(os.environ.get(name, "0") in ("", "0") for name in RANKS):
        before = "before its first step: nothing is lost and no checkpoint was written; start the same command again, "
        before += "with --continue if its run is there already"
        after = "after its training, of which the checkpoints are kept: ramify train --resume DIR goes on with it"
        os.write(2, f"stopped ({reason}) {after if _TRAINED.is_set() else before}\n".encode())
