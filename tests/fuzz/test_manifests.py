"""Changed manifests of runs, checkpoints, exports and stores: a result or a `RamifyError`."""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from ase.build import molecule
from hypothesis import given
from safetensors import safe_open
from safetensors.numpy import save

from ramify.checkpoint.checkpoint import open_checkpoint
from ramify.checkpoint.pointers import resolve
from ramify.errors import RamifyError
from ramify.evaluate.evaluate import Evaluator
from ramify.evaluate.results import Results
from ramify.files import content_sha256
from ramify.inference.export.exported import write_export
from ramify.inference.jobs.resumable import ResumableOutput
from ramify.inference.model import load, read_saved
from ramify.inspect import describe
from ramify.recipe import load_recipe
from ramify.report.report import render
from ramify.route.fit import fit_router
from ramify.route.router import Router, router_of
from ramify.run.run import Run
from ramify.store.store import Store
from ramify.structures import Structures
from ramify.uncertainty.calibrate import calibrate_run
from ramify.uncertainty.error_bars import FILE
from tests.fuzz.mutations import as_json, changes, damages, fuzz
from tests.small import make_recipe, prepare_stores, train

Change = Callable[[Any], Any]
Damage = Callable[[bytes], bytes]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with stores, an evaluated run with a router and error bars, and its export `model`."""
    folder = tmp_path_factory.mktemp("fuzz")
    entries = prepare_stores(folder)
    train(make_recipe(folder, {name: entries[name] for name in ("ani1x", "mptrj")}), folder / "run")
    Evaluator(folder / "run").evaluate()
    fit_router(folder / "run")
    calibrate_run(folder / "run")
    write_export(read_saved(folder / "run"), folder / "model")
    return folder


@pytest.fixture
def copy(good: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(good, tmp_path / "all", symlinks=True)
    return tmp_path / "all"


def sealed(content: Any) -> bytes:
    """A manifest with a valid checksum, as an attacker would write it."""
    if isinstance(content, dict):
        content = {key: value for key, value in content.items() if key != "checksum"}
        content |= {"checksum": content_sha256(content)}
    return as_json(content)


def inside(folder: Path) -> list[Path]:
    """All files outside of `folder`, in the folder around it."""
    return sorted(path for path in folder.parent.rglob("*") if folder not in path.parents)


def survives(use: Callable[[], object]) -> None:
    """Runs `use`, which may only end well or by a `RamifyError`."""
    with contextlib.suppress(RamifyError):
        use()


@given(change=changes())
@fuzz(60)
def test_manifest_of_a_checkpoint(copy: Path, good: Path, change: Change) -> None:
    path = resolve(copy / "run/checkpoints/best")
    content = json.loads((resolve(good / "run/checkpoints/best") / "manifest.json").read_text())
    (path / "manifest.json").write_bytes(sealed(change(content)))
    before = inside(copy)
    survives(lambda: load(copy / "run").predict(molecule("H2O"), "ani1x"))
    survives(lambda: write_export(read_saved(path), copy / "out"))
    shutil.rmtree(copy / "out", ignore_errors=True)
    survives(lambda: describe(path, verify=True))
    survives(lambda: Evaluator(copy / "run", split="val")._open())
    assert inside(copy) == before


@given(change=changes())
@fuzz(80)
def test_manifest_of_an_export(copy: Path, good: Path, change: Change) -> None:
    content = json.loads((good / "model/manifest.json").read_text())
    (copy / "model/manifest.json").write_bytes(sealed(change(content)))
    before = inside(copy)
    survives(lambda: load(copy / "model").predict(molecule("H2O"), "ani1x"))
    survives(lambda: write_export(read_saved(copy / "model"), copy / "out"))
    shutil.rmtree(copy / "out", ignore_errors=True)
    survives(lambda: describe(copy / "model", verify=True))
    assert inside(copy) == before


@given(change=changes())
@fuzz(80)
def test_manifest_of_a_store(copy: Path, good: Path, change: Change) -> None:
    path = copy / "stores/mptrj"
    content = json.loads((good / "stores/mptrj/manifest.json").read_text())
    (path / "manifest.json").write_bytes(as_json(change(content)))
    survives(lambda: describe(path, verify=True))
    survives(lambda: all_of(path))


@given(change=changes())
@fuzz(40)
def test_names_of_a_store(copy: Path, good: Path, change: Change) -> None:
    content = json.loads((good / "stores/mptrj/names.json").read_text())
    (copy / "stores/mptrj/names.json").write_bytes(as_json(change(content)))
    survives(lambda: all_of(copy / "stores/mptrj"))


def all_of(path: Path) -> None:
    """Reads every structure of a store, and its names."""
    with Store.open(path) as store:
        structures = store.take(np.arange(len(store)))
        assert all(structures.name(k) for k in range(len(structures)))
        assert np.isfinite(store.references).any()


@given(damage=damages())
@fuzz(40)
def test_columns_of_a_store(copy: Path, good: Path, damage: Damage) -> None:
    for name in ("n_atoms", "numbers", "cell"):
        data = (good / f"stores/mptrj/{name}.npy").read_bytes()
        (copy / f"stores/mptrj/{name}.npy").write_bytes(damage(data[:200]) + data[200:])
        survives(lambda: all_of(copy / "stores/mptrj"))
        (copy / f"stores/mptrj/{name}.npy").write_bytes(data)


@given(change=changes())
@fuzz(60)
def test_what_a_run_says(copy: Path, good: Path, change: Change) -> None:
    for name in ("evaluation.json", "data.json"):
        content = json.loads((good / "run" / name).read_text())
        (copy / "run" / name).write_bytes(as_json(change(content)))
        survives(lambda: Results.open(copy / "run").predictions("ani1x"))
        survives(lambda: read_saved(copy / "run"))
        shutil.copyfile(good / "run" / name, copy / "run" / name)


@pytest.mark.slow
@given(change=changes())
@fuzz(15)
def test_the_report_of_a_run(copy: Path, good: Path, change: Change) -> None:
    content = json.loads((good / "run/evaluation.json").read_text())
    (copy / "run/evaluation.json").write_bytes(as_json(change(content)))
    survives(lambda: render(Results.open(copy / "run")))


@given(damage=damages())
@fuzz(60)
def test_bytes_of_what_a_run_says(copy: Path, good: Path, damage: Damage) -> None:
    for name in ("metrics.jsonl", "sessions.jsonl", "recipe.yaml", "evaluation.json"):
        (copy / "run" / name).write_bytes(damage((good / "run" / name).read_bytes()))
        survives(lambda: Results.open(copy / "run"))
        survives(lambda: Run(copy / "run").sessions.lines())
        survives(lambda: load_recipe(copy / "run/recipe.yaml"))
        shutil.copyfile(good / "run" / name, copy / "run" / name)


@given(damage=damages())
@fuzz(60)
def test_bytes_of_weights(copy: Path, good: Path, damage: Damage) -> None:
    """With the checksum that they have."""
    name = "encoder.safetensors"
    data = damage((good / "model" / name).read_bytes())
    (copy / "model" / name).write_bytes(data)
    content = json.loads((good / "model/manifest.json").read_text())
    content["files"][name] = hashlib.sha256(data).hexdigest()
    (copy / "model/manifest.json").write_bytes(sealed(content))
    survives(lambda: load(copy / "model").predict(molecule("H2O"), "ani1x"))


@given(change=changes())
@fuzz(80)
def test_a_router(copy: Path, good: Path, change: Change) -> None:
    path = copy / "run/router.safetensors"
    with safe_open(good / "run/router.safetensors", "numpy") as file:
        about = json.loads(file.metadata()["router"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
    path.write_bytes(save(tensors, {"router": as_json(change(about)).decode()}))
    survives(lambda: Router.read(path))
    model = load(good / "run")
    survives(lambda: Router.read(path).route(model, Structures.from_ase([molecule("H2O")])))
    assert router_of(model).branches == ("ani1x", "mptrj")


@given(change=changes())
@fuzz(40)
def test_error_bars(copy: Path, good: Path, change: Change) -> None:
    with safe_open(good / "run" / FILE, "numpy") as file:
        about = json.loads(file.metadata()["uncertainty"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
    (copy / "run" / FILE).write_bytes(save(tensors, {"uncertainty": as_json(change(about)).decode()}))
    survives(lambda: load(copy / "run").predict(molecule("H2O"), "ani1x"))


@given(change=changes())
@fuzz(40)
def test_a_recipe(tmp_path: Path, good: Path, change: Change) -> None:
    content = yaml.safe_load((good / "run/recipe.yaml").read_text())
    changed = change(content)
    survives(lambda: (tmp_path / "r.yaml").write_text(yaml.safe_dump(json.loads(as_json(changed)))))
    survives(lambda: load_recipe(tmp_path / "r.yaml"))


@given(change=changes())
@fuzz(60)
def test_a_prediction_that_was_cut_off(tmp_path: Path, change: Change) -> None:
    about = {"job": "j", "frames": 3, "written": 2, "skipped": {"a": 1}, "warnings": 0, "bytes": 4, "skipped_bytes": 0}
    (tmp_path / "out.part").write_text("four")
    (tmp_path / "out.part.json").write_bytes(as_json(change(about)))
    survives(lambda: ResumableOutput(tmp_path / "out", "j", restart=False))


def test_what_is_good_is_read(good: Path) -> None:
    """Or the tests above would try nothing."""
    assert open_checkpoint(good / "run/checkpoints/best").complete()
    assert np.isfinite(load(good / "model").predict(molecule("H2O"), "ani1x").energy)
    all_of(good / "stores/mptrj")
    assert render(Results.open(good / "run"))
