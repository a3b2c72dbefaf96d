"""A router of a model that takes charge and spin: they alone tell two branches of equal geometries apart."""

from pathlib import Path

import pytest
from ase import Atoms
from ase.io import write

from ramify.inference.model import load
from ramify.prepare.prepare import prepare_dataset
from ramify.route.fit import fit_router
from ramify.route.route_file import Line, route_file
from tests.inference.test_conditions import waters
from tests.small import make_recipe, train

STATES = ("neutral", "cation")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Branches of neutral water and of its cation at the same geometries, with a router."""
    folder = tmp_path_factory.mktemp("route-conditions")
    entries = {}
    for number, name in enumerate(STATES):
        write(folder / f"{name}.xyz", waters(80)[number::2], format="extxyz")
        keys = {"group_key": "source", "charge_key": "charge", "spin_key": "spin"}
        entries[name] = {"format": "extxyz", "path": str(folder / f"{name}.xyz"), **keys}
    head = {"model__force_head__kind": "conservative"}
    recipe = make_recipe(folder, entries, model__conditions=["charge", "spin"], train__max_steps=40, **head)
    for name in STATES:
        prepare_dataset(name, recipe.datasets[name], Path(recipe.stores), base=folder)
    train(recipe, folder / "run")
    fit_router(folder / "run")
    return folder / "run"


def routed(run: Path, images: list[Atoms], folder: Path) -> list[Line]:
    write(folder / "asked.xyz", images, format="extxyz")
    return list(route_file(load(run), folder / "asked.xyz"))


def test_charge_and_spin_decide(run: Path, tmp_path: Path) -> None:
    lines = routed(run, waters(4), tmp_path)
    for line, expected in zip(lines, STATES * 2, strict=True):
        others = [p for name, p in line.choice.probabilities.items() if name != expected]
        assert line.choice.probabilities[expected] > max(others)


def test_it_abstains_without_them(run: Path, tmp_path: Path) -> None:
    for line in routed(run, waters(2, stated=False), tmp_path):
        assert line.choice.branch is None
        assert "no charge" in line.choice.why
