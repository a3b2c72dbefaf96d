"""Progress of long verbs on the terminal and in notebooks, and as lines of text in pipes and job logs."""

import importlib.util
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from ramify.cli import messages
from ramify.cli.messages import say, warned
from ramify.cli.tables import percent
from ramify.labels import LABELS, mae

if TYPE_CHECKING:  # these import PyTorch, which takes seconds to load
    from ramify.inference.jobs.relax import Relaxation
    from ramify.train.reporting import Callbacks


FIRST = 30.0
"""Seconds before the first line, and shortest time between two lines."""
PART = 0.05
"""Shortest time between two lines as a fraction of the elapsed time: a job of a day writes about a hundred lines."""


def shows_bars(console: Console) -> bool:
    """Whether a console can redraw a bar: a terminal, or Jupyter with the package ipywidgets."""
    if console.is_jupyter:
        return importlib.util.find_spec("ipywidgets") is not None
    return console.is_terminal


class Pace:
    """The increasing intervals at which a job writes lines into a log.

    Attributes:
        elapsed: seconds from the beginning to the last call of `is_due`.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun = self._last = clock()
        self.elapsed = 0.0

    def is_due(self) -> bool:
        """Whether the next line is to be written; the next interval then begins."""
        now = self._clock()
        self.elapsed = now - self._begun
        due = now - self._last >= max(FIRST, PART * self.elapsed)
        self._last = now if due else self._last
        return due


class ProgressLines:
    """Prints the progress of a job at increasing intervals, unless the console shows bars.

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
        self._console, self._title, self._unit, self._pace = console, title, unit, Pace(clock)
        self._quiet = quiet or shows_bars(console)
        self._first: float | None = None

    def at(self, done: float, total: float | None = None, note: str = "") -> None:
        """Reports that `done` objects are completed, of `total` if known."""
        if self._first is None:
            self._first = done  # steps before a resume do not count for the rate
        if self._quiet or not self._pace.is_due():
            return
        passed, more = self._pace.elapsed, done - self._first
        line = f"{self._title}: {done:,.0f} {self._unit}"
        if total:
            line = f"{self._title}: {self._unit} {done:,.0f} of {total:,.0f} ({100 * done / total:.0f} %)"
        line += f"{note}, {time_text(passed)}"
        if total and more > 0:
            line += f", about {time_text((total - done) * passed / more)} left"
        say(line, self._console)


def _without_bars(console: Console) -> bool:
    """Whether Rich would warn instead of drawing, in Jupyter; elsewhere it draws the last state in any case."""
    return console.is_jupyter and not shows_bars(console)


def time_text(seconds: float) -> str:
    """`42 s`, `3.5 min`, `2.1 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


class Steps:
    """A progress counter for jobs of unknown length."""

    def __init__(self, console: Console, title: str, unit: str = "structures", *, quiet: bool = False) -> None:
        done = "[green]✓[/green]"
        columns = (
            SpinnerColumn(finished_text=done),
            TextColumn("{task.description}"),
            TextColumn(f"{{task.completed:,.0f}} {unit}"),
        )
        hidden = quiet or _without_bars(console)
        self._progress = Progress(*columns, TimeElapsedColumn(), console=console, disable=hidden)
        self._task = self._progress.add_task(title, total=None)
        self._lines = ProgressLines(console, Text.from_markup(title).plain, unit, quiet=quiet)
        self._done = 0.0

    def counted(self, more: float) -> None:
        """Adds `more` to the count."""
        self._done += more
        self._progress.advance(self._task, more)
        self._lines.at(self._done)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        if failed is None:
            self._progress.update(self._task, total=self._progress.tasks[0].completed)
        self._progress.stop()


@contextmanager
def training_display(
    console: Console, clock: Callable[[], float] = time.monotonic
) -> Iterator[tuple["Callbacks", Callable[[str, int], None]]]:
    """Shows a training: a bar of steps (lines where there is no terminal), a line per evaluation, warnings.

    Yields the callbacks of the training, and the callback for the progress of the neighbour search.
    """
    from ramify.train.reporting import Callbacks

    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=_without_bars(console),
    )
    training = progress.add_task("train", total=None, visible=False)
    finding = progress.add_task("neighbour lists", total=None)
    found, loss = 0, ""
    evaluations = EvaluationLines()
    steps = ProgressLines(console, "train", "step", clock=clock)
    edges = ProgressLines(console, "neighbour lists", "structures", clock=clock)

    def on_edges(dataset: str, structures: int) -> None:
        nonlocal found
        found += structures
        progress.update(finding, description=f"neighbour lists: {dataset}", advance=structures)
        edges.at(found, note=f" ({dataset})")

    def on_step(step: int, total: int) -> None:
        progress.update(finding, visible=False)
        progress.update(training, completed=step, total=total, visible=True)
        steps.at(step, total, loss)

    def on_trained(entry: dict[str, Any]) -> None:
        nonlocal loss
        loss = f", loss {entry['loss']:.3f}"
        progress.update(training, description=f"train{loss}")

    @contextmanager
    def compiling() -> Iterator[None]:
        began, task = clock(), progress.add_task("compiling the step", total=None)
        if not console.is_terminal:
            console.print("compiling the step", highlight=False)
        try:
            yield
        finally:
            progress.remove_task(task)
        console.print(f"the step is compiled ({time_text(clock() - began)})", highlight=False)

    with progress:
        yield (
            Callbacks(
                step=on_step,
                trained=on_trained,
                evaluated=lambda entry: console.print(evaluations.text(entry, console.width), highlight=False),
                noted=lambda text: say(text, console),
                compiling=compiling,
                warned=lambda text: warned(text, console),
            ),
            on_edges,
        )


@contextmanager
def training_output(visible: bool) -> Iterator[tuple["Callbacks", Callable[[str, int], None]]]:
    """`training_display`, on rank zero only."""
    if visible:
        with training_display(messages.console) as listeners:
            yield listeners
    else:
        from ramify.train.reporting import Callbacks

        yield Callbacks(), lambda dataset, structures: None


@contextmanager
def step_bar(console: Console, title: str, total: int, *, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """A progress bar of steps; yields a function to call with the number of completed steps."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    hidden = quiet or _without_bars(console)
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console, disable=hidden) as progress:
        task = progress.add_task(title, total=total)
        lines = ProgressLines(console, title, "step", quiet=quiet)

        def on_step(step: int) -> None:
            progress.update(task, completed=step)
            lines.at(step, total)

        yield on_step


