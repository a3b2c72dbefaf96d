"""Tables in the form of the paper: cells, rows and tables, as Markdown, JSON and terminal text."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from ramify.labels import ENERGY, FORCES
from ramify.report.measure import DEFAULT, Measure, format_milli

T = TypeVar("T")
Rows = Sequence[tuple[str, Sequence[T]]]
"""Models, each with its cells in the order of the datasets."""
Quantity = str
"""Name of a label (`ramify.labels`)."""
QUANTITIES: tuple[Quantity, ...] = (ENERGY.name, FORCES.name)
"""Labels with a table for every model; other labels have one only if a model was trained on them."""

MARK = "✗"
"""Mark of an error that is no better than the trivial error."""
TRIVIAL = "Trivial: one energy per element, no forces, no stress."
MARKED = f"{MARK} no better than trivial."

Missing = Literal["", "not evaluated", "no label", "no head", "not predicted", "not finite"]
"""Reason why a cell has no error; "not finite" for a model that diverged, "not predicted" for the stress of a branch
with direct forces."""


@dataclass(frozen=True)
class Cell:
    """One model on one dataset: errors in the table's unit, or the reason why there are none."""

    mae: float | None
    rmse: float | None
    branch: str | None
    structures: int | None
    missing: Missing
    best: bool = False
    no_better_than_trivial: bool = False
    measure: Measure = DEFAULT

    @property
    def error(self) -> float | None:
        """The error that the table shows."""
        return self.rmse if self.measure.rmse else self.mae

    def value(self) -> str:
        """The formatted error, or the reason why there is none."""
        if self.error is None:
            return "—" if self.missing == "not evaluated" else self.missing
        return format_error(self.error, self.measure)

    def text(self) -> str:
        """The value with its mark."""
        return (f"{MARK} " if self.no_better_than_trivial else "") + self.value()

    def markdown(self) -> str:
        """As `text`, the best in bold."""
        return f"**{self.text()}**" if self.best else self.text()

    def rich(self) -> Text:
        """As `value`, in colours."""
        if self.no_better_than_trivial:
            return Text.assemble((MARK, "bold white on red"), " ", (self.value(), "bold green" if self.best else ""))
        return Text(self.value(), "dim" if self.error is None else "bold green" if self.best else "")


@dataclass(frozen=True)
class ModelRow:
    """One model (one run)."""

    model: str
    run: str
    trained_on: list[str]
    cells: dict[str, Cell]


@dataclass(frozen=True)
class Table:
    """One of the tables, over the datasets it has columns for."""

    quantity: Quantity
    title: str
    unit: str
    datasets: list[str]
    rows: list[ModelRow]
    trivial: dict[str, float | None]
    measure: Measure = DEFAULT

    def rows_of(self, form: Callable[[Cell], T]) -> list[tuple[str, list[T]]]:
        """Each model with its cells in one form, in the order of `datasets`."""
        return [(row.model, [form(row.cells[dataset]) for dataset in self.datasets]) for row in self.rows]

    def trivial_texts(self) -> list[str]:
        """The formatted last row."""
        values = [self.trivial[dataset] for dataset in self.datasets]
        return ["no label" if value is None else format_error(value, self.measure) for value in values]


