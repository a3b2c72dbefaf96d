"""The trivial predictors: references that a recipe regularises do not make the opponent weaker."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.small import ENTRIES, make_recipe, metrics, train

from ramify.batches.open import open_split, open_stores
from ramify.evaluate import trivial
from ramify.evaluate.evaluate import Evaluator
from ramify.evaluate.results import Results
from ramify.prepare.prepare import prepare_dataset
from ramify.recipe import Recipe
from ramify.report import report, tables
from ramify.store.store import Store


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """mptrj three times: with plain references, with regularised ones that are worse, with some that are better."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trivial")
    ridges = {"plain": 0.0, "pulled": 0.1, "mild": 1e-3}
    entries = {name: ENTRIES["mptrj"] | {"reference_ridge": ridge} for name, ridge in ridges.items()}
    made = make_recipe(folder, entries, train__precision="fp64", train__max_steps=4)
    for name, options in made.datasets.items():
        prepare_dataset(name, options, Path(made.stores), base=folder)
    return made


@pytest.fixture(scope="module")
def run(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    train(recipe, path)
    Evaluator(path).evaluate()
    tables.write(path)
    return path


def by_numpy(store: Store, split: str) -> np.ndarray:
    """(S,) errors of plain least squares, eV/atom: of all references that fit equally well those nearest the mean."""

    def fractions(rows: range) -> tuple[np.ndarray, np.ndarray]:
        found = store.take(np.array(rows))
        counts = np.zeros((len(found), 119))
        np.add.at(counts, (found.structure_of_atom, found.numbers), 1.0)
        return counts / found.n_atoms[:, None], found.energy / found.n_atoms

    x, y = fractions(store.range("train"))
    references = y.mean() + np.linalg.lstsq(x, y - y.mean(), rcond=1e-10)[0]
    x, y = fractions(store.range(split))
    return x @ references - y


@pytest.mark.parametrize("split", ["val", "test"])
def test_least_squares_agrees_with_numpy(recipe: Recipe, split: str) -> None:
    stores = open_stores(recipe)
    for name, reader in open_split(recipe, stores, split).items():
        found = trivial.trivial_predictors(reader)
        expected = np.abs(by_numpy(stores[name], split)).mean()
        own = stores[name].take(np.array(reader.rows))
        total = np.add.reduceat(stores[name].references[own.numbers], own.offsets[:-1])
        regularised = np.abs((total - own.energy) / own.n_atoms).mean()
        if name == "plain":
            assert found.energy_mae == {"reference energies": pytest.approx(expected, rel=1e-6)}
        else:
            assert found.energy_mae == {
                "reference energies": pytest.approx(regularised, rel=1e-9),
                "least squares": pytest.approx(expected, rel=1e-6),
            }
        assert found.errors.mae("energy") == pytest.approx(min(expected, regularised), rel=1e-6)
        assert found.errors.mae("forces") == pytest.approx(np.abs(own.forces.astype(float)).mean(), rel=1e-12)
        assert found.errors.mae("stress") == pytest.approx(np.abs(own.stress.astype(float)).mean(), rel=1e-12)


def test_pieces_do_not_matter(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = open_split(recipe, open_stores(recipe), "test")["pulled"]
    whole = trivial.trivial_predictors(reader)
    monkeypatch.setattr(trivial, "ATOMS_AT_ONCE", 7)
    pieces = trivial.trivial_predictors(reader)
    assert pieces.errors.results() == pytest.approx(whole.errors.results(), rel=1e-9)
    np.testing.assert_allclose(pieces.references, whole.references, rtol=1e-7)


def test_the_better_one_stands_everywhere(run: Path, recipe: Recipe) -> None:
    """In evaluation.json, the tables, their footnote, the headline, the predictions and the log of the training."""
    results = Results.open(run)
    stores = open_stores(recipe)
    plain = {name: np.abs(by_numpy(store, "test")).mean() for name, store in stores.items()}
    rows = {row.dataset: row for row in results.evaluation.trivial}
    assert rows["pulled"].energy_predictor == "least squares"
    assert rows["pulled"].energy_mae == pytest.approx(plain["pulled"], rel=1e-6)
    assert rows["pulled"].energy_mae_by["reference energies"] > rows["pulled"].energy_mae
    assert rows["mild"].energy_mae == min(rows["mild"].energy_mae_by.values())
    made = tables.build([run])
    assert made.tables[0].trivial["pulled"] == rows["pulled"].energy_mae
    pulled = [line for line in made.footnotes if line.startswith("Trivial energy of pulled")]
    assert pulled == [
        f"Trivial energy of pulled: plain least squares on its training split ({plain['pulled']:.4f}), which has a "
        f"lower MAE than its own reference energies ({rows['pulled'].energy_mae_by['reference energies']:.4f})."
    ]
    assert not any("Trivial energy of plain" in line for line in made.footnotes)
    assert pulled[0] in (run / "tables.md").read_text(encoding="utf-8")
    assert pulled[0] in report.render(results)
    kept = results.predictions("pulled")
    assert kept is not None
    assert np.abs(kept.true["energy"] - kept.energy_trivial).mean() == pytest.approx(plain["pulled"], rel=1e-6)
    unshifted = results.predictions("plain")
    assert unshifted is not None
    assert not unshifted.energy_trivial.any()
    found = trivial.trivial_predictors(open_split(recipe, stores, "val")["pulled"])
    assert metrics(run, "val")[-1]["datasets"]["pulled"]["trivial_energy_mae"] == min(found.energy_mae.values())


def test_a_model_between_the_two_does_not_beat_the_trivial_predictors(run: Path, tmp_path: Path) -> None:
    """Better than its regularised references, worse than least squares: marked, warned of, not in the headline."""
    content = json.loads((run / "evaluation.json").read_text())
    by = next(row for row in content["trivial"] if row["dataset"] == "pulled")["energy_mae_by"]
    between = (by["reference energies"] + by["least squares"]) / 2
    for row in content["rows"]:
        row["energy_mae"] = between if row["dataset"] == "pulled" else 1e-3
        row["forces_mae"] = 1e-3
    for name in ("recipe.yaml", "data.json"):
        (tmp_path / name).write_text((run / name).read_text())
    (tmp_path / "evaluation.json").write_text(json.dumps(content))
    results = Results.open(tmp_path)
    made = tables.from_results([results])
    cell = made.tables[0].rows[0].cells["pulled"]
    assert cell.no_better_than_trivial
    assert any(f"in the energy of pulled: {between:.4f} against {by['least squares']:.4f}" in n for n in made.notes)
    assert "in energy on 2 of 3 datasets (not pulled)" in report.verdict(results)
