"""Marks, spreads, conclusions and texts of the tables of a study, from errors that are known."""

import math
from dataclasses import replace

import pytest

from ramify.study.results.tables import Cell, Measured, Row, Table, Tables, clearly_below, mark_best
from ramify.study.results.text import latex, markdown, number
from ramify.study.results.verdict import conclusions

DATASETS = ("a", "b")


def cell(*values: float, foreign: bool = False, trivial: float = 1.0, refitted: float | None = None) -> Cell:
    error = Measured.of(values)
    assert error is not None
    fitted = None if refitted is None else Measured.of([refitted])
    return Cell(error, fitted, "branch", foreign, no_better_than_trivial=not error.mean < trivial)


def rows(*, spread: float = 0.0) -> list[Row]:
    """Two single-dataset models, the shared branch, a branch per dataset; the latter errs least, by 0.01 in b."""

    def seeds(mean: float) -> tuple[float, ...]:
        return (mean - spread, mean + spread) if spread else (mean,)

    errors = {
        "Model-a": ("single", ("a",), {"a": cell(*seeds(0.5)), "b": cell(*seeds(90.0), foreign=True, refitted=0.9)}),
        "Model-b": ("single", ("b",), {"a": cell(*seeds(9.0), foreign=True, refitted=1.1), "b": cell(*seeds(0.3))}),
        "Baseline-All": ("baseline", DATASETS, {"a": cell(*seeds(0.6)), "b": cell(*seeds(0.4))}),
        "MTL-All": ("mtl", DATASETS, {"a": cell(*seeds(0.4)), "b": cell(*seeds(0.29))}),
    }
    count = 2 if spread else 1
    return [Row(name, kind, on, tuple(range(count)), cells) for name, (kind, on, cells) in errors.items()]  # type: ignore[arg-type]


def tables(**options: float) -> Tables:
    marked = tuple(mark_best(rows(**options), DATASETS))
    trivial = dict.fromkeys(DATASETS, 1.0)
    return Tables((Table("energy", "Table 1. MAE, eV/atom", "eV/atom", DATASETS, marked, trivial),), ("A note.",))


def best(found: Tables) -> dict[str, set[str]]:
    return {d: {row.model for row in found.tables[0].rows if row.cells[d].best} for d in DATASETS}


def test_mean_and_standard_deviation() -> None:
    found = Measured.of([1.0, 2.0, 6.0])
    assert found is not None
    assert found.mean == 3.0
    assert found.spread == pytest.approx(math.sqrt((4 + 1 + 9) / 2))
    assert Measured.of([]) is None
    assert number(Measured.of([0.5, 0.5000004])) == "0.5000 ± 0.0000"
    assert number(None) == "—"


def test_the_two_best_are_marked() -> None:
    assert best(tables()) == {"a": {"MTL-All", "Model-a"}, "b": {"MTL-All", "Model-b"}}


def test_differences_within_the_spread_are_not_marked() -> None:
    """Standard deviations of 0.02 √2: the differences of 0.1 and 0.11 count; with 0.06 √2 only that of 0.2 does."""
    assert best(tables(spread=0.02)) == {"a": {"MTL-All", "Model-a"}, "b": {"MTL-All", "Model-b"}}
    assert best(tables(spread=0.06)) == {"a": {"MTL-All"}, "b": set()}


def test_clearly_below_is_strict_without_a_spread() -> None:
    one, two = Measured.of([1.0]), Measured.of([1.1])
    assert one is not None
    assert two is not None
    assert clearly_below(one, two)
    assert not clearly_below(two, one)
    assert not clearly_below(one, one)


def test_conclusions_count_what_the_table_shows() -> None:
    first, singles, baseline, _, foreign = conclusions(tables())
    assert "2 of 2 columns" in first
    assert f"{100 * math.sqrt(0.4 * 0.29):.0f} % of the trivial" in first
    assert "2 of 2 columns" in singles
    assert f"{100 * math.sqrt(0.4 / 0.5 * 0.29 / 0.3):.0f} % of theirs" in singles
    assert f"{100 * math.sqrt(0.4 / 0.6 * 0.29 / 0.4):.0f} % of theirs" in baseline
    assert f"{math.sqrt(90 * 9):.0f} times" in foreign
    assert f"{math.sqrt(0.9 * 1.1):.2f} times" in foreign
    assert "1 of 2 beat it" in foreign
    _, spread, *_ = conclusions(tables(spread=0.06))
    assert "0 of 2 columns and within the spread over seeds in 2" in spread


def test_conclusions_about_two_models_and_one() -> None:
    """Of two models the better one is marked; of one, nothing is."""
    (table,) = tables().tables
    two = mark_best([row for row in table.rows if row.kind != "single"], DATASETS)
    assert conclusions(Tables((replace(table, rows=tuple(two)),), ()))[0].endswith(
        "It is the better model of a column in 2 of 2."
    )
    one = mark_best(two[-1:], DATASETS)
    assert conclusions(Tables((replace(table, rows=tuple(one)),), ()))[0].endswith("(geometric mean).")


def test_markdown_and_latex() -> None:
    text = markdown(tables(), ["A sentence."])
    assert "| Model-a | **0.5000** | ✗ 90.0000 (refitted 0.9000) |" in text
    assert "| *Trivial* | 1.0000 | 1.0000 |" in text
    assert text.startswith("A sentence.")
    made = latex(tables(spread=0.02))
    assert r"Model-a & \textbf{0.5000 $\pm$ 0.0283} & 90.0000 $\pm$ 0.0283 (0.9000) \\" in made
    assert made.count(r"\begin{tabular}{lrr}") == made.count(r"\end{tabular}") == 1
