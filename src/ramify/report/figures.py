"""The figures of a report, drawn from the predictions, history and manifests of a run."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ramify.evaluate.metrics import Errors
from ramify.evaluate.results import Results, StoredPredictions
from ramify.labels import LABELS
from ramify.report import plots
from ramify.report.explore.embed import payload
from ramify.report.explore.worst import Worst, download, worst
from ramify.report.periodic_table import periodic_table
from ramify.report.svg import Drawing, colors
from ramify.report.table_format import QUANTITIES, format_error

QUANTILES = (0.5, 0.9, 0.99, 1.0)


@dataclass(frozen=True)
class DatasetFigures:
    """Figures of one dataset: predictions of its own branch, learning curves, the structures with the largest errors,
    and a `data:` address to download these."""

    dataset: str
    drawings: list[tuple[str, Drawing]]
    worst: list[Worst]
    download: str | None = None


@dataclass(frozen=True)
class ErrorQuantiles:
    """Quantiles of the absolute errors of one dataset: energies per structure, force errors (norms) per atom."""

    dataset: str
    energy: list[float] | None
    forces: list[float] | None


@dataclass
class Figures:
    """All figures with their captions; a list is empty if the run lacks the data for it. `structures`: those that the
    page contains, see `embed.payload`."""

    datasets: list[DatasetFigures] = field(default_factory=list)
    distributions: list[tuple[str, Drawing]] = field(default_factory=list)
    spreads: list[ErrorQuantiles] = field(default_factory=list)
    elements: list[tuple[str, Drawing]] = field(default_factory=list)
    relative: list[tuple[str, Drawing]] = field(default_factory=list)
    training: list[tuple[str, Drawing]] = field(default_factory=list)
    table: Drawing | None = None
    tables: list[tuple[str, int, Drawing]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    structures: dict[str, Any] = field(default_factory=dict)


def draw(results: Results) -> Figures:
    """Draws all figures of a run."""
    made, palette = Figures(), colors(results.datasets)
    found = {d: p for d in results.datasets if (p := results.predictions(d)) is not None}
    epoch = epoch_of(results)
    for dataset in results.datasets:
        shown = _dataset(results, dataset, found.get(dataset), palette[dataset], epoch)
        if shown.drawings:
            made.datasets.append(shown)
        if dataset in found:
            made.notes.extend(_stale(results, dataset, found[dataset]))
    made.structures = payload(found)
    errors = {q: {d: p.error_norms(q) for d, p in found.items()} for q in QUANTITIES}
    trivial = {q: {d: p.trivial_norms(q) for d, p in found.items()} for q in QUANTITIES}
    by_element = {d: p.by_element() for d, p in found.items()}
    for quantity in QUANTITIES:
        name = quantity.capitalize()
        drawing = plots.distribution(errors[quantity], trivial=trivial[quantity], quantity=quantity, palette=palette)
        _keep(made.distributions, name, drawing)
        _keep(made.elements, name, plots.element_errors(by_element, quantity=quantity, palette=palette))
    for quantity in LABELS:
        drawing = plots.relative_curves(results.val, quantity=quantity, palette=palette, epoch=epoch)
        name = quantity if quantity in QUANTITIES else LABELS[quantity].title
        _keep(made.relative, name.capitalize(), drawing)
    made.spreads = [ErrorQuantiles(d, *(_quantiles(errors[q][d]) for q in QUANTITIES)) for d in found]
    for key, label in (("loss", "training loss"), ("lr", "learning rate"), ("grad_norm", "gradient norm")):
        _keep(made.training, "", plots.training_curve(results.train, key=key, label=label))
    _count_elements(results, made)
    return made


def epoch_of(results: Results) -> float | None:
    """The epoch of the step that was evaluated, or None if the history does not contain that step."""
    step = results.evaluation.step
    return next((float(r["epoch"]) for r in (*results.val, *results.train) if r["step"] == step), None)


def _dataset(
    results: Results, dataset: str, found: StoredPredictions | None, color: str, epoch: float | None
) -> DatasetFigures:
    listed = [] if found is None else worst(found)
    shown = DatasetFigures(dataset, [], listed, None if found is None else download(found, listed))
    if found is not None:
        for quantity, true in found.true.items():
            drawing = plots.parity(true, found.predicted[quantity], quantity=quantity, color=color, dataset=dataset)
            _keep(shown.drawings, plots.components_of(quantity).capitalize(), drawing)
    for quantity, label in LABELS.items():
        curve = plots.learning_curve(results.val, dataset=dataset, quantity=quantity, color=color, epoch=epoch)
        name = quantity if quantity in QUANTITIES else label.title
        _keep(shown.drawings, f"{name.capitalize()} while training", curve)
    return shown


def _stale(results: Results, dataset: str, found: StoredPredictions) -> list[str]:
    """A note if the saved predictions do not match `evaluation.json`."""
    row = results.own_row(dataset)
    if row is None:
        return []
    gathered = Errors()
    notes = []
    for quantity in found.true:
        gathered.add(quantity, found.error(quantity))
        stated, here = row.mae(quantity), gathered.mae(quantity)
        # 1e-3: forces are saved as float32, whose rounding may be 1e-4 of a very small error
        if stated is not None and here is not None and not math.isclose(stated, here, rel_tol=1e-3, abs_tol=1e-7):
            notes.append(
                f"{dataset}: the saved predictions have an MAE of {format_error(here)} in {quantity}, evaluation.json "
                f"states {format_error(stated)}: one of them is outdated, evaluate the run again."
            )
    return notes


def _quantiles(errors: NDArray[np.floating]) -> list[float] | None:
    finite = errors[np.isfinite(errors)]
    return [float(q) for q in np.quantile(finite, QUANTILES)] if len(finite) else None


def _count_elements(results: Results, made: Figures) -> None:
    """The periodic tables: one for all datasets together, and one for each dataset with the same scale."""
    each = {
        dataset: Counter({symbol: sum(splits.values()) for symbol, splits in results.data[dataset].elements.items()})
        for dataset in results.datasets
        if dataset in results.data
    }
    total = sum(each.values(), Counter())
    if not total:
        return
    shares = {
        symbol: "\n".join(f"{dataset}: {counts[symbol]:,}" for dataset, counts in each.items() if counts[symbol])
        for symbol in total
    }
    made.table = periodic_table(total, tooltips=shares)
    if len(each) > 1:
        largest = max(total.values())
        made.tables = [
            (d, len(+counts), periodic_table(counts, largest=largest, compact=True)) for d, counts in each.items()
        ]


def _keep(drawings: list[tuple[str, Drawing]], caption: str, drawing: Drawing | None) -> None:
    if drawing is not None:
        drawings.append((caption, drawing))
