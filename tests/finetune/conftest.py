"""Trained models to fine-tune, and their predictions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from ramify.finetune.resolve import FinetuneRequest
from ramify.finetune.run import Finetuning, finetune
from ramify.inference.model import load
from ramify.train.reporting import Callbacks
from tests.small import make_recipe, prepare_stores, train

Predicted = dict[str, tuple[np.ndarray, np.ndarray | None]]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """More threads would not be faster with such small models."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores of ani1x, qm7x, mptrj and bare, and a run `base` of branches ani1x and mptrj with conservative forces."""
    path = tmp_path_factory.mktemp("finetune")
    entries = prepare_stores(path)
    chosen = {name: entries[name] for name in ("ani1x", "mptrj")}
    train(make_recipe(path, chosen, model__force_head__kind="conservative"), path / "base")
    return path


@pytest.fixture(scope="session")
def entries(folder: Path) -> dict[str, dict[str, Any]]:
    """The recipe entries of all datasets."""
    return prepare_entries(folder)


def prepare_entries(folder: Path) -> dict[str, dict[str, Any]]:
    """As `prepare_stores`, for stores that are there."""
    from tests.small import ENTRIES

    return ENTRIES | {"bare": {"format": "extxyz", "path": str(folder / "bare.xyz"), "group_key": "molecule"}}


def recipe_for(folder: Path, *datasets: str, stated: dict[str, Any] | None = None, **changes: Any) -> Any:
    """A recipe of a fine-tuning on `datasets`; its group `model` has only the keys in `stated`."""
    entries = prepare_entries(folder)
    made = make_recipe(folder, {name: entries[name] for name in datasets}, **changes)
    from ramify.recipe import parse_recipe

    content = made.model_dump(mode="json", exclude_unset=True)
    content["model"] = stated or {}
    content["datasets"] = {name: entries[name] for name in datasets}
    return parse_recipe(content, "recipe of a fine-tuning")


@pytest.fixture
def tune(folder: Path, tmp_path: Path) -> Callable[..., Finetuning]:
    """`tune("qm7x", mode="lora", start="ani1x", steps=4)`: a fine-tuning of `base` in `tmp_path` / run, not begun."""

    def make(
        *datasets: str,
        mode: str,
        start: str | None = None,
        steps: int | None = None,
        model: Path | None = None,
        path: str = "run",
        **changes: Any,
    ) -> Finetuning:
        request = FinetuneRequest(mode, str(model or folder / "base"), start, steps)
        return finetune(request, recipe_for(folder, *datasets, **changes), tmp_path / path, Callbacks())

    return make


ASKED: dict[str, list[Atoms]] = {
    "ani1x": [molecule("CH3CH2OH"), molecule("H2O")],
    "mptrj": [bulk("Al", cubic=True), bulk("MgO", "rocksalt", a=4.2)],
}


for _atoms in (*ASKED["ani1x"], *ASKED["mptrj"]):
    _atoms.rattle(0.05, seed=0)


def predictions(model: Path, branches: tuple[str, ...] = ("ani1x", "mptrj")) -> Predicted:
    """Predictions of branches of a model for some structures, each on its own scale."""
    loaded = load(model)
    found = {}
    for branch in branches:
        said = loaded.predict(ASKED[branch], branch)
        found[branch] = (said.energy, said.forces_of_atoms)
    return found


def assert_same(found: Predicted, expected: Predicted) -> None:
    """Equal to the bit."""
    assert found.keys() == expected.keys()
    for branch, (energy, forces) in found.items():
        assert np.array_equal(energy, expected[branch][0]), branch
        assert np.array_equal(forces, expected[branch][1]), branch
