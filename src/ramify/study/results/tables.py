"""Tables 1 and 2 of a study: mean and spread over seeds, the two best of each column, references fitted again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean, stdev
from typing import Any

from ramify.evaluate.results import Results
from ramify.labels import LABELS, measurable
from ramify.report.table_format import QUANTITIES, TRIVIAL, Quantity, bold_rule
from ramify.run.sessions import Sessions
from ramify.store.manifest import Manifest
from ramify.study.models import Kind
from ramify.study.table import Study, Task

BEST = 2
"""Number of models marked in each column, as in the paper."""


@dataclass(frozen=True)
class Measured:
    """Errors of one model over its seeds.

    Attributes:
        values: by seed.
        mean: of them.
        spread: their standard deviation (n - 1); None for one seed.
    """

    values: tuple[float, ...]
    mean: float
    spread: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Measured | None:
        """None if nothing was measured."""
        if not values:
            return None
        return cls(tuple(values), fmean(values), stdev(values) if len(values) > 1 else None)


@dataclass(frozen=True)
class Cell:
    """One model on one dataset.

    Attributes:
        error: None where nothing is labelled or predicted, or the model diverged.
        refitted: for energies of a dataset that the model was not trained on: the error after the references of the
            dataset were fitted again to the predictions.
        branch: that predicted.
        foreign: whether the model was not trained on the dataset.
        best: whether it is one of the two best of its column.
        no_better_than_trivial: the mean is not below the trivial error.
    """

    error: Measured | None
    refitted: Measured | None
    branch: str
    foreign: bool
    best: bool = False
    no_better_than_trivial: bool = False


@dataclass(frozen=True)
class Row:
    """One model."""

    model: str
    kind: Kind
    trained_on: tuple[str, ...]
    seeds: tuple[int, ...]
    cells: dict[str, Cell]


@dataclass(frozen=True)
class Table:
    """One quantity: a row per model, a column per dataset."""

    quantity: Quantity
    title: str
    unit: str
    datasets: tuple[str, ...]
    rows: tuple[Row, ...]
    trivial: dict[str, float | None]


@dataclass(frozen=True)
class Tables:
    """All tables of a study, with their footnotes."""

    tables: tuple[Table, ...]
    footnotes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Trained:
    """An evaluated run of a study."""

    task: Task
    results: Results


def trained_runs(study: Study) -> list[Trained]:
    """The evaluated runs, in the order of the tables."""
    return [Trained(task, Results.open(study.run(task))) for task in study.tasks if task.state == "done"]


def make_tables(runs: Sequence[Trained], manifests: Mapping[str, Manifest]) -> Tables:
    """The tables of evaluated runs: energies and forces, a column per dataset of `manifests`."""
    by_model: dict[str, list[Trained]] = {}
    for run in runs:
        by_model.setdefault(run.task.model, []).append(run)
    tables = [_table(k, quantity, by_model, manifests) for k, quantity in enumerate(QUANTITIES, 1)]
    return Tables(tuple(tables), tuple(_footnotes(by_model, manifests)))


def _table(
    number: int, quantity: Quantity, by_model: Mapping[str, Sequence[Trained]], manifests: Mapping[str, Manifest]
) -> Table:
    first = next(iter(by_model.values()))[0].results.evaluation
    trivial = {dataset: first.trivial_of(dataset).mae(quantity) for dataset in manifests}
    rows = []
    for model, runs in by_model.items():
        task = runs[0].task
        cells = {d: _cell(runs, d, quantity, trivial[d], manifests) for d in manifests}
        rows.append(Row(model, task.kind, tuple(task.datasets), tuple(r.task.seed for r in runs), cells))
    label = LABELS[quantity]
    title = f"Table {number}. MAE of the {label.components} on the test split, {label.error_unit}"
    return Table(quantity, title, label.error_unit, tuple(manifests), tuple(mark_best(rows, list(manifests))), trivial)


def _cell(
    runs: Sequence[Trained],
    dataset: str,
    quantity: Quantity,
    trivial: float | None,
    manifests: Mapping[str, Manifest],
) -> Cell:
    branch = chosen_branch(runs[0].results, dataset, manifests)
    found = [run.results.evaluation.row(branch, dataset) for run in runs]
    values = [v for row in found if row is not None and (v := row.mae(quantity)) is not None and math.isfinite(v)]
    foreign = dataset not in runs[0].task.datasets
    fitted = [row.refitted_energy_mae for row in found if row is not None] if quantity == "energy" and foreign else []
    error = Measured.of(values)
    beaten = error is not None and trivial is not None and measurable(quantity, trivial) and not error.mean < trivial
    return Cell(
        error, Measured.of([v for v in fitted if v is not None]), branch, foreign, no_better_than_trivial=beaten
    )


def chosen_branch(results: Results, dataset: str, manifests: Mapping[str, Manifest]) -> str:
    """The branch that predicts a dataset: its own, the only one, or for a foreign dataset the one that knows most.

    Of several branches, the one whose training data contain the elements of the largest fraction of the atoms of the
    dataset; of equal ones the one with more training structures.
    """
    evaluation = results.evaluation
    if (own := evaluation.branch_of.get(dataset)) is not None:
        return own

    def knowledge(branch: str) -> tuple[float, int]:
        trained = [manifests[name] for name, b in evaluation.branch_of.items() if b == branch and name in manifests]
        known = {symbol for manifest in trained for symbol, counts in manifest.elements.items() if counts.get("train")}
        atoms = {s: counts.get("train", 0) for s, counts in manifests[dataset].elements.items()}
        covered = sum(count for symbol, count in atoms.items() if symbol in known)
        return covered / max(1, sum(atoms.values())), sum(m.splits["train"].structures for m in trained)

    return max(evaluation.branches, key=knowledge)


def mark_best(rows: Sequence[Row], datasets: Sequence[str]) -> list[Row]:
    """Marks the two best of each column, but only those whose mean is below the best one that is not marked by more
    than the spread of their difference over seeds."""
    marked = {dataset: _best_of([row.cells[dataset].error for row in rows]) for dataset in datasets}
    return [
        replace(row, cells={d: replace(cell, best=k in marked[d]) for d, cell in row.cells.items()})
        for k, row in enumerate(rows)
    ]


def _best_of(errors: Sequence[Measured | None]) -> set[int]:
    """Indices of the marked errors of a column; never all of them."""
    order = sorted((e.mean, k) for k, e in enumerate(errors) if e is not None)
    places = min(BEST, len(order) - 1)
    if places < 1:
        return set()
    next_best = errors[order[places][1]]
    assert next_best is not None
    return {k for _, k in order[:places] if (e := errors[k]) is not None and clearly_below(e, next_best)}


def clearly_below(a: Measured, b: Measured) -> bool:
    """Whether the mean of `a` is below that of `b` by more than the standard deviation of the difference of two runs.

    With one seed there is no spread, and every difference counts.
    """
    return b.mean - a.mean > math.hypot(a.spread or 0.0, b.spread or 0.0)


def _footnotes(by_model: Mapping[str, Sequence[Trained]], manifests: Mapping[str, Manifest]) -> list[str]:
    seeds = {len(runs) for runs in by_model.values()}
    unless = ", unless the difference from the next one is less than the spread over seeds" if max(seeds) > 1 else ""
    unknown = "" if max(seeds) > 1 else " One seed: the spread of these errors is not known."
    lines = [TRIVIAL + bold_rule(len(by_model), unless=unless) + unknown]
    if max(seeds) > 1:
        lines.append(f"Mean ± standard deviation over {max(seeds)} seeds.")
    if len(seeds) > 1:
        few = [f"{model} {len(runs)}" for model, runs in by_model.items() if len(runs) < max(seeds)]
        lines.append(f"Fewer seeds so far: {', '.join(few)}.")
    lines.append(
        "Energies are compared after the reference energies of each dataset. Refitted: of a model that was not trained "
        "on the dataset, after one energy per element was fitted to label minus prediction on its training split."
    )
    lines += [*_lengthened(by_model), *_branches_taken(by_model, manifests)]
    for model, runs in by_model.items():
        task = runs[0].task
        if task.kind != "single" and len(task.datasets) < len(manifests):
            lines.append(f"{model} was trained on {len(task.datasets)} datasets: {', '.join(task.datasets)}.")
    return lines


def _lengthened(by_model: Mapping[str, Sequence[Trained]]) -> list[str]:
    """A line on runs that were continued to a greater length, whose schedule began anew in its middle."""
    runs = [run for found in by_model.values() for run in found]
    names = [run.task.name for run in runs if any(_has_new_length(line) for line in Sessions(run.results.path).lines())]
    if not names:
        return []
    which = "All trainings" if len(names) == len(runs) else ", ".join(names)
    return [
        f"{which} had ended at a smaller length and were continued with a higher learning rate: their errors are not "
        "those of trainings that had this length from the start."
    ]


def _has_new_length(session: Mapping[str, Any]) -> bool:
    return not {"train.epochs", "train.max_steps"}.isdisjoint(session.get("changed", {}))


def _branches_taken(by_model: Mapping[str, Sequence[Trained]], manifests: Mapping[str, Manifest]) -> list[str]:
    """A line on the branch that predicts foreign datasets."""
    lines = []
    if any(runs[0].task.kind == "single" for runs in by_model.values()):
        lines.append("A single-dataset model predicts all datasets with its only branch.")
    for model, runs in by_model.items():
        foreign = [d for d in manifests if d not in runs[0].task.datasets]
        if runs[0].task.kind == "mtl" and foreign:
            taken = ", ".join(f"{d} with the branch {chosen_branch(runs[0].results, d, manifests)}" for d in foreign)
            lines.append(f"{model} predicts {taken}.")
    return lines
