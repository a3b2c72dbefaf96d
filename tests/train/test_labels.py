"""A further label: the code on docs/extending.md is sufficient, from the file to the report."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import read, write
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import ramify
from ramify.batches.batch import Batch
from ramify.batches.open import open_split, open_stores
from ramify.batches.padding import Padding
from ramify.errors import RamifyError
from ramify.evaluate.evaluate import Evaluator
from ramify.evaluate.results import Results
from ramify.inference.evaluate_model import evaluate_file
from ramify.inference.jobs.predict_file import predict_file
from ramify.inference.label_errors import results
from ramify.labels import LABELS, Label, register
from ramify.model import compiled
from ramify.model.heads import HEADS, register_head
from ramify.prepare.prepare import prepare_dataset
from ramify.recipe import Recipe
from ramify.report import report, tables
from ramify.report.table_format import format_error
from ramify.store.store import Store
from ramify.structures import Structures
from tests.small import ENTRIES, make_recipe, metrics, train

PAGE = Path(__file__).parents[2] / "docs/extending.md"


@pytest.fixture(scope="module")
def band_gap() -> Iterator[None]:
    """The label of the page, as it is printed there; forgotten afterwards."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    exec(code, {})
    yield
    del LABELS["band_gap"], HEADS["band_gap"]


