"""`report.html`: all results in a run directory as one self-contained file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import geometric_mean

import numpy as np

from ramify.elements import NUMBERS
from ramify.evaluate.publish import ERRORS, evaluation_folder
from ramify.evaluate.results import Results
from ramify.files import write_whole
from ramify.labels import LABELS, measurable
from ramify.report import error_bars, figures, tables
from ramify.report.explore import embed
from ramify.report.page import clock, environment, few_groups, made_with
from ramify.report.svg import colors, short_count
from ramify.report.table_format import QUANTITIES, Quantity
from ramify.structures import state_text


def write_report(run: Path, out: Path | None = None) -> Path:
    """Writes `report.html` into a run directory, or `out`, and returns its path.

    Sections whose files the run lacks (predictions, history, manifests) contain a note instead.

    Raises:
        RamifyError: `run` is not a run directory or not evaluated, a file is damaged, or the report cannot be written.
    """
    path = out or Path(run) / "report.html"
    write_whole(path, render(Results.open(Path(run))))
    return path


def render(results: Results) -> str:
    """The page as text."""
    made = tables.from_results([results])
    drawn = figures.draw(results)
    groups = {dataset: groups_of(results, dataset) for dataset in results.datasets}
    pages = environment("ramify.report")

    pages.globals.update(embed=embed)
    pages.globals.update(share=share, share_style=share_style, state_text=state_text)
    pages.filters.update(short=short_count)
    return pages.get_template("report.html.j2").render(
        results=results,
        evaluation=results.evaluation,
        tables=made,
        warnings=[*made.notes, *drawn.notes, *shared_groups(results), *few_groups(results.evaluation.split, groups)],
        palette=colors(results.datasets),
        verdict=verdict(results),
        facts=facts(results),
        groups=groups,
        evaluated=_when(evaluation_folder(results.path) / ERRORS),
        matrices=matrices(results) if len(results.evaluation.branches) > 1 else [],
        drawn=drawn,
        bars=error_bars.section(results, colors(results.datasets)),
        labels=LABELS,
        units={name: label.error_unit for name, label in LABELS.items()},
        references=references(results),
        stated={dataset: manifest for dataset, manifest in results.data.items() if manifest.states},
        ridges={dataset: manifest.options.get("reference_ridge") for dataset, manifest in results.data.items()},
        versions=versions(results),
    )


def verdict(results: Results) -> str:
    """One or two sentences on whether the model is better than the trivial predictors on its training datasets."""
    parts, shares = [], []
    for quantity in [q for q in LABELS if q in QUANTITIES or results.trained_on_label(q)]:
        judged: dict[str, float] = {}
        for dataset in results.trained_on:
            row, trivial = results.own_row(dataset), results.evaluation.trivial_of(dataset).mae(quantity)
            mae = None if row is None else row.mae(quantity)
            if mae is not None and trivial is not None and measurable(quantity, trivial):
                judged[dataset] = mae / trivial
        if not judged:
            parts.append(f"{quantity} is neither labelled nor predicted")
            continue
        failed = [dataset for dataset, share in judged.items() if not share < 1]
        parts.append(f"{quantity} on " + _how_many(len(judged), failed))
        mean = geometric_mean(max(share, 1e-12) for share in judged.values())
        shares.append(f"{100 * mean:.0f} % in {quantity}")
    if len(shares) < len(parts):
        return f"Against the trivial predictors: {'; '.join(parts)}."
    how = " (geometric mean)" if len(results.trained_on) > 1 else ""
    beaten, errors = (f"{', '.join(p[:-1])} and {p[-1]}" for p in ([f"in {part}" for part in parts], shares))
    return f"Beats the trivial predictors {beaten}. Of their errors, its own are {errors}{how}."


def _how_many(judged: int, failed: list[str]) -> str:
    if not failed:
        return "its dataset" if judged == 1 else "every dataset"
    if len(failed) == judged:
        return "none of its datasets" if judged > 1 else "no dataset"
    return f"{judged - len(failed)} of {judged} datasets (not {', '.join(failed)})"


def facts(results: Results) -> list[tuple[str, str]]:
    """The key numbers at the top: label and value."""
    found = [("datasets", str(len(results.trained_on)))]
    trained = [results.data[d] for d in results.trained_on if d in results.data]
    if trained:
        found.append(("training structures", f"{sum(m.splits['train'].structures for m in trained):,}"))
        atoms = sum(m.splits["train"].atoms for m in trained)
        found.append(("training atoms", f"{atoms:,}" if atoms < 1e6 else short_count(atoms)))
        found.append(("elements", str(len({symbol for m in trained for symbol in m.elements}))))
    if isinstance(parameters := results.evaluation.model.get("parameters"), int):
        found.append(("parameters", f"{parameters:,}"))
    if (epoch := figures.epoch_of(results)) is not None:
        found.append(("epochs seen", f"{epoch:.3g}"))
    if times := [record["time"] for record in (*results.train, *results.val) if "time" in record]:
        found.append(("training time", clock(max(times))))
    return found


@dataclass(frozen=True)
class Matrix:
    """Errors of every branch (rows) on every dataset (columns)."""

    quantity: Quantity
    unit: str
    rows: list[tuple[str, list[float | None]]]
    trivial: list[float | None]


def matrices(results: Results) -> list[Matrix]:
    """One matrix for energy and one for forces."""
    evaluation, found = results.evaluation, []
    for quantity in QUANTITIES:
        rows = []
        for branch in evaluation.branches:
            cells = [evaluation.row(branch, dataset) for dataset in results.datasets]
            rows.append((branch, [None if c is None else c.mae(quantity) for c in cells]))
        trivial = [evaluation.trivial_of(dataset).mae(quantity) for dataset in results.datasets]
        found.append(Matrix(quantity, LABELS[quantity].error_unit, rows, trivial))
    return found


def share(mae: float | None, trivial: float | None, quantity: Quantity | None = None) -> float | None:
    """Ratio of an error to the trivial error; None if one is missing or the trivial error is mere rounding."""
    rounding = quantity is not None and not measurable(quantity, trivial)
    return None if mae is None or not trivial or rounding else mae / trivial


def share_style(value: float | None) -> str:
    """Background of a cell: blue below the trivial error, orange above it, readable on light and dark pages."""
    if value is None or not np.isfinite(value):
        return ""
    strength = 0.06 + 0.09 * min(5.0, abs(math.log2(max(value, 1e-9))))  # full colour at a factor of 32
    return f"background: rgb({'0 114 178' if value < 1 else '213 94 0'} / {strength:.2f})"


def references(results: Results) -> tuple[list[str], list[tuple[str, list[float | None]]]]:
    """Datasets with a manifest, and the reference energy of each element in each of them, eV."""
    named = [dataset for dataset in results.datasets if dataset in results.data]
    energies = {dataset: results.data[dataset].references.energies for dataset in named}
    elements = sorted({symbol for found in energies.values() for symbol in found}, key=NUMBERS.__getitem__)
    return named, [(symbol, [energies[dataset].get(symbol) for dataset in named]) for symbol in elements]


def shared_groups(results: Results) -> list[str]:
    """A line for each dataset whose predefined split has groups (molecules, materials) in more than one part."""
    return [
        f"{dataset}: {manifest.shared_groups:,} groups are in more than one split, as defined by its files: "
        "its errors are partly on structures similar to training structures."
        for dataset, manifest in results.data.items()
        if manifest.shared_groups
    ]


def groups_of(results: Results, dataset: str) -> int | None:
    """Number of groups (molecules, materials, ...) in the evaluated split of a dataset; None without its manifest."""
    splits = results.data[dataset].splits if dataset in results.data else {}
    return next((counts.groups for name, counts in splits.items() if name == results.evaluation.split), None)


def versions(results: Results) -> list[tuple[str, str]]:
    """Versions of the software that made the data and this page: label and versions."""
    found: dict[str, None] = {}
    for manifest in results.data.values():
        found[", ".join(f"{name} {version}" for name, version in manifest.versions.model_dump().items())] = None
    return [
        *(("stores prepared with", text) for text in found),
        ("report made with", made_with("torch", "numpy", "ase", "matplotlib")),
    ]


def _when(path: Path) -> str:
    return datetime.fromtimestamp(path.stat().st_mtime).astimezone().strftime("%Y-%m-%d %H:%M")
