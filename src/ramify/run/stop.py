"""Early stop of a run: a signal to this process, or its time limit.

`Stop` concerns one rank; the training loop sums the requests over all ranks after every step, so that all ranks stop at
the same step, write a checkpoint and exit with status `STOPPED`. Before the first step of a process there is nothing to
write: a signal ends the process immediately. This module imports no large library, so that the command line can handle
signals before it loads PyTorch.
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
"""Exit status of a run that stopped early and can be resumed: EX_TEMPFAIL of BSD's sysexits.h, "the user is invited to
retry". Python uses 1 and 2, shells 126 and above (128 + number of a signal); schedulers can requeue on any status."""
PAUSE = "train.stop_after"
"""Reason of a run that pauses at the step of this recipe key; other reasons are names of signals and `time limit`."""
INTERRUPTED = 130
"""Exit status of a run that was stopped at the keyboard: that of shells for programs ended by SIGINT."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
"""Signals that schedulers send before they end a job, SIGTERM by default and SIGUSR1 on request (`sbatch --signal`);
SIGHUP when a terminal or remote shell closes; and Ctrl-C at the keyboard."""
IGNORABLE = (signal.SIGHUP, signal.SIGINT)
"""Signals that a shell or `nohup` may have set to be ignored; they stay ignored."""
PATIENCE = 5.0
"""Seconds that the first step of a process may take after a signal; it may be compiling, for minutes."""
VERBS = ("train", "finetune", "demo")
"""Commands that write checkpoints."""
RANKS = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
"""Variables in which launchers set the rank (`ramify.parallel.startup.launch`, which needs PyTorch)."""


_TRAINED = threading.Event()
"""Whether this program has completed a training step; messages differ afterwards (`ramify demo` then evaluates)."""


class Stopped(BaseException):
    """A signal before the first step; its argument is the name of the signal. Not an `Exception`, so that no handler of
    errors catches it."""


class Stop:
    """Handles signals inside of a `with` block. After the first signal the process is stopping, and further ones are
    ignored, except that a second SIGINT aborts.

    After a first signal, SIGTERM, SIGUSR1 and SIGHUP are ignored until the end of the process: schedulers send them
    repeatedly, and the exit status must not become that of the second signal.

    Args:
        minutes: time limit of the process, counted from its start, including imports; None for no limit.
        at_once: a signal raises `Stopped` until `begin`, and ends a first step that takes longer than `PATIENCE`.
    """

    def __init__(self, minutes: float | None = None, *, at_once: bool = False) -> None:
        self.minutes = minutes
        self._signal = ""
        self._interrupts = 0
        self._at_once = at_once
        self._begun = threading.Event()  # after a step or the end of the `with`, the loop handles signals
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
        """Call it before the first step; the loop then checks `reason` after each step.

        Raises:
            Stopped: a signal has been received before.
        """
        if self._at_once and self._signal:
            raise Stopped(self._signal)
        self._at_once = False

    def stepped(self) -> None:
        """Call it after each step; after the first one nothing is compiled any more."""
        self._begun.set()
        _TRAINED.set()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # other threads must not install handlers
            # shells start background programs with SIGINT ignored, because Ctrl-C is for the foreground program;
            # `nohup` ignores SIGHUP
            handled = [n for n in SIGNALS if n not in IGNORABLE or signal.getsignal(n) != signal.SIG_IGN]
            self._before = {n: signal.signal(n, self._handle) for n in handled}
            if not self._begun.is_set():
                self._pipe = os.pipe()
                os.set_blocking(self._pipe[1], False)
                self._wakeup_before = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
                threading.Thread(target=self._enforce, args=(self._pipe[0],), daemon=True, name="ramify-stop").start()
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
            if signal.getsignal(number) == self._handle:
                ignored = self._signal and number != signal.SIGINT
                signal.signal(number, signal.SIG_IGN if ignored else handler)
        self._before = {}
        if early and self._signal and isinstance(error, Exception):
            raise Stopped(self._signal) from error  # the same signal may have ended a compiler or another rank

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            _leave_closed_terminal()
        self._signal = self._signal or signal.Signals(number).name
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1 and not self._at_once:
            raise KeyboardInterrupt
        if self._at_once:
            raise KeyboardInterrupt if _TRAINED.is_set() and number == signal.SIGINT else Stopped(self._signal)

    def _enforce(self, pipe: int) -> None:
        """Ends a process whose main thread does not react to a signal, because it compiles or waits for other ranks:
        first by an exception there, then by exiting. The system writes a byte into the pipe for every signal."""
        while numbers := os.read(pipe, 64):
            received = [signal.Signals(number) for number in numbers if number in SIGNALS]
            if not received or self._begun.wait(PATIENCE):
                continue
            self._signal, self._at_once = self._signal or received[0].name, True
            _thread.interrupt_main(received[0])
            if not self._begun.wait(PATIENCE):
                _print_stopped(self._signal)
                os._exit(exit_status(self._signal))
        os.close(pipe)


@contextmanager
def listening(arguments: Sequence[str]) -> Iterator[None]:
    """Context of the whole command line: for commands that train, a signal before the first step ends the process with
    a message and the exit status of a run that can be resumed."""
    verb = next((word for word in arguments if not word.startswith("-")), "")
    _TRAINED.clear()
    free = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # no other handler is installed
    try:
        with Stop(at_once=True) if verb in VERBS and free else nullcontext():
            yield
    except Stopped as stopped:
        _print_stopped(str(stopped))
        sys.exit(exit_status(str(stopped)))


def exit_status(reason: str) -> int:
    """Exit status of a process that was stopped for a `reason`, or for several, separated by commas.

    torchrun takes any status other than 0 as a failure: it would restart the processes and not pass the status on.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return 0
    return INTERRUPTED if set(reason.split(", ")) == {signal.SIGINT.name} else STOPPED


def ended_from_outside(status: int) -> bool:
    """Whether a training that ended with this exit status was stopped, or killed by a signal (negative, or above 128 by
    a shell), so that it may be continued; also 0, for a training that its files show as incomplete."""
    return status in (0, STOPPED, INTERRUPTED) or status < 0 or status > 128


def _leave_closed_terminal() -> None:
    """Redirects output from a closed terminal to /dev/null: each write to it would fail, and end the run before it has
    written its checkpoint."""
    for stream in (0, 1, 2):
        try:
            closed = stat.S_ISCHR(os.fstat(stream).st_mode) and not os.isatty(stream)
        except OSError:  # it was never open
            continue
        if closed:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, stream)
            os.close(null)


def _print_stopped(reason: str) -> None:
    """Prints one message, on rank zero; with a system call, since another thread may be printing."""
    if all(os.environ.get(name, "0") in ("", "0") for name in RANKS):
        before = "before its first step: nothing is lost and no checkpoint was written; start the same command again, "
        before += "with --continue if its run exists already"
        after = "after its training, whose checkpoints are kept: ramify train --resume DIR resumes it"
        os.write(2, f"stopped ({reason}) {after if _TRAINED.is_set() else before}\n".encode())
