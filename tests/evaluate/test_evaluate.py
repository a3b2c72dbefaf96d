"""Evaluation: exact over whole splits, every branch on every dataset; files contain the predictions."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.small import files_of, make_recipe, metrics, prepare_stores, train

from ramify.batches.batch import Batch, BatchPart
from ramify.batches.loader import SplitReader
from ramify.batches.open import open_split, open_stores
from ramify.checkpoint.checkpoint import open_checkpoint
from ramify.errors import RamifyError
from ramify.evaluate import predict_split
from ramify.evaluate.evaluate import UNITS, Evaluator, load_model
from ramify.evaluate.trivial import trivial_errors
from ramify.model.multibranch import MultiBranch
from ramify.neighbors.edges import find_edges
from ramify.recipe import Recipe
from ramify.report import tables
from ramify.store.store import Store

DATASETS = ("qm7x", "mptrj", "bare")
ERRORS = {"energy_mae", "forces_mae", "energy_rmse", "forces_rmse"}
STRESS = {"stress_mae", "stress_rmse"}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Recipe]:
    """`small(*datasets, **changes)`: a recipe over prepared stores, in float64."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("evaluation")
    entries = prepare_stores(folder)

    def make(*datasets: str, **changes: Any) -> Recipe:
        chosen = {name: entries[name] for name in datasets}
        return make_recipe(folder, chosen, train__precision="fp64", **changes)

    return make


