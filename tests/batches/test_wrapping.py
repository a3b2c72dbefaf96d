"""Structures far from the origin keep their distances and forces in float32, in stores and in batches."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.geometry import get_distances
from ase.io import write
from hypothesis import given, settings
from hypothesis import strategies as st

from ramify.batches.batch import Batch, BatchPart
from ramify.elements import MAX_NUMBER
from ramify.model.build import LabelSpread, build_model
from ramify.model.multibranch import MultiBranch
from ramify.neighbors.edges import find_edges
from ramify.neighbors.wrapping import FAR, displacements
from ramify.prepare.prepare import prepare_dataset
from ramify.recipe import parse_recipe
from ramify.sources.formats import formats
from ramify.store.store import Store
from ramify.structures import Structures

CUTOFF = 5.0


def crystal(seed: int) -> Atoms:
    atoms = bulk("Cu", cubic=True) * (2, 1, 1)
    atoms.rattle(0.1, seed=seed)
    atoms.set_cell(atoms.cell + 0.4 * np.random.default_rng(seed).random((3, 3)))
    return atoms


def unwrapped(atoms: Atoms, cells: int, seed: int) -> Atoms:
    """Every atom in some cell of its own, up to so many away along each periodic axis."""
    moved = atoms.copy()
    steps = np.random.default_rng(seed).integers(-cells, cells + 1, (len(atoms), 3)) * atoms.pbc
    moved.positions += steps @ atoms.cell.array
    return moved


def away(atoms: Atoms, distance: float) -> Atoms:
    moved = atoms.copy()
    moved.positions += np.array([1.0, -0.7, 0.4]) * distance
    return moved


def slab(seed: int) -> Atoms:
    atoms = crystal(seed)
    atoms.pbc = [True, True, False]
    return atoms


@pytest.fixture(scope="module")
def model() -> MultiBranch:
    """A conservative model with random weights, in float32."""
    content = {
        "datasets": {"a": {"format": "extxyz", "path": "a.xyz"}},
        "model": {
            "encoder": {"kind": "egnn", "layers": 2, "width": 16, "vector_channels": 4, "cutoff": CUTOFF},
            "energy_head": {"layers": 1, "width": 16},
            "force_head": {"kind": "conservative"},
        },
    }
    torch.manual_seed(0)
    model = build_model(parse_recipe(content, "test"), {"a": LabelSpread(1.0, 1.0, 1)})
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():  # last layers of heads start at zero: no forces
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return model


def forces(model: MultiBranch, atoms: Atoms, dtype: torch.dtype) -> np.ndarray:
    structures = Structures.from_ase([atoms])
    edges = find_edges(structures, CUTOFF, 20)
    batch = Batch.make([BatchPart("a", "a", structures, edges, np.zeros(MAX_NUMBER + 1))], dtype)
    found = model.to(dtype)(batch, stress=False).forces
    assert found is not None
    result: np.ndarray = found.detach().double().numpy()
    return result


CASES = {
    "a molecule at 1,000 Å": (molecule("C2H6"), away(molecule("C2H6"), 1e3)),
    "a molecule at 10,000 Å": (molecule("C2H6"), away(molecule("C2H6"), 1e4)),
    "a crystal unwrapped by 5,000 cells": (crystal(0), unwrapped(crystal(0), 5000, 1)),
    "a crystal at 10,000 Å": (crystal(1), away(crystal(1), 1e4)),
    "a slab unwrapped, and 10,000 Å up": (slab(2), away(unwrapped(slab(2), 5000, 2), 1e4)),
}


@pytest.mark.parametrize("case", CASES)
def test_forces_of_a_batch(model: MultiBranch, case: str) -> None:
    """In float32 as close to those of float64 as with the structure at the origin."""
    near, far = CASES[case]
    exact = forces(model, near, torch.float64)
    rounding = max(np.abs(forces(model, near, torch.float32) - exact).max(), 1e-6 * np.abs(exact).max())
    assert np.abs(forces(model, far, torch.float32) - exact).max() < 5 * rounding
    assert np.abs(forces(model, far, torch.float64) - exact).max() < 1e-7 * np.abs(exact).max()


@pytest.mark.parametrize("case", CASES)
def test_distances_in_a_store(tmp_path: Path, case: str) -> None:
    near, far = CASES[case]
    far.info = {"energy": -1.0}
    write(tmp_path / "a.xyz", far, format="extxyz", columns=["symbols", "positions"])
    options = formats()["extxyz"].options.model_validate(
        {"format": "extxyz", "path": "a.xyz", "forces_key": None, "split": {"val": 0, "test": 0}}
    )
    prepare_dataset("d", options, tmp_path / "stores", base=tmp_path)
    stored = Store.open(tmp_path / "stores" / "d").take([0])
    stored = replace(stored, positions=stored.positions.astype(np.float64))
    _, found = get_distances(stored.positions, cell=stored.cell[0].astype(np.float64), pbc=stored.pbc[0])
    _, expected = get_distances(near.positions, cell=near.cell, pbc=near.pbc)
    assert np.abs(found - expected).max() < 2e-5


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    pbc=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    distance=st.sampled_from([0.0, 50.0, 1e3, 1e4]),
)
def test_structures_move_by_what_changes_nothing(seed: int, pbc: tuple[bool, bool, bool], distance: float) -> None:
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(4):
        n = int(rng.integers(1, 6))
        cell = np.eye(3) * 8 + rng.normal(size=(3, 3))
        atoms = Atoms("C" * n, positions=rng.random((n, 3)) * 8, cell=cell, pbc=pbc)
        images.append(away(unwrapped(atoms, int(distance / 8), int(seed)), distance * float(rng.random())))
    structures = Structures.from_ase(images)
    moved = displacements(structures)
    far = np.abs(structures.positions).max() > FAR
    assert (moved is None) == (not far)
    if moved is None:
        return
    assert np.abs(structures.positions - moved).max() < FAR
    for k, atoms in enumerate(images):
        own = moved[structures.structure_of_atom == k]
        if np.abs(atoms.positions).max() <= FAR:
            assert not own.any()
            continue
        between = own - own[0]  # lattice vectors along the periodic axes
        steps = between @ np.linalg.inv(atoms.cell.array)
        np.testing.assert_allclose(steps, np.rint(steps) * atoms.pbc, atol=1e-8)
