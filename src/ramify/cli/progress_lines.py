"""Progress as lines of text, for pipes and job logs, where no progress bar is shown."""

import time
from collections.abc import Callable

from rich.console import Console

FIRST = 30.0
"""Seconds before the first line, and shortest time between two lines."""
PART = 0.05
"""Shortest time between two lines as a fraction of the elapsed time: a job of a day writes about a hundred lines."""


class ProgressLines:
    """Prints the progress of a job at increasing intervals, unless the console is a terminal, which shows a bar.

    Args:
        console: the console.
        title: title of the job.
        unit: name of the counted objects.
        quiet: print nothing.
        clock: returns seconds.
    """

    def __init__(
        self,
        console: Console,
        title: str,
        unit: str,
        *,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console, self._title, self._unit, self._clock = console, title, unit, clock
        self._quiet = quiet or console.is_terminal
        self._begun = self._last = clock()
        self._first: float | None = None

    def at(self, done: float, total: float | None = None, note: str = "") -> None:
        """Reports that `done` objects are completed, of `total` if known."""
        now = self._clock()
        if self._first is None:
            self._first = done  # steps before a resume do not count for the rate
        if self._quiet or now - self._last < max(FIRST, PART * (now - self._begun)):
            return
        self._last = now
        passed, more = now - self._begun, done - self._first
        line = f"{self._title}: {done:,.0f} {self._unit}"
        if total:
            line = f"{self._title}: {self._unit} {done:,.0f} of {total:,.0f} ({100 * done / total:.0f} %)"
        line += f"{note}, {_time(passed)}"
        if total and more > 0:
            line += f", about {_time((total - done) * passed / more)} left"
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def _time(seconds: float) -> str:
    """`42 s`, `3.5 min`, `2.1 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
