"""Evaluation away from the run: from another folder, of an export, on a file with labels."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from ramify.errors import RamifyError
from ramify.evaluate.evaluate import Evaluator
from ramify.inference.evaluate_model import evaluate_file, subject_of_saved
from ramify.inference.export.exported import write_export
from ramify.inference.model import Model, load, read_saved
from ramify.store.store import Store
from tests.small import make_recipe, prepare_stores, train


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose recipe names its stores by a relative path, with a run in `runs/a`."""
    folder = tmp_path_factory.mktemp("project")
    entries = prepare_stores(folder)
    recipe = make_recipe(folder, {name: entries[name] for name in ("ani1x", "mptrj")})
    recipe = recipe.model_copy(update={"stores": "stores"})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(recipe, Path("runs/a"))
    return folder


def rows(result: dict[str, object]) -> object:
    """The numbers that must be equal."""
    return {key: result[key] for key in ("rows", "trivial", "branch_of", "step")}


def test_a_run_is_evaluated_from_anywhere(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    expected = Evaluator(Path("runs/a")).evaluate()
    monkeypatch.chdir(tmp_path)
    assert rows(Evaluator(project / "runs/a").evaluate()) == rows(expected)
    monkeypatch.chdir(project / "runs/a")
    assert rows(Evaluator(Path(".")).evaluate()) == rows(expected)


def test_stores_of_another_project_are_not_taken_for_its_own(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The working directory has a folder `stores` with datasets of the same names."""
    shutil.copytree(project / "stores", tmp_path / "stores")
    manifest = json.loads((tmp_path / "stores/ani1x/manifest.json").read_text())
    manifest["columns"]["energy"]["sha256"] = "0" * 64
    (tmp_path / "stores/ani1x/manifest.json").write_text(json.dumps(manifest))
    monkeypatch.chdir(tmp_path)
    Evaluator(project / "runs/a").evaluate()
    with pytest.raises(RamifyError, match="store of dataset 'ani1x' is not the one this run was trained on"):
        Evaluator(project / "runs/a", stores=tmp_path / "stores").evaluate()


def test_a_run_outside_its_project(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sessions record the working directory of the training, where relative paths of the recipe begin."""
    shutil.copytree(project / "runs/a", tmp_path / "moved", symlinks=True)
    monkeypatch.chdir(tmp_path)
    expected = Evaluator(tmp_path / "moved", stores=project / "stores").evaluate()
    assert rows(Evaluator(tmp_path / "moved").evaluate()) == rows(expected)
    with (tmp_path / "moved/sessions.jsonl").open("a") as file:
        file.write('{"kind": "start", "folder": 3}\n[]\n{"kind": "start", "fol')  # damaged, or half written
    assert rows(Evaluator(tmp_path / "moved").evaluate()) == rows(expected)


def test_a_run_that_does_not_say_from_where_is_told_where_its_stores_are(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(project / "runs/a", tmp_path / "moved", symlinks=True)
    (tmp_path / "moved/sessions.jsonl").unlink()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RamifyError, match=r"dataset 'ani1x' has no store at stores/ani1x[\s\S]*--stores"):
        Evaluator(tmp_path / "moved").evaluate()
    assert Evaluator(tmp_path / "moved", stores=project / "stores").evaluate()["rows"]


def test_an_export_is_evaluated_as_its_run(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    expected = Evaluator(Path("runs/a")).evaluate()
    export = write_export(read_saved(Path("runs/a")), tmp_path / "model")
    before = sorted(tmp_path.rglob("*"))
    found = Evaluator(export, subject=lambda: subject_of_saved(read_saved(export), project / "stores")).evaluate()
    assert rows(found) == rows(expected)
    assert sorted(tmp_path.rglob("*")) == before  # an export is not written to
    one = write_export(read_saved(Path("runs/a")), tmp_path / "one", ["mptrj"])
    found = Evaluator(one, subject=lambda: subject_of_saved(read_saved(one), project / "stores")).evaluate()
    wanted = [row for row in expected["rows"] if row["branch"] == row["dataset"] == "mptrj"]
    assert found["rows"] == wanted


def test_an_export_inside_its_project_is_evaluated_from_anywhere(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stores of other data with the same names, where the command is given, are not taken for its own."""
    export = write_export(read_saved(project / "runs/a"), project / "models/a")
    monkeypatch.chdir(tmp_path)
    assert set(subject_of_saved(read_saved(export), None).stores) == {"ani1x", "mptrj"}
    shutil.copytree(project / "stores", tmp_path / "stores")
    for name in ("ani1x", "mptrj"):
        manifest = json.loads((tmp_path / "stores" / name / "manifest.json").read_text())
        manifest["splits"]["train"]["structures"] += 1
        (tmp_path / "stores" / name / "manifest.json").write_text(json.dumps(manifest))
    found = subject_of_saved(read_saved(export), None).stores
    assert {store.path for store in found.values()} == {project / "stores/ani1x", project / "stores/mptrj"}


def test_an_export_is_not_evaluated_on_other_data(project: Path, tmp_path: Path) -> None:
    export = write_export(read_saved(project / "runs/a"), tmp_path / "model")
    with pytest.raises(RamifyError, match=r"holds no store of a dataset of .* \(ani1x, mptrj\)"):
        subject_of_saved(read_saved(export), tmp_path)
    (tmp_path / "stores").mkdir()
    shutil.copytree(project / "stores/mptrj", tmp_path / "stores/ani1x")
    with pytest.raises(RamifyError, match="is not the one that the model was trained on"):
        subject_of_saved(read_saved(export), tmp_path / "stores")


@pytest.fixture(scope="module")
def model(project: Path) -> Model:
    return load(project / "runs/a")


@pytest.fixture
def test_set(project: Path, tmp_path: Path) -> Path:
    """The test split of mptrj as a file of its own."""
    store = Store.open(project / "stores/mptrj")
    structures = store.take(np.array(store.range("test")))
    images = []
    for k in range(len(structures)):
        a, b = structures.offsets[k : k + 2]
        atoms = Atoms(
            structures.numbers[a:b], structures.positions[a:b], cell=structures.cell[k], pbc=structures.pbc[k]
        )
        results = {"energy": structures.energy[k], "forces": structures.forces[a:b], "stress": structures.stress[k]}
        atoms.calc = SinglePointCalculator(atoms, **results)
        images.append(atoms)
    write(tmp_path / "test.extxyz", images, format="extxyz")
    return tmp_path / "test.extxyz"


def test_a_file_gives_what_the_split_gives(
    project: Path, model: Model, test_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    result = Evaluator(Path("runs/a")).evaluate()
    found = evaluate_file(model, test_set, "mptrj", "extxyz")
    assert (found["split"], found["branch_of"], found["skipped"]) == ("file", {"mptrj": "mptrj"}, {})
    expected = next(row for row in result["rows"] if row["branch"] == row["dataset"] == "mptrj")
    row = next(row for row in found["rows"] if row["branch"] == "mptrj")
    for key in ("energy_mae", "energy_rmse", "forces_mae", "forces_rmse"):
        assert row[key] == pytest.approx(expected[key], rel=1e-4)
    assert (row["structures"], row["atoms"]) == (expected["structures"], expected["atoms"])
    trivial = next(row for row in result["trivial"] if row["dataset"] == "mptrj")
    assert found["trivial"][0]["forces_mae"] == pytest.approx(trivial["forces_mae"], rel=1e-5)


def test_a_file_is_read_by_the_keys_of_its_dataset(project: Path, model: Model) -> None:
    """The original file of the dataset: format and keys are those of the recipe."""
    path = Path(str(model.saved.recipe["datasets"]["mptrj"]["path"]))
    found = evaluate_file(model, path, "mptrj")
    structures = next(row for row in found["rows"] if row["branch"] == "mptrj")["structures"]
    assert structures > len(Store.open(project / "stores/mptrj").range("test"))


def test_what_a_file_must_be(model: Model, test_set: Path, tmp_path: Path) -> None:
    with pytest.raises(RamifyError, match=r"trained on 2 datasets \(ani1x, mptrj\)"):
        evaluate_file(model, test_set)
    with pytest.raises(RamifyError, match="dataset 'mptrk', did you mean 'mptrj'"):
        evaluate_file(model, test_set, "mptrk")
    with pytest.raises(RamifyError, match=r"none\.extxyz does not exist"):
        evaluate_file(model, tmp_path / "none.extxyz", "mptrj")
    with pytest.raises(RamifyError, match="'cube' is unknown"):
        evaluate_file(model, test_set, "mptrj", "cube")
    copper = Atoms("Cu")
    copper.calc = SinglePointCalculator(copper, energy=-1.0, forces=np.zeros((1, 3)))
    write(tmp_path / "copper.extxyz", copper, format="extxyz")
    with pytest.raises(RamifyError, match=r"has no structure that can be read and predicted: 1 element"):
        evaluate_file(model, tmp_path / "copper.extxyz", "ani1x", "extxyz")
