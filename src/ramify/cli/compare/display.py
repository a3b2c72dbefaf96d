"""Progress of all models of a study: one live table on a terminal, lines of text in pipes and job logs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ramify.cli.messages import say
from ramify.cli.progress import Pace, time_text
from ramify.study.progress import Row, Watch

WIDTH = 24
"""Characters of a bar."""
STYLES = {"done": "green", "failed": "bold red", "training": "cyan", "evaluating": "cyan", "stopped": "yellow"}


@contextmanager
def study_display(console: Console, *, quiet: bool = False, short: bool = False) -> Iterator[Watch]:
    """Yields the function that shows the progress of all tasks.

    Args:
        console: the console.
        quiet: show nothing.
        short: on a terminal, one line for all models instead of a table.
    """
    if quiet:
        yield lambda rows: None
    elif console.is_terminal:
        with Live(console=console, refresh_per_second=4, transient=short) as live:
            yield lambda rows: live.update(Text(one_line(rows)) if short else progress_table(rows))
    else:
        yield StateLines(console).show


class StateLines:
    """A line for each change of a state, and at increasing intervals one line for all models."""

    def __init__(self, console: Console) -> None:
        self._console, self._pace = console, Pace()
        self._states: dict[str, str] = {}

    def show(self, rows: list[Row]) -> None:
        """Prints what has changed since the last call."""
        for row in rows:
            before = self._states.get(row.name)
            self._states[row.name] = row.state
            if before not in (row.state, None) and row.state not in ("trained", "waiting"):
                took = f", {time_text(row.seconds)}" if row.state == "done" else ""
                say(f"{row.name}: {row.state}{took}", self._console)
        if self._pace.is_due():
            say(one_line(rows), self._console)


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
            time_text(row.seconds) if row.seconds else "",
            "" if row.metric is None else f"{row.metric:.3f}",
        )
    return table
