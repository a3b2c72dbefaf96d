"""Progress of all models of a study: one live table on a terminal, lines of text in pipes and job logs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ramify.study.progress import Row

WIDTH = 24
"""Characters of a bar."""
STYLES = {"done": "green", "failed": "bold red", "training": "cyan", "evaluating": "cyan", "stopped": "yellow"}
FIRST, PART = 30.0, 0.05
"""Shortest seconds between two lines of progress in a pipe, and as a fraction of the elapsed time."""

Watch = Callable[[list[Row]], None]


@contextmanager
def study_display(
    console: Console, *, quiet: bool = False, short: bool = False, clock: Callable[[], float] = time.monotonic
) -> Iterator[Watch]:
    """Yields the function that shows the progress of all tasks.

    Args:
        console: the console.
        quiet: show nothing.
        short: on a terminal, one line for all models instead of a table.
        clock: returns seconds.
    """
    if quiet:
        yield lambda rows: None
    elif console.is_terminal:
        with Live(console=console, refresh_per_second=4, transient=short) as live:
            yield lambda rows: live.update(Text(one_line(rows)) if short else progress_table(rows))
    else:
        lines = StateLines(console, clock)
        yield lines.show


class StateLines:
    """A line for each change of a state, and at increasing intervals one line for all models."""

    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        self._console, self._clock = console, clock
        self._begun = self._last = clock()
        self._states: dict[str, str] = {}

    def show(self, rows: list[Row]) -> None:
        """Prints what has changed since the last call."""
        for row in rows:
            before = self._states.get(row.name)
            self._states[row.name] = row.state
            if before not in (row.state, None) and row.state not in ("trained", "waiting"):
                self._print(f"{row.name}: {row.state}" + (f", {_seconds(row.seconds)}" if row.state == "done" else ""))
        now = self._clock()
        if now - self._last >= max(FIRST, PART * (now - self._begun)):
            self._last = now
            self._print(one_line(rows))

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def one_line(rows: Sequence[Row]) -> str:
    """All models in one line: steps done, models done, those in work."""
    steps, total = sum(min(row.step, row.steps) for row in rows), sum(row.steps for row in rows)
    done = sum(row.state == "done" for row in rows)
    working = [row.name for row in rows if row.state in ("training", "evaluating")]
    at_work = f": {', '.join(working)}" if working else ""
    percent = 100 * steps / total if total else 100.0
    return f"{done} of {len(rows)} models, {percent:.0f} % of all steps{at_work}"


def progress_table(rows: Sequence[Row]) -> Table:
    """A line per model: state, steps, time, validation metric."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("model", "state", "", "steps", "time", "metric"):
        table.add_column(heading, justify="right" if heading in ("steps", "time", "metric") else "left", no_wrap=True)
    for row in rows:
        filled = round(WIDTH * min(1.0, row.step / row.steps)) if row.steps else WIDTH
        table.add_row(
            row.name,
            Text(row.state, STYLES.get(row.state, "dim")),
            Text("━" * filled, "green" if row.state == "done" else "cyan").append("━" * (WIDTH - filled), "dim"),
            f"{row.step:,} / {row.steps:,}",
            _seconds(row.seconds) if row.seconds else "",
            "" if row.metric is None else f"{row.metric:.3f}",
        )
    return table


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