def bent(folder: Path) -> Path:
    """Water molecules with energy and forces, whose `gap` is a function of their shape; every fifth has none."""
    rng = np.random.default_rng(0)
    images = []
    for row in range(150):
        atoms = Atoms("OH2", positions=[[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
        atoms.positions += rng.normal(0, 0.08, (3, 3))
        lengths = np.array([atoms.get_distance(0, 1), atoms.get_distance(0, 2)])
        atoms.info = {"energy": -2081.0 + 20 * float((lengths - 0.96) @ (lengths - 0.96)), "molecule": f"m{row}"}
        if row % 5:
            atoms.info["gap"] = 6.0 + 10 * float(lengths.mean() - 0.96)
        atoms.arrays["forces"] = rng.normal(0, 1, (3, 3))
        images.append(atoms)
    write(folder / "bent.xyz", images, format="extxyz")
    return folder / "bent.xyz"


@pytest.fixture(scope="module")
def folder(band_gap: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores of a dataset with the label and of one without."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("labels")
    bent(folder)
    for name, options in recipe_in(folder).datasets.items():
        prepare_dataset(name, options, folder / "stores", base=folder)
    return folder


def recipe_in(folder: Path, **changes: Any) -> Recipe:
    bent = {"format": "extxyz", "path": str(folder / "bent.xyz"), "group_key": "molecule"}
    entries = {"bent": bent | {"labels": {"band_gap": "gap"}}, "qm7x": ENTRIES["qm7x"]}
    return make_recipe(folder, entries, **changes)


@pytest.fixture(scope="module", params=["direct", "conservative"])
def run(folder: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained and evaluated run."""
    path = tmp_path_factory.mktemp("runs") / "run"
    changes = {
        "train__max_steps": 250,
        "train__evaluate_every": 2,
        "train__sampling": "equal",
        "objective__forces": 0.1,
    }
    train(recipe_in(folder, model__force_head__kind=request.param, train__precision="fp64", **changes), path)
    Evaluator(path).evaluate()
    return path


def gaps(folder: Path) -> np.ndarray:
    return np.array([atoms.info.get("gap", np.nan) for atoms in read(folder / "bent.xyz", ":")])


def test_the_store_has_it(folder: Path) -> None:
    store, images = Store.open(folder / "stores/bent", verify=True), gaps(folder)
    assert store.manifest.labels.counts == {"energy": 150, "forces": 150, "stress": 0, "band_gap": 120}
    structures = store.take(np.arange(len(store)))
    np.testing.assert_array_equal(structures.label("band_gap"), images[structures.row])
    train = images[store.take(np.array(store.range("train"))).row]
    known = train[~np.isnan(train)]
    statistics = store.manifest.statistics.labels["band_gap"]
    assert statistics.mean == pytest.approx(known.mean(), rel=1e-12)
    assert statistics.mad == pytest.approx(np.abs(known - known.mean()).mean(), rel=1e-12)
    assert store.label_counts(np.arange(len(store)), stress=False).labels == {"band_gap": 120}
    assert "band_gap" not in json.dumps(json.loads((folder / "stores/qm7x/manifest.json").read_text()))
    joined = Structures.concatenate([structures.span(0, 3), Store.open(folder / "stores/qm7x").take([0])])
    assert np.isnan(joined.label("band_gap")[3])


def test_it_is_learnt_and_stands_in_every_line_of_metrics(run: Path) -> None:
    first, *_, last = metrics(run, "val")
    for line in (first, last):
        assert line["datasets"]["qm7x"]["band_gap_mae"] is None
    bent = last["datasets"]["bent"]
    assert bent["band_gap_mae"] < 0.5 * bent["trivial_band_gap_mae"]
    ratios = [d[f"{n}_mae"] / d[f"trivial_{n}_mae"] for d in last["datasets"].values()
              for n in ("energy", "forces", "band_gap") if d[f"{n}_mae"] is not None]  # fmt: skip
    assert len(ratios) == 5
    assert last["metric"] == pytest.approx(np.mean(ratios), rel=1e-12)
    training = metrics(run, "train")[-1]["datasets"]
    assert training["bent"]["band_gap_mae"] > 0
    assert training["qm7x"]["band_gap_mae"] is None
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert {"val/datasets/bent/band_gap_mae", "train/datasets/bent/band_gap_mae"} <= set(events.Tags()["scalars"])


def test_errors_are_those_of_numpy(run: Path, folder: Path) -> None:
    """In evaluation.json, the predictions on disk, the tables, the report and `predict`, against the file itself."""
    images, test = read(folder / "bent.xyz", ":"), Store.open(folder / "stores/bent")
    structures = test.take(np.array(test.range("test")))
    truth = gaps(folder)[structures.row]
    model = ramify.load(run)
    found = model.predict([images[row] for row in structures.row], "bent")
    errors = found.labels["band_gap"] - truth
    mae = np.nanmean(np.abs(errors))
    results = Results.open(run)
    row = results.evaluation.row("bent", "bent")
    assert row is not None
    assert row.mae("band_gap") == pytest.approx(mae, rel=1e-5)
    assert row.rmse("band_gap") == pytest.approx(np.sqrt(np.nanmean(errors**2)), rel=1e-5)
    mean = test.manifest.statistics.labels["band_gap"].mean
    trivial = results.evaluation.trivial_of("bent").mae("band_gap")
    assert trivial == pytest.approx(np.nanmean(np.abs(truth - mean)), rel=1e-12)
    content = json.loads((run / "evaluation.json").read_text())
    assert content["units"]["band_gap"] == "eV"
    assert all("band_gap_mae" not in row for row in content["rows"] if row["dataset"] == "qm7x")
    with np.load(run / "predictions/bent.npz") as kept:
        np.testing.assert_allclose(kept["band_gap_true"], truth, rtol=1e-6)
        np.testing.assert_allclose(kept["band_gap_predicted"], found.labels["band_gap"], rtol=1e-5)
    made = tables.build([run])
    assert [table.quantity for table in made.tables] == ["energy", "forces", "band_gap"]
    assert made.tables[2].datasets == ["bent"]
    assert made.tables[2].rows[0].cells["bent"].mae == row.mae("band_gap")
    page = report.render(results)
    assert "band gap RMSE, eV" in page
    assert "Band gap while training" in page
    assert model.predict(images[1], "bent").labels == {"band_gap": pytest.approx(6.0, abs=5)}
    assert model.predict(images[1], "qm7x").labels == {}


def test_exports_and_resumed_runs_keep_it(run: Path, folder: Path, tmp_path: Path) -> None:
    from ramify.inference.export.exported import write_export
    from ramify.inference.model import read_saved

    water = read(folder / "bent.xyz", 3)
    write_export(read_saved(run), tmp_path / "export", ["bent"])
    model = ramify.load(tmp_path / "export")
    expected = ramify.load(run).predict(water, "bent").labels
    assert model.predict(water).labels == expected
    mae = Results.open(run).evaluation.row("bent", "bent").mae("band_gap")
    assert f" {format_error(mae)} | " in (tmp_path / "export/README.md").read_text()
    # as an original file of its dataset, and as any file of structures
    found = evaluate_file(model, folder / "bent.xyz")
    gap, predicted = gaps(folder), model.predict(read(folder / "bent.xyz", ":")).labels["band_gap"]
    assert found["rows"][0]["band_gap_mae"] == pytest.approx(np.nanmean(np.abs(predicted - gap)), rel=1e-6)
    assert found["trivial"][0]["band_gap_mae"] == pytest.approx(
        np.nanmean(np.abs(gap - model.branches["bent"].datasets["bent"].spread.labels["band_gap"].mean)), rel=1e-6
    )
    water.info["band_gap"] = 7.0
    write(tmp_path / "one.xyz", water)
    progress = predict_file(model, tmp_path / "one.xyz", tmp_path / "out.xyz", ["bent"])
    info = read(tmp_path / "out.xyz").info
    assert (info["REF_band_gap"], info["band_gap"]) == (7.0, pytest.approx(expected["band_gap"], rel=1e-6))
    assert results(progress.errors["bent"])["band_gap"]["mae"] == pytest.approx(abs(expected["band_gap"] - 7.0))


def test_compiled_passes_predict_it(folder: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    model = ramify.load(run).network.train()
    recipe = recipe_in(folder)
    readers = open_split(recipe, open_stores(recipe), "test")
    batch = Batch.make([readers[name].part(np.arange(4)) for name in ("bent", "qm7x")], torch.float64)
    tile = 4 if model.branch("bent").forces == "conservative" else 1
    found = compiled.CompiledModel(model, "default")(Padding(tuple(model.branches), tile)(batch))
    expected = model(batch)
    torch.testing.assert_close(found.further["band_gap"][:4], expected.further["band_gap"][:4], rtol=1e-10, atol=1e-12)
    assert torch.isnan(expected.further["band_gap"][4:]).all()


def test_a_label_that_is_not_registered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RamifyError, match=r"labels: .*dipole.*band_gap"):
        make_recipe(folder, {"bent": {"format": "extxyz", "path": "bent.xyz", "labels": {"dipole": "mu"}}})
    with pytest.raises(RamifyError, match=r"objective\.labels.*dipole.*band_gap"):
        recipe_in(folder, objective__labels={"dipole": 1.0})
    monkeypatch.delitem(LABELS, "band_gap")
    with pytest.raises(RamifyError, match="band_gap"):
        Store.open(folder / "stores/bent")


def test_a_key_that_the_file_lacks(folder: Path, tmp_path: Path) -> None:
    entry = {"format": "extxyz", "path": str(folder / "bent.xyz"), "labels": {"band_gap": "Gap"}}
    recipe = make_recipe(tmp_path, {"bent": entry})
    with pytest.raises(RamifyError, match=r"no 'Gap' \(`labels.band_gap`\).*'gap'"):
        prepare_dataset("bent", recipe.datasets["bent"], tmp_path / "stores", base=tmp_path)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"name": "energy"}, "taken"),
        ({"name": "cell"}, "taken"),
        ({"name": "Band gap"}, "small letters"),
        ({"name": "charges", "per_atom": True}, "per structure"),
        ({"name": "dipole", "shape": (3,)}, "per structure"),
    ],
)
def test_rows_that_cannot_be(row: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        register(Label(title="x", unit="e", error_unit="e", **row))
    with pytest.raises(ValueError, match="not registered"):
        register_head("nothing")
