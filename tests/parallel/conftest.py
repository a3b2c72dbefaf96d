"""Five small datasets with different labels, sizes and periodicity, for tests of the work of each rank."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from ramify.prepare.prepare import prepare_dataset
from ramify.recipe import Recipe
from tests.small import make_recipe

FIVE = ("alloys", "waters", "bare", "partly", "clusters")
FORCES = {"alloys": 1, "waters": 1, "bare": 0, "partly": 3, "clusters": 1}
"""Every so many-th structure has forces; 0: none."""


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """More threads would not be faster with such small models; plans assume one thread by default."""
    torch.set_num_threads(1)


def _images(name: str, rng: np.random.Generator) -> list[Atoms]:
    if name == "alloys":  # periodic, dense: more neighbours than the limit, and stress
        cells = [bulk("Cu", cubic=True), bulk("Al", cubic=True), bulk("Ni", cubic=True)]
        return [cells[k % 3].copy() for k in range(70)]
    if name == "waters":
        return [molecule("H2O") for _ in range(30)]
    if name == "bare":
        return [molecule(["CO", "N2", "CH4"][k % 3]) for k in range(44)]
    if name == "partly":
        return [molecule(["CH3OH", "NH3", "C2H4"][k % 3]) for k in range(52)]
    clusters = []
    for k in range(24):  # from 2 to 13 atoms: structures of one dataset that differ in their work
        whole = bulk("Pt", cubic=True).repeat(2)
        keep = np.argsort(np.linalg.norm(whole.positions - whole.positions[0], axis=1))[: 2 + k % 12]
        clusters.append(Atoms("Pt" * len(keep), positions=whole.positions[keep]))
    return clusters


def write_corpus(folder: Path, name: str) -> dict[str, Any]:
    """Writes one dataset with labels of ASE's EMT; returns its recipe entry."""
    rng = np.random.default_rng(FIVE.index(name))
    images = []
    for k, atoms in enumerate(_images(name, rng)):
        atoms.rattle(0.06, rng=rng)
        atoms.calc = EMT()
        labels = {"energy": atoms.get_potential_energy()}
        if FORCES[name] and k % FORCES[name] == 0:
            labels["forces"] = atoms.get_forces()
        if name == "alloys" and k % 2:
            labels["stress"] = atoms.get_stress()
        atoms.calc = SinglePointCalculator(atoms, **labels)
        atoms.info["family"] = f"f{k // 2}"
        images.append(atoms)
    write(folder / f"{name}.xyz", images, format="extxyz")
    return {"format": "extxyz", "path": str(folder / f"{name}.xyz"), "group_key": "family"}


MakeFive = Callable[..., Recipe]


@pytest.fixture(scope="session")
def five(tmp_path_factory: pytest.TempPathFactory) -> MakeFive:
    """`five(train__batch=4)`: a small recipe over the five datasets, of unequal sizes and weights, in float64."""
    folder = tmp_path_factory.mktemp("five")
    entries = {name: write_corpus(folder, name) for name in FIVE}
    defaults: dict[str, Any] = {
        "train__precision": "fp64",
        "objective__weights": {"alloys": 2.0, "bare": 0.3},
        "optimizer__clip": 0.5,
        "model__encoder__max_neighbors": 6,
    }
    first = make_recipe(folder, entries, **defaults)
    for name, options in first.datasets.items():
        prepare_dataset(name, options, Path(first.stores), base=folder)
    return lambda **changes: make_recipe(folder, entries, **(defaults | changes))
