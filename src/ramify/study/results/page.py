"""`study.html`: the comparison of a study as one self-contained page, in the style of the report of a run."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from ramify.labels import LABELS
from ramify.report.compare.figures import element_differences, errors_by_element, learning_curves
from ramify.report.page import clock, environment, few_groups, made_with
from ramify.report.plots import Curve, validation_curve
from ramify.report.report import share_style
from ramify.report.svg import Drawing, colors
from ramify.report.table_format import QUANTITIES, Quantity, bold_rule, format_error
from ramify.study.models import Kind
from ramify.study.results import plots
from ramify.study.results.outcome import Outcome
from ramify.study.results.tables import Measured, Table, Trained
from ramify.study.results.text import number, spread
from ramify.study.scaling import PLACEMENTS
from ramify.study.table import Study

AXES = {"passes": ("epoch", "passes over the model's data"), "steps": ("step", "step"), "time": ("time", "seconds")}
"""Key of a line of metrics.jsonl, and label of the horizontal axis of learning curves, by `--equal`."""
EQUAL = {
    "passes": "Every model passes equally often over its own data.",
    "steps": "Every model takes the same number of steps.",
    "time": "Every model takes as many steps as fit into the same time.",
}


def render_page(study: Study, outcome: Outcome, scaling: list[dict[str, Any]]) -> str:
    """The page as text.

    Args:
        study: the study.
        outcome: its results.
        scaling: see `ramify.study.scaling.scaling_rows`; empty without a measurement.
    """
    kinds: dict[str, Kind] = {run.task.model: run.task.kind for run in outcome.runs}
    palette = plots.model_colors(kinds)
    groups = {name: manifest.splits["test"].groups for name, manifest in outcome.manifests.items()}
    pages = environment("ramify.study.results")
    pages.globals.update(cell_style=cell_style, number=number, spread=spread, error=format_error)
    return pages.get_template("study.html.j2").render(
        study=study,
        tables=outcome.tables,
        notes=outcome.tables.footnotes,  # colours stand for the marks of the other forms
        verdict=outcome.verdict,
        facts=_facts(study, outcome),
        framed=bold_rule(len(kinds), marked="Framed"),
        warnings=few_groups("test", groups),
        equal=EQUAL[study.equal],
        models=_key(kinds, palette),
        palette=colors(study.datasets),
        curves=[(dataset, _curves(study, outcome, dataset, palette)) for dataset in study.datasets],
        elements=_elements(study, outcome),
        costs=outcome.costs,
        scaling=scaling,
        placements=PLACEMENTS,
        scaling_plots=[
            (mode, drawn)
            for mode in ("weak", "strong")
            if (drawn := plots.scaling(scaling, mode=mode, names=PLACEMENTS))
        ],
        recipe=study.recipe.to_yaml(),
        versions=made_with("torch", "numpy", "ase", "matplotlib"),
    )


def cell_style(table: Table, dataset: str, error: Measured | None) -> str:
    """Background of a cell by the ratio to the trivial error."""
    trivial = table.trivial[dataset]
    return share_style(error.mean / trivial if error is not None and trivial else None)


def _facts(study: Study, outcome: Outcome) -> list[tuple[str, str]]:
    splits = [manifest.splits for manifest in outcome.manifests.values()]
    seeds = max(len(row.seeds) for row in outcome.tables.tables[0].rows)
    seconds = [cost.seconds for cost in outcome.costs if cost.seconds is not None]
    return [
        ("datasets", str(len(study.datasets))),
        ("models", str(len(outcome.tables.tables[0].rows))),
        ("seeds", str(seeds)),
        ("training structures", f"{sum(split['train'].structures for split in splits):,}"),
        ("test structures", f"{sum(split['test'].structures for split in splits):,}"),
        ("training time of all", clock(seeds * sum(seconds))),
    ]


def _key(kinds: Mapping[str, Kind], palette: Mapping[str, str]) -> list[tuple[str, str]]:
    """Name and colour of each line of the learning curves; the single-dataset models have one entry."""
    entries: dict[str, str] = {}
    for name, kind in kinds.items():
        entries.setdefault("single-dataset model" if kind == "single" else name, palette[name])
    return list(entries.items())


def _curves(study: Study, outcome: Outcome, dataset: str, palette: Mapping[str, str]) -> list[tuple[str, Drawing]]:
    """Learning curves of one dataset: energies, forces."""
    key, axis = AXES[study.equal]
    drawings = []
    for quantity in QUANTITIES:
        curves: dict[str, list[Curve]] = {}
        trivial: float | None = None
        for run in (run for run in outcome.runs if dataset in run.task.datasets):
            curve, error = validation_curve(run.results.val, dataset, quantity, key)
            curves.setdefault(run.task.model, []).append(curve)
            trivial = error or trivial
        drawn = learning_curves(curves, dataset=dataset, quantity=quantity, palette=palette, trivial=trivial, axis=axis)
        if drawn is not None:
            drawings.append((quantity.capitalize(), drawn))
    return drawings


def _elements(study: Study, outcome: Outcome) -> list[tuple[str, Drawing]]:
    """Errors by element, multi-branch minus single-dataset model, where both exist."""
    names = [run.task.model for run in outcome.runs if run.task.kind == "mtl"]
    if not names:
        return []
    model = names[-1]
    drawings = []
    for quantity in QUANTITIES:
        differences: dict[str, dict[str, float]] = {}
        for dataset in study.datasets:
            joint = _by_element([r for r in outcome.runs if r.task.model == model], dataset, quantity)
            alone = _by_element([r for r in outcome.runs if r.task.datasets == [dataset]], dataset, quantity)
            if both := {symbol: joint[symbol] - alone[symbol] for symbol in joint if symbol in alone}:
                differences[dataset] = both
        drawn = element_differences(
            differences,
            quantity=quantity,
            palette=colors(study.datasets),
            model=model,
            against="the single-dataset models",
            axis=f"{model} − single",
        )
        if drawn is not None:
            drawings.append((f"{quantity.capitalize()}, {LABELS[quantity].error_unit}", drawn))
    return drawings


def _by_element(runs: list[Trained], dataset: str, quantity: Quantity) -> dict[str, float]:
    """Error of each element in a dataset, mean over seeds."""
    found: dict[str, list[float]] = {}
    for run in runs:
        for symbol, value in errors_by_element(run.results, dataset, quantity).items():
            found.setdefault(symbol, []).append(value)
    return {symbol: fmean(values) for symbol, values in found.items()}
