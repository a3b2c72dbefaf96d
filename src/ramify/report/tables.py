"""The paper's Tables 1 and 2, one of stress and one of each further label.

A row per model, a column per dataset, the trivial predictor below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ramify.errors import RamifyError
from ramify.evaluate.metrics import LEAST_SQUARES, REFERENCES
from ramify.evaluate.results import Results
from ramify.files import write_whole
from ramify.labels import LABELS, measurable
from ramify.report.measure import DEFAULT, MILLI, Measure
from ramify.report.table_format import MARK, QUANTITIES, Cell, Missing, ModelRow, Quantity, Table, Tables, format_error

NEAR_ZERO_FORCES = 0.01
"""eV/Å; below this MAE of zero forces, the structures of a dataset are near minima and its forces carry little."""
PREDICTORS = {
    REFERENCES: "its own reference energies",
    LEAST_SQUARES: "plain least squares on its training split",
}
"""Names of the trivial predictors of energies in footnotes."""


def build(runs: Sequence[Path], measure: Measure = DEFAULT) -> Tables:
    """The tables of one or several run directories, one row each, in the given order.

    Every dataset is predicted by its own branch, or by the only branch of a model.

    Raises:
        RamifyError: a directory is not a run or not evaluated, the runs were evaluated on different splits, or total
            energies are wanted of a run without saved predictions.
    """
    return from_results([Results.open(run) for run in runs], measure)


def from_results(runs: Sequence[Results], measure: Measure = DEFAULT) -> Tables:
    """The tables of runs that are already read: energies, forces, and further labels that a run was trained on."""
    splits = {run.evaluation.split: run for run in runs}
    if not runs:
        raise RamifyError("no run to make tables of", fix="name at least one run directory")
    if len(splits) > 1:
        found = ", ".join(f"{run.path} on {split}" for split, run in splits.items())
        raise RamifyError(f"the runs were evaluated on different splits: {found}", fix="evaluate all on one split")
    datasets = list(dict.fromkeys(dataset for run in runs for dataset in run.datasets))
    notes: list[str] = []
    tables: list[Table] = []
    for quantity in LABELS:
        labelled = [d for d in datasets if any(run.evaluation.trivial_of(d).mae(quantity) is not None for run in runs)]
        if quantity in QUANTITIES:
            labelled = datasets
        elif not any(run.trained_on_label(quantity) for run in runs):
            continue
        if labelled:
            tables.append(_table(len(tables) + 1, quantity, runs, labelled, notes, measure))
    notes.extend(_different_splits(runs, datasets))
    return Tables(
        runs[0].evaluation.split,
        datasets,
        tables,
        _footnotes(runs, datasets, [t.quantity for t in tables if t.quantity not in QUANTITIES]),
        list(dict.fromkeys(notes)),
    )


def _table(
    number: int,
    quantity: Quantity,
    runs: Sequence[Results],
    datasets: list[str],
    notes: list[str],
    measure: Measure,
) -> Table:
    """One table; adds its warnings to `notes`."""
    unit, names = measure.unit(quantity), unique_names(runs)
    trivial = {d: _trivial(runs, d, quantity, notes, measure) for d in datasets}
    rows = [
        ModelRow(
            model=name,
            run=str(run.path),
            trained_on=run.trained_on,
            cells={d: _cell(run, d, quantity, trivial[d], measure) for d in datasets},
        )
        for name, run in zip(names, runs, strict=True)
    ]
    title = f"{measure.name} of the {measure.title(quantity)} on the {runs[0].evaluation.split} split, {unit}"
    table = Table(quantity, f"Table {number}. {title}", unit, datasets, _mark_best(rows, datasets), trivial, measure)
    judged = [
        row
        for row, run in zip(table.rows, runs, strict=True)
        if quantity in QUANTITIES or run.trained_on_label(quantity)
    ]
    notes.extend(_warnings(table, judged))
    return table


def write(run: Path) -> Tables:
    """Builds the tables of one run and writes `tables.md` and `tables.json` into it."""
    tables = build([run])
    write_whole(Path(run) / "tables.md", tables.markdown())
    write_whole(Path(run) / "tables.json", tables.to_json())
    return tables


def _cell(run: Results, dataset: str, quantity: Quantity, trivial: float | None, measure: Measure) -> Cell:
    row = run.own_row(dataset)
    if row is None:
        return Cell(None, None, None, None, "not evaluated")
    error, square = measure.errors(run, row, quantity)
    shown, known = square if measure.rmse else error, run.evaluation.trivial_of(dataset).mae(quantity)
    beaten = False
    if shown is not None and trivial is not None and measurable(quantity, trivial if known is None else known):
        beaten = not shown < trivial  # also true for NaN
    missing: Missing = ""
    if error is None:
        missing = "no label" if trivial is None else "not predicted" if quantity == "stress" else "no head"
    elif not math.isfinite(error):
        error, square, missing = None, None, "not finite"
    return Cell(error, square, row.branch, row.structures, missing, no_better_than_trivial=beaten, measure=measure)


def _mark_best(rows: list[ModelRow], datasets: list[str]) -> list[ModelRow]:
    """Marks the best two models of each column, ties included, but never all: of two only the better, of one none."""
    places = min(2, len(rows) - 1)
    limit = {}
    for dataset in datasets:
        errors = [c.error for c in (row.cells[dataset] for row in rows) if c.error is not None]
        limit[dataset] = sorted(errors)[:places][-1] if errors and places else -math.inf

    def marked(cell: Cell, dataset: str) -> Cell:
        return replace(cell, best=cell.error is not None and cell.error <= limit[dataset])

    return [replace(row, cells={d: marked(c, d) for d, c in row.cells.items()}) for row in rows]


def _trivial(
    runs: Sequence[Results], dataset: str, quantity: Quantity, notes: list[str], measure: Measure
) -> float | None:
    """The trivial error; adds a note if runs disagree on it, since then their references or splits differ."""
    found: dict[float, str] = {}
    for run in runs:
        value = measure.trivial(run, dataset, quantity)
        if value is not None and not any(math.isclose(value, other, rel_tol=1e-6) for other in found):
            found[value] = str(run.path)
    if len(found) > 1:
        listed = ", ".join(f"{format_error(value, measure)} in {path}" for value, path in found.items())
        notes.append(
            f"{dataset}: runs disagree on the trivial predictor of {quantity} ({listed}): they were evaluated with "
            "different structures or reference energies, so this column is not comparable."
        )
    return next(iter(found), None)


def _warnings(table: Table, rows: Sequence[ModelRow]) -> list[str]:
    """A line for each model of `rows` that is no better than trivial on a dataset it was trained on."""
    lines = []
    for row in rows:
        for dataset in (d for d in row.trained_on if d in table.datasets):
            cell, trivial = row.cells[dataset], table.trivial[dataset]
            if trivial is None or not cell.no_better_than_trivial:
                continue
            small = table.quantity == "forces" and trivial < NEAR_ZERO_FORCES * (MILLI if table.measure.total else 1.0)
            lines.append(
                f"{MARK} {row.model} is no better than trivial in the {table.quantity} of {dataset}: "
                f"{cell.value()} against {format_error(trivial, table.measure)} {table.unit}"
                + (f" (forces there are below {NEAR_ZERO_FORCES} eV/Å to begin with)" if small else "")
                + "."
            )
    return lines


def _footnotes(runs: Sequence[Results], datasets: list[str], others: Sequence[Quantity]) -> list[str]:
    """Footnotes: the predictor in the last row of Table 1 where there is a choice, trivial errors that are too small to
    compare with, and models that were not trained on stress or a further label."""
    lines = []
    for dataset in datasets:
        found = (run.evaluation.trivial_of(dataset).energy_mae_by for run in runs)
        errors = {k: v for k, v in next((by for by in found if len(by) > 1), {}).items() if v is not None}
        if len(errors) > 1:
            (better, low), (other, high) = sorted(errors.items(), key=lambda item: item[1])
            lines.append(
                f"Trivial energy of {dataset}: {PREDICTORS[better]} ({format_error(low)}), which has a lower MAE than "
                f"{PREDICTORS[other]} ({format_error(high)})."
            )
    names = unique_names(runs)
    for quantity in others:
        if LABELS[quantity].trivial == "mean":
            lines.append(f"Trivial {LABELS[quantity].title}: the mean of the training split.")
        if not_trained := [n for n, run in zip(names, runs, strict=True) if not run.trained_on_label(quantity)]:
            text = f"{', '.join(not_trained)} predicts it without being trained on it."
            lines.append(f"{LABELS[quantity].title.capitalize()}: {text}")
    for quantity in (*QUANTITIES, *others):
        trivial = {d: runs[0].evaluation.trivial_of(d).mae(quantity) for d in datasets}
        if flat := [d for d, error in trivial.items() if error is not None and not measurable(quantity, error)]:
            title, unit = LABELS[quantity].title, LABELS[quantity].error_unit
            lines.append(
                f"{title.capitalize()} of {', '.join(flat)}: the trivial error is below "
                f"{LABELS[quantity].floor:g} {unit}, which is rounding; errors are not compared with it."
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


def unique_names(runs: Sequence[Results]) -> list[str]:
    """Model names; duplicates are followed by the name of the directory, or by its path if that is not unique."""
    names = [run.name for run in runs]
    for places in ([run.path.name for run in runs], [str(run.path) for run in runs]):
        twice = {name for name in names if names.count(name) > 1}
        names = [
            f"{run.name} ({place})" if name in twice else name
            for name, run, place in zip(names, runs, places, strict=True)
        ]
    return names
