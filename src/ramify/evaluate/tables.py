"""The paper's Tables 1 and 2: one row per model, one column per dataset, the trivial predictor below."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from ramify.errors import RamifyError
from ramify.evaluate.results import Results
from ramify.files import write_whole

Quantity = Literal["energy", "forces"]
QUANTITIES: tuple[Quantity, ...] = ("energy", "forces")
UNITS: dict[Quantity, str] = {"energy": "eV/atom", "forces": "eV/Å"}

MARK = "✗"
"""Stands before an error that is no better than the trivial predictor's."""
LEGEND = f"{MARK} no better than the trivial predictor (reference energies alone; zero forces)."
NEAR_ZERO_FORCES = 0.01
"""eV/Å. Where even zero forces are this good, the dataset sits at its minima and its forces teach little."""


Missing = Literal["", "not evaluated", "no label", "no head", "not finite"]
"""Why a cell has no error; "not finite" is what a model that diverged predicts."""


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

    def value(self) -> str:
        """The error, or the reason why there is none, as it is printed."""
        if self.mae is None:
            return "—" if self.missing == "not evaluated" else self.missing
        return format_error(self.mae)

    def text(self) -> str:
        """The value behind its mark."""
        return (f"{MARK} " if self.no_better_than_trivial else "") + self.value()


@dataclass(frozen=True)
class ModelRow:
    """One model (one run)."""

    model: str
    run: str
    trained_on: list[str]
    cells: dict[str, Cell]

    def in_order(self, datasets: Sequence[str]) -> list[Cell]:
        """The cells of `datasets`."""
        return [self.cells[dataset] for dataset in datasets]


@dataclass(frozen=True)
class Table:
    """One of the two tables."""

    quantity: Quantity
    title: str
    unit: str
    rows: list[ModelRow]
    trivial: dict[str, float | None]

    def trivial_texts(self, datasets: Sequence[str]) -> list[str]:
        """The last row as it is printed."""
        values = [self.trivial[dataset] for dataset in datasets]
        return ["no label" if value is None else format_error(value) for value in values]


