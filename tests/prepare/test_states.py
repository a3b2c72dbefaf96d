"""Stores of structures with charge and spin: duplicates, filters, columns in every form, old stores."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from ramify.inspect import describe
from ramify.prepare.prepare import prepare_dataset
from ramify.recipe import parse_recipe
from ramify.store.convert import convert_store
from ramify.store.manifest import VERSION, WITHOUT_STATES
from ramify.store.store import Store
from ramify.structures import Structures

GEOMETRIES, APART = 20, 8.0


@pytest.fixture(scope="module")
def ions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cells of copper, each as a neutral singlet and, 8 eV higher, as a doublet cation; one exact copy of a cation."""
    images = []
    for index in range(GEOMETRIES):
        atoms = bulk("Cu", cubic=True) * (1, 1, 1)
        atoms.rattle(0.05, seed=index)
        atoms.calc = EMT()
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        for charge in (0, 1):
            image = atoms.copy()
            image.info = {"charge": charge, "spin": 1 + charge, "source": f"g{index}"}
            image.calc = SinglePointCalculator(image, energy=energy + APART * charge, forces=forces)
            images.append(image)
    path = tmp_path_factory.mktemp("ions") / "ions.xyz"
    write(path, [*images, images[-1]], format="extxyz")
    return path


def prepared(path: Path, folder: Path, **keys: Any) -> Store:
    entry = {"format": "extxyz", "path": str(path), "group_key": "source", **keys}
    options = parse_recipe({"datasets": {"d": entry}}, "test").datasets["d"]
    prepare_dataset("d", options, folder, base=folder)
    return Store.open(folder / "d", verify=True)


READ = {"charge_key": "charge", "spin_key": "spin"}


def test_states_are_no_duplicates(ions: Path, tmp_path: Path) -> None:
    """Read as charge states, all but the exact copy stay; without the keys, half of them contradict the other half."""
    store = prepared(ions, tmp_path / "a", **READ)
    manifest = store.manifest
    assert manifest.dropped == {"duplicate structure": 1}
    assert manifest.conflicts is None
    assert manifest.version == VERSION
    found = [(s.charge, s.spin, sum(s.structures.values())) for s in manifest.states]
    assert found == [(0, 1, GEOMETRIES), (1, 2, GEOMETRIES)]
    taken = store.take(np.arange(len(store)))
    np.testing.assert_array_equal(taken.spin, taken.charge + 1)
    np.testing.assert_array_equal(taken.charge, taken.row % 2)
    assert manifest.shared_groups == 0  # both states of a geometry are in one split
    assert describe(store.path, verify=True)[1]["states"][1]["charge"] == 1
    plain = prepared(ions, tmp_path / "b").manifest
    assert plain.conflicts is not None
    assert plain.conflicts.energy == pytest.approx(APART / 4)
    assert plain.version == WITHOUT_STATES
    assert any("charge_key" in finding.fix for finding in plain.findings)
    assert "states" not in plain.to_json()


def test_filters(ions: Path, tmp_path: Path) -> None:
    store = prepared(ions, tmp_path, **READ, where={"charge": 0})
    assert len(store) == GEOMETRIES
    assert store.manifest.dropped == {"left out by where (charge)": GEOMETRIES + 1}


def test_both_forms_keep_the_columns(ions: Path, tmp_path: Path) -> None:
    pytest.importorskip("adios2")
    store = prepared(ions, tmp_path, **READ)
    before = store.take(np.arange(len(store)))
    converted = convert_store(store.path, "adios", tmp_path / "other")
    with Store.open(converted, verify=True) as other:
        after = other.take(np.arange(len(store)))
    np.testing.assert_array_equal(after.charge, before.charge)
    np.testing.assert_array_equal(after.spin, before.spin)
    shutil.rmtree(converted)


def test_columns_follow_the_structures() -> None:
    made = Structures.make(
        n_atoms=[1, 2], numbers=[1, 1, 1], positions=np.zeros((3, 3)), charge=[1, np.nan], spin=[2, np.nan]
    )
    twice = Structures.concatenate([made.take([1, 0]), made.span(0, 1)])
    np.testing.assert_array_equal(twice.charge, [np.nan, 1, 1])
    image = made.to_ase(0)
    assert (image.info["charge"], image.info["spin"]) == (1, 2)
    assert "charge" not in made.to_ase(1).info
    again = Structures.from_ase([image, made.to_ase(1)])
    np.testing.assert_array_equal(again.spin, [2, np.nan])
