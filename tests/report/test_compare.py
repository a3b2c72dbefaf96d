"""The comparison of runs: tables side by side, curves over each other, differences by element and by recipe key."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from ramify.elements import SYMBOLS
from ramify.errors import RamifyError
from ramify.evaluate.results import Results
from ramify.report.compare import compare
from ramify.report.compare.figures import errors_by_element
from tests.docs.pages import verb
from tests.planted import build_run
from tests.report.test_report import Page


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs on the same data; the errors of the second are half of those of the first in ani1x."""
    folder = tmp_path_factory.mktemp("compared")
    for name in ("before", "after"):
        build_run(folder / name, only=("ani1x", "mptrj"))
    after = folder / "after"
    with np.load(after / "predictions/ani1x.npz") as file:
        columns = dict(file)
    for label in ("energy", "forces"):
        true = columns[f"{label}_true"]
        columns[f"{label}_predicted"] = true + (columns[f"{label}_predicted"] - true) / 2
    np.savez(after / "predictions/ani1x.npz", **columns)
    evaluation = json.loads((after / "evaluation.json").read_text())
    own = next(row for row in evaluation["rows"] if row["branch"] == row["dataset"] == "ani1x")
    own.update({key: value / 2 for key, value in own.items() if key.endswith(("mae", "rmse"))})
    (after / "evaluation.json").write_text(json.dumps(evaluation))
    recipe = yaml.safe_load((after / "recipe.yaml").read_text())
    recipe["model"]["encoder"]["width"] = 64
    recipe["train"] = {"seed": 3}
    (after / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "before", after


def test_the_page_has_the_errors_of_all_runs_and_every_figure(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "both.html"
    assert str(out) in verb(f"ramify report {pair[0]} {pair[1]} --out {out}").replace("\n", "")
    html = out.read_text(encoding="utf-8")
    page = Page(html)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert all(r.startswith(("#", "data:")) for r in page.references)
    text = " ".join(page.text)
    for number in ("0.0123", f"{0.0123 / 2:.4f}", "0.1111", f"{0.1111 / 2:.4f}", "0.0834"):
        assert number in text
    assert html.count('role="img"') == 2 * 2 + 2 * 2 + 2, "curves, distributions, and differences by element"


def test_a_lower_error_of_each_element_is_the_difference_of_a_plain_loop(pair: tuple[Path, Path]) -> None:
    before, after = map(Results.open, pair)
    stored = before.predictions("ani1x")
    assert stored is not None
    absolute = np.abs(stored.predicted["forces"].astype(float) - stored.true["forces"])
    first, second = (errors_by_element(run, "ani1x", "forces") for run in (before, after))
    for symbol, value in first.items():
        own = absolute[[SYMBOLS[number] == symbol for number in stored.numbers]]
        assert value == pytest.approx(own.mean(), rel=1e-6)
        assert second[symbol] == pytest.approx(value / 2, rel=1e-5)
    captions = [caption for caption, _ in compare.elements({"a": before, "b": after}, ["ani1x", "mptrj"])]
    assert captions == ["Energy: b minus a, eV/atom", "Forces: b minus a, eV/Å"]
    (energy, _) = compare.elements({"a": before, "b": after}, ["ani1x"])
    assert f"lower in {len(first)} of {len(first)} pairs" in energy[1].alt


def test_the_keys_that_differ_are_listed_with_the_values_of_each_run(pair: tuple[Path, Path]) -> None:
    runs = dict(zip("ab", map(Results.open, pair), strict=True))
    assert compare.different_keys(runs) == [("model.encoder.width", ["128", "64"]), ("train.seed", ["—", "3"])]
    assert compare.different_keys({"a": runs["a"], "b": runs["a"]}) == []


def test_stress_has_curves_where_a_run_was_validated_on_it(pair: tuple[Path, Path]) -> None:
    run = Results.open(pair[0])
    for record in run.val:
        record["datasets"]["mptrj"] |= {"stress_mae": 0.01, "trivial_stress_mae": 0.02}
    captions = [caption for caption, _ in compare.curves({"a": run}, "mptrj", {"a": "#0072b2"})]
    assert captions == ["Energy", "Forces", "Stress"]


def test_a_run_named_twice_is_an_error(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(RamifyError, match="named twice"):
        compare.write_comparison([pair[0], pair[0].parent / "before/../before"], tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()