@dataclass(frozen=True)
class Tables:
    """Table 1 (energy per atom), Table 2 (forces) and, where there are labels, one each of stress and further labels.

    Attributes:
        split: the evaluated split.
        datasets: all of them.
        tables: the tables in order.
        footnotes: explanations of the marks and of the last row.
        notes: warnings.
    """

    split: str
    datasets: list[str]
    tables: list[Table]
    footnotes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        """The tables as GitHub-flavoured Markdown."""
        parts = [
            markdown_table(table.title, table.datasets, table.rows_of(Cell.markdown), table.trivial_texts())
            for table in self.tables
        ]
        parts.append("  \n".join(self._legend()))
        if self.notes:
            parts.append("\n".join(f"- {note}" for note in self.notes))
        return "\n\n".join(parts) + "\n"

    def _legend(self) -> list[str]:
        """Explanations of the last row and of the marks in the tables."""
        marked = any(cell.no_better_than_trivial for t in self.tables for row in t.rows for cell in row.cells.values())
        marks = [MARKED] if marked else []
        return [TRIVIAL + bold_rule(len(self.tables[0].rows)), *marks, *self.footnotes]

    def to_json(self) -> str:
        """The tables with full precision."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """The tables as plain values."""
        return asdict(self)

    def render(self, console: Console) -> None:
        """Prints the tables and the notes; a table too wide for the terminal is split."""
        for table in self.tables:
            console.print(Text(table.title, "bold"))
            rows = table.rows_of(Cell.rich)
            for part in terminal_tables(table.datasets, rows, table.trivial_texts(), console.width):
                console.print(part)
                console.print()
        for line in self._legend():
            console.print(_hanging(line, "dim"))
        for note in self.notes:
            console.print(_hanging(note, "bold red" if note.startswith(MARK) else "yellow"))


def format_error(value: float, measure: Measure | None = None) -> str:
    """Four decimals as in the paper; two significant digits for smaller values; four significant digits in meV."""
    if measure is not None and measure.total:
        return format_milli(value)
    if not math.isfinite(value):
        return "not finite"
    if value == 0 or abs(value) >= 1e-3:
        return f"{value:.4f}"
    if abs(value) < 1e-5:
        return f"{value:.1e}"
    return f"{value:.{1 - math.floor(math.log10(abs(value)))}f}"


def bold_rule(models: int, *, marked: str = "Bold", unless: str = "") -> str:
    """A sentence, after a space, on what is marked in a column of the errors of so many models; empty for one model."""
    which = {1: "", 2: "the better of the two"}.get(models, "the two best of each column")
    return which and f" {marked}: {which}{unless}."


def markdown_table(title: str, datasets: Sequence[str], rows: Rows[str], last: Sequence[str]) -> str:
    """A table as GitHub-flavoured Markdown.

    Args:
        title: in bold above it.
        datasets: headings of the columns after the first.
        rows: models with their cells.
        last: the cells of the trivial predictor.
    """
    lines = [["", *datasets], *([model, *cells] for model, cells in rows), ["*Trivial*", *last]]
    head, *rest = ("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)
    return "\n".join([f"**{title}**", "", head, "|---|" + "---:|" * len(datasets), *rest])


def terminal_tables(datasets: Sequence[str], rows: Rows[Text], last: Sequence[str], width: int) -> Iterator[RichTable]:
    """A table for a terminal, as `markdown_table`; one that is wider than `width` is split by columns.

    It has no title, which rich would wrap to the width of the columns.
    """
    groups: list[list[int]] = [[]]
    used = left = max(len(model) for model, _ in rows)
    for k, dataset in enumerate(datasets):
        lines = [line for _, cells in rows for line in cells[k].plain.split("\n")]
        needed = 3 + max(map(len, (dataset, last[k], *lines)))  # 3 characters between two columns
        if groups[-1] and used + needed > width:
            groups.append([])
            used = left
        groups[-1].append(k)
        used += needed
    for group in groups:
        shown = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
        shown.add_column("model", no_wrap=True)
        for k in group:
            shown.add_column(Text(datasets[k]), justify="right", no_wrap=True)
        for model, cells in rows:
            shown.add_row(Text(model), *(cells[k] for k in group))
        shown.add_section()
        shown.add_row(*(Text(text, "dim") for text in ("Trivial", *(last[k] for k in group))))
        yield shown


def _hanging(text: str, style: str) -> RichTable:
    """A remark with a hanging indent after its mark."""
    mark, rest = (MARK, text.removeprefix(MARK).lstrip()) if text.startswith(MARK) else ("·", text)
    shown = RichTable.grid(padding=(0, 1, 0, 0))
    shown.add_row(Text(mark, style), Text(rest, style))
    return shown