@dataclass(frozen=True)
class Tables:
    """Table 1 (energy per atom) and Table 2 (forces) over `datasets`, and what a reader must know beside them."""

    split: str
    datasets: list[str]
    tables: list[Table]
    notes: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        """Both tables as GitHub-flavoured Markdown."""
        parts = [self._markdown_table(table) for table in self.tables]
        parts.append(LEGEND + _bold_rule(len(self.tables[0].rows)))
        if self.notes:
            parts.append("\n".join(f"- {note}" for note in self.notes))
        return "\n\n".join(parts) + "\n"

    def _markdown_table(self, table: Table) -> str:
        def line(*cells: str) -> str:
            return "| " + " | ".join(cells) + " |"

        def name(text: str) -> str:
            return text.replace("|", "\\|")

        rows = [
            line(name(row.model), *(f"**{c.text()}**" if c.best else c.text() for c in row.in_order(self.datasets)))
            for row in table.rows
        ]
        return "\n".join(
            [
                f"**{table.title}**",
                "",
                line("", *map(name, self.datasets)),
                "|---|" + "---:|" * len(self.datasets),
                *rows,
                line("*Trivial*", *table.trivial_texts(self.datasets)),
            ]
        )

    def to_json(self) -> str:
        """Both tables with full precision."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Both tables as plain values."""
        return asdict(self)

    def render(self, console: Console) -> None:
        """Prints both tables and the notes; a table too wide for the terminal goes on below itself."""
        for table in self.tables:
            for datasets in _fitting(table, self.datasets, console.width):
                shown = RichTable(title=table.title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
                shown.add_column("model", no_wrap=True)
                for dataset in datasets:
                    shown.add_column(Text(dataset), justify="right", no_wrap=True)
                for row in table.rows:
                    shown.add_row(Text(row.model), *map(_rich_cell, row.in_order(datasets)))
                shown.add_section()
                shown.add_row(*(Text(text, "dim") for text in ("Trivial", *table.trivial_texts(datasets))))
                console.print(shown)
        console.print(Text(LEGEND + _bold_rule(len(self.tables[0].rows)), "dim"))
        for note in self.notes:
            console.print(Text(note, "bold red" if note.startswith(MARK) else "yellow"))


def build(runs: Sequence[Path]) -> Tables:
    """The tables of one or several run directories, a row each, in the order given.

    Every dataset is predicted by its own branch, or by the only one a model has.

    Raises:
        RamifyError: a directory is no run or not evaluated, or the runs were evaluated on different splits.
    """
    return from_results([Results.open(run) for run in runs])


def from_results(runs: Sequence[Results]) -> Tables:
    """The same for runs already read."""
    splits = {run.evaluation.split: run for run in runs}
    if not runs:
        raise RamifyError("no run to make tables of", fix="name at least one run directory")
    if len(splits) > 1:
        found = ", ".join(f"{run.path} on {split}" for split, run in splits.items())
        raise RamifyError(f"the runs were evaluated on different splits: {found}", fix="evaluate all on one split")
    datasets = list(dict.fromkeys(dataset for run in runs for dataset in run.datasets))
    names = _unique_names(runs)
    notes: list[str] = []
    tables = []
    for number, quantity in enumerate(QUANTITIES, 1):
        trivial = {d: _trivial(runs, d, quantity, notes) for d in datasets}
        rows = [
            ModelRow(
                model=name,
                run=str(run.path),
                trained_on=run.trained_on,
                cells={d: _cell(run, d, quantity, trivial[d]) for d in datasets},
            )
            for name, run in zip(names, runs, strict=True)
        ]
        what = "energy per atom" if quantity == "energy" else "forces (per component)"
        title = f"Table {number}. MAE of the {what} on the {runs[0].evaluation.split} split, {UNITS[quantity]}"
        table = Table(quantity, title, UNITS[quantity], _mark_best(rows, datasets), trivial)
        notes.extend(_warnings(table))
        tables.append(table)
    notes.extend(_different_splits(runs, datasets))
    return Tables(runs[0].evaluation.split, datasets, tables, list(dict.fromkeys(notes)))


def write(run: Path) -> Tables:
    """Builds the tables of one run and writes `tables.md` and `tables.json` into it."""
    tables = build([run])
    write_whole(Path(run) / "tables.md", tables.markdown())
    write_whole(Path(run) / "tables.json", tables.to_json())
    return tables


def format_error(value: float) -> str:
    """Four decimals as in the paper; two significant digits where that would leave fewer than two."""
    if not math.isfinite(value):
        return "not finite"
    if value == 0 or abs(value) >= 1e-3:
        return f"{value:.4f}"
    if abs(value) < 1e-5:
        return f"{value:.1e}"
    return f"{value:.{1 - math.floor(math.log10(abs(value)))}f}"


def _cell(run: Results, dataset: str, quantity: Quantity, trivial: float | None) -> Cell:
    row = run.own_row(dataset)
    if row is None:
        return Cell(None, None, None, None, "not evaluated")
    mae, rmse = getattr(row, f"{quantity}_mae"), getattr(row, f"{quantity}_rmse")
    beaten = mae is not None and trivial is not None and not mae < trivial  # also true of NaN
    missing: Missing = ""
    if mae is None:
        missing = "no label" if trivial is None else "no head"
    elif not math.isfinite(mae):
        mae, rmse, missing = None, None, "not finite"
    return Cell(mae, rmse, row.branch, row.structures, missing, no_better_than_trivial=beaten)


def _mark_best(rows: list[ModelRow], datasets: list[str]) -> list[ModelRow]:
    """Marks the best two models of each column, ties included, but never all: of two only the better, of one none."""
    places = min(2, len(rows) - 1)
    limit = {}
    for dataset in datasets:
        maes = [c.mae for c in (row.cells[dataset] for row in rows) if c.mae is not None]
        limit[dataset] = sorted(maes)[:places][-1] if maes and places else -math.inf
    return [
        replace(row, cells={d: replace(c, best=c.mae is not None and c.mae <= limit[d]) for d, c in row.cells.items()})
        for row in rows
    ]


def _trivial(runs: Sequence[Results], dataset: str, quantity: Quantity, notes: list[str]) -> float | None:
    """The trivial predictor's MAE; a note when runs disagree on it, for then they do not share references or split."""
    found: dict[float, str] = {}
    for run in runs:
        value = getattr(run.evaluation.trivial_of(dataset), f"{quantity}_mae")
        if value is not None and not any(math.isclose(value, other, rel_tol=1e-6) for other in found):
            found[value] = str(run.path)
    if len(found) > 1:
        listed = ", ".join(f"{format_error(value)} in {path}" for value, path in found.items())
        notes.append(
            f"{dataset}: runs disagree on the trivial predictor of {quantity} ({listed}): they were evaluated with "
            "different structures or reference energies, so this column does not compare."
        )
    return next(iter(found), None)


def _warnings(table: Table) -> list[str]:
    """A line for each model that is no better than trivial on a dataset it was trained on."""
    lines = []
    for row in table.rows:
        for dataset in row.trained_on:
            cell, trivial = row.cells[dataset], table.trivial[dataset]
            if trivial is None or not cell.no_better_than_trivial:
                continue
            small = table.quantity == "forces" and trivial < NEAR_ZERO_FORCES
            lines.append(
                f"{MARK} {row.model} is no better than trivial in the {table.quantity} of {dataset}: "
                f"{cell.value()} against {format_error(trivial)} {table.unit}"
                + (f" (forces there are below {NEAR_ZERO_FORCES} {table.unit} to begin with)" if small else "")
                + "."
            )
    return lines


def _different_splits(runs: Sequence[Results], datasets: list[str]) -> list[str]:
    lines = []
    for dataset in datasets:
        counts = {row.structures for row in (run.own_row(dataset) for run in runs) if row is not None}
        if len(counts) > 1:
            listed = ", ".join(str(count) for count in sorted(counts))
            lines.append(f"{dataset}: runs were evaluated on different numbers of structures ({listed}).")
    return lines


def _unique_names(runs: Sequence[Results]) -> list[str]:
    """Model names; those that occur twice carry their directory's name, or its path if that is not enough."""
    names = [run.name for run in runs]
    for places in ([run.path.name for run in runs], [str(run.path) for run in runs]):
        twice = {name for name in names if names.count(name) > 1}
        names = [
            f"{run.name} ({place})" if name in twice else name
            for name, run, place in zip(names, runs, places, strict=True)
        ]
    return names


def _bold_rule(models: int) -> str:
    return {1: "", 2: " Bold: the better of the two."}.get(models, " Bold: the two best of each column.")


def _fitting(table: Table, datasets: Sequence[str], width: int) -> list[list[str]]:
    """The columns in groups that fit a terminal beside the models' names (3 characters go between two columns)."""
    left = 4 + max(len(row.model) for row in table.rows)
    groups: list[list[str]] = [[]]
    used = left
    for dataset in datasets:
        cells = [row.cells[dataset].text() for row in table.rows]
        needed = 3 + max(len(text) for text in (dataset, *cells, *table.trivial_texts([dataset])))
        if groups[-1] and used + needed > width:
            groups.append([])
            used = left
        groups[-1].append(dataset)
        used += needed
    return groups


def _rich_cell(cell: Cell) -> Text:
    if cell.no_better_than_trivial:
        return Text.assemble((MARK, "bold white on red"), " ", (cell.value(), "bold green" if cell.best else ""))
    return Text(cell.value(), "dim" if cell.mae is None else "bold green" if cell.best else "")