@pytest.fixture(scope="module")
def run(small: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve steps with conservative forces over three datasets, evaluated."""
    path = tmp_path_factory.mktemp("runs") / "run"
    train(small(*DATASETS, model__force_head__kind="conservative", optimizer__lr=0.03), path)
    Evaluator(path).evaluate()
    return path


@pytest.fixture(scope="module")
def stores(run: Path) -> dict[str, Store]:
    return open_stores(load_model(open_checkpoint(run / "checkpoints/best"))[0])


def evaluation(run: Path) -> dict[str, Any]:
    content = json.loads((run / "evaluation.json").read_text())
    assert isinstance(content, dict)
    return content


def one_by_one(model: MultiBranch, branch: str, store: Store, split: str) -> dict[str, np.ndarray]:
    """Labels and predictions of a split, structure by structure, straight from the columns of the store."""
    found: dict[str, list[np.ndarray]] = {"energy": [], "energy_label": [], "forces": [], "forces_label": []}
    for row in store.range(split):
        structure = store.take([row])
        part = BatchPart("any", branch, structure, find_edges(structure, 4.0, 8), store.references)
        with torch.no_grad():
            predicted = model(Batch.make([part], torch.float64))
        found["energy"].append(predicted.energy.numpy())
        found["forces"].append(predicted.forces.numpy())
        total = structure.energy[0] - store.references[structure.numbers].sum()
        found["energy_label"].append(np.array([total / len(structure.numbers)]))
        found["forces_label"].append(structure.forces.astype(np.float64))
    return {name: np.concatenate(arrays) for name, arrays in found.items()}


@pytest.mark.parametrize("atoms_at_once", [1, 23, 10**6])
def test_errors_equal_plain_numpy_whatever_the_batches(
    run: Path, stores: dict[str, Store], monkeypatch: pytest.MonkeyPatch, atoms_at_once: int
) -> None:
    monkeypatch.setattr(predict_split, "ATOMS_AT_ONCE", atoms_at_once)
    recipe, model = load_model(open_checkpoint(run / "checkpoints/best"))
    readers = open_split(recipe, stores, "test")
    for dataset in ("qm7x", "mptrj"):
        plain = one_by_one(model, dataset, stores[dataset], "test")
        found = predict_split.add_in_order(
            (number, predict_split.predict_batch(model, indices, batch, dataset, CPU).errors().to_dict())
            for number, indices, batch in predict_split.split_batches(readers[dataset], torch.float64)
        )
        energy, forces = plain["energy"] - plain["energy_label"], plain["forces"] - plain["forces_label"]
        assert found.mae("energy") == pytest.approx(np.abs(energy).mean(), rel=1e-10)
        assert found.rmse("energy") == pytest.approx(np.sqrt((energy**2).mean()), rel=1e-10)
        assert found.mae("forces") == pytest.approx(np.abs(forces).mean(), rel=1e-10)
        assert found.rmse("forces") == pytest.approx(np.sqrt((forces**2).mean()), rel=1e-10)
        assert (found.structures, found.atoms) == (len(energy), len(forces))
        trivial = trivial_errors(readers[dataset])
        assert trivial.mae("energy") == pytest.approx(np.abs(plain["energy_label"]).mean(), rel=1e-10)
        assert trivial.rmse("forces") == pytest.approx(np.sqrt((plain["forces_label"] ** 2).mean()), rel=1e-10)


def test_every_branch_on_every_dataset(run: Path, stores: dict[str, Store]) -> None:
    result = evaluation(run)
    assert [(row["branch"], row["dataset"]) for row in result["rows"]] == [(b, d) for d in DATASETS for b in DATASETS]
    _, model = load_model(open_checkpoint(run / "checkpoints/best"))
    for row in result["rows"]:
        if row["branch"] == "bare" or row["dataset"] == "bare":
            assert row["forces_mae"] is None
            assert row["forces_rmse"] is None
        else:
            plain = one_by_one(model, row["branch"], stores[row["dataset"]], "test")
            assert row["forces_mae"] == pytest.approx(np.abs(plain["forces"] - plain["forces_label"]).mean(), rel=1e-9)
    values = [row["energy_mae"] for row in result["rows"]]
    assert len(set(values)) == 9  # no branch stands in for another


def test_evaluation_json(run: Path, stores: dict[str, Store]) -> None:
    result = evaluation(run)
    assert set(result) == {"split", "units", "rows", "trivial", "branch_of", "step", "model"}
    assert result["split"] == "test"
    assert result["units"] == UNITS
    assert result["branch_of"] == {name: name for name in DATASETS}
    assert result["step"] == min(metrics(run, "val"), key=lambda line: line["metric"])["step"]
    _, model = load_model(open_checkpoint(run / "checkpoints/best"))
    assert result["model"]["parameters"] == sum(p.numel() for p in model.parameters())
    for row in result["rows"]:
        assert set(row) == ERRORS | STRESS | {"branch", "dataset", "structures", "atoms"}
        split = stores[row["dataset"]].manifest.splits["test"]
        assert (row["structures"], row["atoms"]) == (split.structures, split.atoms)
    assert [set(row) for row in result["trivial"]] == [
        ERRORS | STRESS | {"dataset", "energy_predictor", "energy_mae_by"}
    ] * 3
    for row in result["trivial"]:  # no reference is regularised here
        assert row["energy_predictor"] == "reference energies"
        assert row["energy_mae_by"] == {"reference energies": row["energy_mae"]}
    bare = result["trivial"][2]
    assert (bare["forces_mae"], bare["forces_rmse"]) == (None, None)
    assert bare["energy_mae"] > 0


def test_predictions_are_those_of_a_direct_call(run: Path, stores: dict[str, Store]) -> None:
    """Conservative forces included; the errors of the file are those of evaluation.json."""
    _, model = load_model(open_checkpoint(run / "checkpoints/best"))
    assert {p.name for p in (run / "predictions").iterdir()} == {f"{name}.npz" for name in DATASETS}
    rows = {row["dataset"]: row for row in evaluation(run)["rows"] if row["branch"] == row["dataset"]}
    for dataset, store in stores.items():
        plain = one_by_one(model, dataset, store, "test")
        structures = store.take(np.array(store.range("test")))
        with np.load(run / "predictions" / f"{dataset}.npz") as file:
            kept = dict(file)
        np.testing.assert_allclose(kept["energy_predicted"], plain["energy"], rtol=1e-9)
        np.testing.assert_allclose(kept["energy_true"], plain["energy_label"], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(kept["forces_predicted"], plain["forces"], rtol=1e-5, atol=1e-9)
        np.testing.assert_array_equal(kept["forces_true"], structures.forces)
        np.testing.assert_array_equal(kept["n_atoms"], structures.n_atoms)
        np.testing.assert_array_equal(kept["numbers"], structures.numbers)
        assert kept["names"].tolist() == [structures.name(i) for i in range(len(structures))]
        np.testing.assert_array_equal(kept["positions"], structures.positions)
        for name, column in (("cell", "cell"), ("pbc", "pbc"), ("total_energy", "energy")):
            np.testing.assert_array_equal(kept[name], getattr(structures, column))
        assert kept["groups"].tolist() == [structures.group_names[g] for g in structures.group]
        assert kept["forces_predicted"].dtype == kept["forces_true"].dtype == np.float32
        assert kept["energy_true"].dtype == np.float64
        error = np.abs(kept["energy_predicted"] - kept["energy_true"]).mean()
        assert error == pytest.approx(rows[dataset]["energy_mae"], rel=1e-9)
        if dataset != "bare":
            assert np.abs(kept["forces_predicted"]).max() > 1e-4
            error = np.abs(kept["forces_predicted"].astype(float) - kept["forces_true"]).mean()
            assert error == pytest.approx(rows[dataset]["forces_mae"], rel=1e-5)


def test_validation_errors_are_those_of_training(run: Path, small: Callable[..., Recipe], tmp_path: Path) -> None:
    """The last line of metrics.jsonl, from the checkpoint of the same step."""
    path = tmp_path / "run"
    train(small("qm7x", "bare"), path)
    result = Evaluator(path, split="val", which="latest").evaluate()
    logged = metrics(path, "val")[-1]["datasets"]
    for row in result["rows"]:
        if row["branch"] == row["dataset"]:
            assert {k: row[k] for k in ERRORS} == {k: logged[row["dataset"]][k] for k in ERRORS}
    for row in result["trivial"]:
        assert row["energy_mae"] == pytest.approx(logged[row["dataset"]]["trivial_energy_mae"], rel=1e-12)


def test_tables_say_what_a_dataset_lacks(run: Path) -> None:
    energy, forces = tables.build([run]).tables
    assert forces.rows[0].cells["bare"].text() == "no label"
    assert energy.rows[0].cells["bare"].mae == pytest.approx(evaluation(run)["rows"][8]["energy_mae"])
    assert forces.rows[0].cells["mptrj"].branch == "mptrj"


def test_evaluating_again_replaces_everything(run: Path) -> None:
    """Also after an evaluation that was killed while it put its predictions in place."""
    before = files_of(run)
    (run / "predictions.new").mkdir()
    (run / "predictions.new" / "half.npz").write_text("left behind")
    Evaluator(run, split="val").evaluate()
    assert evaluation(run)["split"] == "val"
    Evaluator(run).evaluate()
    after = files_of(run)
    assert set(after) == set(before)
    assert evaluation(run) == json.loads(before["evaluation.json"])


def test_the_progress_counts_every_structure_once_per_branch(run: Path, stores: dict[str, Store]) -> None:
    seen: dict[tuple[str, str], int] = {}

    def progress(dataset: str, branch: str, structures: int) -> None:
        seen[dataset, branch] = seen.get((dataset, branch), 0) + structures

    Evaluator(run, progress=progress).evaluate()
    assert seen == {(d, b): len(stores[d].range("test")) for d in DATASETS for b in DATASETS}


def test_other_datasets_can_be_evaluated_too(run: Path, small: Callable[..., Recipe]) -> None:
    """All branches on ani1x, which none of them was trained on, by ani1x's own reference energies."""
    try:
        result = Evaluator(run, others=small("ani1x", "qm7x")).evaluate()
    finally:
        Evaluator(run).evaluate()
    rows = [row for row in result["rows"] if row["dataset"] == "ani1x"]
    assert [row["branch"] for row in rows] == list(DATASETS)
    store = Store.open(Path(small("ani1x").stores) / "ani1x")
    assert all(row["structures"] == len(store.range("test")) for row in rows)
    assert "ani1x" not in result["branch_of"]
    _, model = load_model(open_checkpoint(run / "checkpoints/best"))
    plain = one_by_one(model, "qm7x", store, "test")
    assert rows[0]["energy_mae"] == pytest.approx(np.abs(plain["energy"] - plain["energy_label"]).mean(), rel=1e-9)


def test_a_model_needs_no_store(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "open", None)
    _, model = load_model(open_checkpoint(run / "checkpoints/latest"))
    assert not model.training
    assert model.branch("mptrj").forces == "conservative"


def test_what_cannot_be_evaluated(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RamifyError, match=r"has no checkpoint .best"):
        Evaluator(tmp_path).evaluate()
    with pytest.raises(RamifyError, match=r"no checkpoint .step-00000099.\n  fix: name one of: best"):
        Evaluator(run, which="step-00000099").evaluate()
    with pytest.raises(RamifyError, match=r"'tset' is not a split; accepted: train, val, test"):
        Evaluator(run, split="tset").evaluate()
    monkeypatch.setattr(SplitReader, "__len__", lambda reader: 0)
    with pytest.raises(RamifyError, match="the test split of qm7x, mptrj, bare is empty"):
        Evaluator(run).evaluate()


def test_another_store_is_refused(run: Path, stores: dict[str, Store], monkeypatch: pytest.MonkeyPatch) -> None:
    """Other reference energies would silently move every energy."""
    manifest = stores["bare"].manifest
    energies = {symbol: energy + 0.1 for symbol, energy in manifest.references.energies.items()}
    other = manifest.model_copy(update={"references": manifest.references.model_copy(update={"energies": energies})})
    opened = Store.open

    def changed(path: Path, **how: Any) -> Store:
        store = opened(path, **how)
        if path.name == "bare":
            store.manifest = other
        return store

    monkeypatch.setattr(Store, "open", changed)
    with pytest.raises(RamifyError, match=r"the store of dataset 'bare' is not the one .* \(references differ\)"):
        Evaluator(run).evaluate()


def test_a_broken_model_is_not_given_a_number(run: Path, small: Callable[..., Recipe], tmp_path: Path) -> None:
    """NaN predictions must neither vanish from the mean nor pass for absent labels."""
    trainer = train(small("bare"), tmp_path / "run")
    with torch.no_grad():
        for average in trainer.averages.averages:
            average.fill_(torch.nan)
    trainer.progress.step += 1
    trainer.save(best=True)
    with pytest.raises(RamifyError, match="branch 'bare' predicts values that are not finite on dataset 'bare'"):
        Evaluator(tmp_path / "run").evaluate()
    assert not (tmp_path / "run" / "evaluation.json").exists()


def test_datasets_the_model_was_not_trained_on(small: Callable[..., Recipe], tmp_path: Path) -> None:
    """A model of one dataset, evaluated on two: rows and trivial predictor for both, predictions for its own."""
    path = tmp_path / "single"
    train(small("qm7x"), path)
    result = Evaluator(path, others=small("qm7x", "mptrj")).evaluate()
    assert [(row["branch"], row["dataset"]) for row in result["rows"]] == [("qm7x", "qm7x"), ("qm7x", "mptrj")]
    assert [row["dataset"] for row in result["trivial"]] == ["qm7x", "mptrj"]
    assert all(row["energy_mae"] > 0 for row in result["rows"])
    assert [p.name for p in (path / "predictions").iterdir()] == ["qm7x.npz"]
    table = json.loads(tables.build([path]).to_json())
    assert "mptrj" in json.dumps(table)