def relaxation_line(index: int, formula: str, found: "Relaxation | None", why: str) -> str:
    """One line about a relaxation; only the reason where a structure has no result."""
    from ramify.inference.jobs.relax import NOT_CONVERGED

    if found is None:
        return f"{index:5d} {formula}: skipped, {why}"
    done = "converged" if found.converged else "NOT CONVERGED"
    line = (
        f"{index:5d} {formula}: {done}, {found.steps} steps, {found.energy_change:+.4f} eV, {found.max_force:.4f} eV/Å"
    )
    return f"{line}; {why}" if why and not why.startswith(NOT_CONVERGED) else line  # the line has the same numbers


class EvaluationLines:
    """Validation errors as a table that grows by one line per evaluation; its heading comes with the first line."""

    def __init__(self) -> None:
        self._heading = ""

    def text(self, entry: Mapping[str, Any], width: int) -> str:
        """The line of `entry`, below the heading where that is new; `evaluation_text` where the table is too wide."""
        labels, errors = _relative_errors(entry)
        widths = [max(len(name), 4 * len(labels.split("/")) - 1) for name in entry["datasets"]]
        if 15 + sum(2 + w for w in widths) > width:
            return evaluation_text(entry, width)
        heading = f"epoch  metric {_columns(entry['datasets'], widths)}"
        line = f"{entry['epoch']:5.1f} {entry['metric']:7.3f}{_best_mark(entry)}{_columns(errors, widths)}"
        if heading == self._heading:
            return line
        self._heading = heading
        return f"Validation MAE, {labels} in % of trivial; * best so far\n{heading}\n{line}"


def evaluation_text(entry: Mapping[str, Any], width: int) -> str:
    """One evaluation without a heading: the metric, then the errors of each dataset in % of the trivial ones.

    One line where it fits into `width`; otherwise the datasets follow on further lines.
    """
    labels, errors = _relative_errors(entry)
    parts = [f"{name} {text}" for name, text in zip(entry["datasets"], errors, strict=True)]
    start = f"epoch {entry['epoch']:5.1f} metric {entry['metric']:.3f}{_best_mark(entry)} {labels} in % of trivial:"
    line = f"{start} {'  '.join(parts)}"
    if len(line) <= width:
        return line
    below = textwrap.wrap("  ".join(part.replace(" ", "\0") for part in parts), width - 4)
    return "\n".join([start, *(f"    {text}".replace("\0", " ") for text in below)])


def _relative_errors(entry: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Symbols of the evaluated labels, e.g. `E/F`, and for each dataset its errors in % of the trivial ones."""
    found = entry["datasets"].values()
    labels = [label for label in LABELS if any(mae(label) in errors for errors in found)]
    return "/".join(LABELS[label].symbol or label for label in labels), [
        "/".join(percent(label, errors.get(mae(label)), errors.get(f"trivial_{mae(label)}")) for label in labels)
        for errors in found
    ]


def _columns(texts: Iterable[str], widths: Iterable[int]) -> str:
    return "".join(f"  {text:>{width}}" for text, width in zip(texts, widths, strict=True))


def _best_mark(entry: Mapping[str, Any]) -> str:
    return "*" if entry["best"] else " "
