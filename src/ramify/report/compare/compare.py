"""`comparison.html`: several runs side by side as one self-contained file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ramify.errors import RamifyError
from ramify.evaluate.results import Results
from ramify.files import write_whole
from ramify.labels import LABELS
from ramify.recipe.overrides import dotted
from ramify.report import plots, tables
from ramify.report.compare.figures import element_differences, errors_by_element, learning_curves
from ramify.report.page import environment
from ramify.report.report import share, share_style
from ramify.report.svg import Drawing, colors
from ramify.report.table_format import QUANTITIES


def write_comparison(runs: Sequence[Path], path: Path) -> Path:
    """Writes a page that compares runs, in the given order; differences are those from the first.

    Raises:
        RamifyError: a run is named twice, is not a run directory or not evaluated, the runs were evaluated on different
            splits, or the page cannot be written.
    """
    resolved = [Path(run).resolve() for run in runs]
    if twice := next((run for run in resolved if resolved.count(run) > 1), None):
        raise RamifyError(f"{twice} is named twice", fix="name every run once")
    write_whole(path, render([Results.open(Path(run)) for run in runs]))
    return path


def render(runs: Sequence[Results]) -> str:
    """The page as text."""
    names, made = tables.unique_names(runs), tables.from_results(runs)
    named = dict(zip(names, runs, strict=True))
    pages = environment("ramify.report")
    pages.globals.update(share=share, share_style=share_style)
    palette = colors(names)
    return pages.get_template("compare/comparison.html.j2").render(
        runs=named,
        tables=made,
        palette=palette,
        dataset_palette=colors(made.datasets),
        curves=[(d, drawn) for d in made.datasets if (drawn := list(curves(named, d, palette)))],
        distributions=[(d, drawn) for d in made.datasets if (drawn := list(distributions(named, d, palette)))],
        elements=list(elements(named, made.datasets)),
        keys=different_keys(named),
    )


def curves(runs: Mapping[str, Results], dataset: str, palette: Mapping[str, str]) -> Iterator[tuple[str, Drawing]]:
    """Validation errors of all runs while training, one figure for each label."""
    for quantity, label in LABELS.items():
        found = {name: plots.validation_curve(run.val, dataset, quantity) for name, run in runs.items()}
        lines = {name: [curve] for name, (curve, _) in found.items()}
        trivial = next((error for _, error in found.values() if error), None)
        drawn = learning_curves(
            lines, dataset=dataset, quantity=quantity, palette=palette, trivial=trivial, axis="epoch"
        )
        if drawn is not None:
            yield (quantity if quantity in QUANTITIES else label.title).capitalize(), drawn


def distributions(
    runs: Mapping[str, Results], dataset: str, palette: Mapping[str, str]
) -> Iterator[tuple[str, Drawing]]:
    """Distributions of the test errors of all runs on one dataset."""
    found = {name: stored for name, run in runs.items() if (stored := run.predictions(dataset)) is not None}
    for quantity in QUANTITIES:
        errors = {name: stored.error_norms(quantity) for name, stored in found.items()}
        first = next(iter(found), None)
        trivial = {name: found[name].trivial_norms(quantity) if name == first else np.zeros(0) for name in found}
        drawn = plots.distribution(errors, trivial=trivial, quantity=quantity, palette=palette)
        if drawn is not None:
            yield quantity.capitalize(), drawn


def elements(runs: Mapping[str, Results], datasets: Sequence[str]) -> Iterator[tuple[str, Drawing]]:
    """Error of every further run minus that of the first by element, one figure for each run and label."""
    (first, base), *others = runs.items()
    for quantity in QUANTITIES:
        reference = {dataset: errors_by_element(base, dataset, quantity) for dataset in datasets}
        for name, run in others:
            differences: dict[str, dict[str, float]] = {}
            for dataset, before in reference.items():
                after = errors_by_element(run, dataset, quantity)
                if both := {symbol: after[symbol] - before[symbol] for symbol in after if symbol in before}:
                    differences[dataset] = both
            drawn = element_differences(
                differences, quantity=quantity, palette=colors(datasets), model=name, against=first, axis="difference"
            )
            if drawn is not None:
                yield f"{quantity.capitalize()}: {name} minus {first}, {LABELS[quantity].error_unit}", drawn


def different_keys(runs: Mapping[str, Results]) -> list[tuple[str, list[str]]]:
    """Recipe keys whose values differ between the runs, with the value of each; — where a recipe has no such key."""
    flat = [dict(dotted(run.recipe)) for run in runs.values()]
    keys = list(dict.fromkeys(key for values in flat for key in values))
    rows = [(key, [str(values.get(key, "—")) for values in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]
