"""Why a run should end before its time: a signal to this process, or its time limit.

Each rank knows only of itself here; the loop adds these up over all ranks after every step, so that all stop at the
same one, write a checkpoint and end with the status `STOPPED`.
"""

import signal
import threading
from types import FrameType
from typing import Any, Self

from ramify.system import process_age

STOPPED = 75
"""Exit status of a run that stopped early and waits to be continued: EX_TEMPFAIL of BSD's sysexits.h, "the user is
invited to retry". Python uses 1 and 2, shells 126 and above (128 + number of a signal); schedulers requeue on any."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What schedulers send before they end a job: SIGTERM by themselves, SIGUSR1 when asked to (`sbatch --signal`)."""


class Stop:
    """Listens to signals between `with` and its end; further ones change nothing, the process is stopping already.

    Once there was one, they are ignored to the end of the process: schedulers repeat themselves, and the exit status
    must not become that of the second signal.

    Args:
        minutes: that the process may run, counted from its start, imports included; None for no limit.
    """

    def __init__(self, minutes: float | None = None) -> None:
        self.minutes = minutes
        self._signal = ""
        self._before: dict[signal.Signals, Any] = {}

    @property
    def reason(self) -> str:
        """`SIGTERM`, `SIGUSR1` or `time limit`; empty while there is none."""
        if not self._signal and self.minutes is not None and process_age() >= 60 * self.minutes:
            return "time limit"
        return self._signal

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # no other may install handlers
            self._before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if self._signal else handler)
        self._before = {}

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._signal = self._signal or signal.Signals(number).name
