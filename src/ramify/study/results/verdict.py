"""The sentences that the tables of a study support, computed from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import geometric_mean

from ramify.labels import measurable
from ramify.study.models import Kind
from ramify.study.results.tables import Cell, Measured, Row, Table, Tables, clearly_below

Column = tuple[Table, str]
"""A dataset of a table."""


def conclusions(tables: Tables) -> list[str]:
    """Sentences about the multi-branch model, the shared branch and foreign datasets; those without numbers are left
    out."""
    mtl, baseline = (_latest(tables, kind) for kind in ("mtl", "baseline"))
    lines = []
    if mtl is not None:
        lines.append(_against_trivial(tables, mtl))
        lines.append(_against_singles(tables, mtl))
        if baseline is not None:
            lines.append(_against(tables, mtl, baseline))
    if baseline is not None:
        lines.append(_against_singles(tables, baseline))
    lines.append(_foreign(tables))
    return [line for line in lines if line]


def _latest(tables: Tables, kind: Kind) -> str | None:
    """The latest model of several datasets of a kind."""
    names = [row.model for row in tables.tables[0].rows if row.kind == kind]
    return names[-1] if names else None


def _row(table: Table, model: str) -> Row:
    return next(row for row in table.rows if row.model == model)


def columns(tables: Tables) -> Iterator[Column]:
    """All columns of all tables whose trivial error is not mere rounding."""
    for table in tables.tables:
        yield from ((table, d) for d in table.datasets if measurable(table.quantity, table.trivial[d]))


def _against_trivial(tables: Tables, model: str) -> str:
    beaten, failed, ratios = 0, [], []
    marked = 0
    for table, dataset in columns(tables):
        cell, trivial = _row(table, model).cells[dataset], table.trivial[dataset]
        if cell.error is None or not trivial:
            continue
        marked += cell.best
        ratios.append(cell.error.mean / trivial)
        if cell.no_better_than_trivial:
            failed.append(f"{table.quantity} of {dataset}")
        else:
            beaten += 1
    if not ratios:
        return ""
    but = f" (not {', '.join(failed)})" if failed else ""
    place = {1: "", 2: "the better model"}.get(len(tables.tables[0].rows), "among the two best models")
    return (
        f"{model} beats the trivial predictor in {beaten} of {len(ratios)} columns{but}; its errors are "
        f"{_percent(ratios)} of the trivial ones (geometric mean)."
        + (f" It is {place} of a column in {marked} of {len(ratios)}." if place else "")
    )


def _pairs(tables: Tables, model: str, other: str | None) -> Iterator[tuple[Measured, Measured]]:
    """Errors of a model and of another one in every column that both were trained on; None for the single-dataset
    model of each column."""
    for table, dataset in columns(tables):
        row = _row(table, model)
        against = [
            r for r in table.rows if (r.model == other if other else r.kind == "single" and r.trained_on == (dataset,))
        ]
        mine, theirs = row.cells[dataset], against[0].cells[dataset] if against else None
        if theirs is None or mine.foreign or theirs.foreign or mine.error is None or theirs.error is None:
            continue
        yield mine.error, theirs.error


def _against_singles(tables: Tables, model: str) -> str:
    text = _compared(list(_pairs(tables, model, None)))
    return text and f"Against the single-dataset models on their own datasets, {model} {text}."


def _against(tables: Tables, model: str, other: str) -> str:
    text = _compared(list(_pairs(tables, model, other)))
    return text and f"Against {other}, {model} {text}."


def _compared(pairs: Sequence[tuple[Measured, Measured]]) -> str:
    """How many columns are better and worse, and by how much."""
    if not pairs:
        return ""
    better = sum(clearly_below(mine, theirs) for mine, theirs in pairs)
    worse = sum(clearly_below(theirs, mine) for mine, theirs in pairs)
    same = len(pairs) - better - worse
    ratios = [mine.mean / theirs.mean for mine, theirs in pairs if theirs.mean > 0]
    undecided = f" and within the spread over seeds in {same}" if same else ""
    more = f", more in {worse}" if worse else ""
    counts = f"errs less in {better} of {len(pairs)} columns{more}{undecided}"
    return f"{counts}; errors are {_percent(ratios)} of theirs"


def _foreign(tables: Tables) -> str:
    """What fitting the references again does to single-dataset models on foreign datasets."""
    raw: list[float] = []
    refitted: list[float] = []
    for table, dataset in columns(tables):
        cells: list[Cell] = [row.cells[dataset] for row in table.rows if row.kind == "single"]
        trivial = table.trivial[dataset]
        for cell in cells:
            if cell.foreign and cell.error is not None and cell.refitted is not None and trivial:
                raw.append(cell.error.mean / trivial)
                refitted.append(cell.refitted.mean / trivial)
    if not raw:
        return ""
    below = sum(value < 1 for value in refitted)
    return (
        f"On foreign datasets the energies of the single-dataset models err {_times(raw)} as much as the trivial "
        f"predictor (geometric mean), and {_times(refitted)} after the references were fitted again, where {below} of "
        f"{len(refitted)} beat it."
    )


def _mean(ratios: Sequence[float]) -> float:
    return geometric_mean(max(ratio, 1e-12) for ratio in ratios)


def _percent(ratios: Sequence[float]) -> str:
    return f"{100 * _mean(ratios):.0f} %"


def _times(ratios: Sequence[float]) -> str:
    mean = _mean(ratios)
    return f"{mean:.0f} times" if mean >= 10 else f"{mean:.2f} times"
