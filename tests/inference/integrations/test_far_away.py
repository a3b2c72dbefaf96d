"""Predictions do not depend on the position in space: float32 far from the origin against float64 at the origin."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms

from ramify.inference.integrations.ase import Calculator
from ramify.inference.model import Model, load

DISTANCES = (100.0, 1_000.0, 10_000.0)


@pytest.fixture(scope="module")
def pair(runs: Path) -> tuple[Model, Model]:
    """The model with conservative forces of ordinary size, in float32 and in float64."""
    models = load(runs / "conservative"), load(runs / "conservative", precision="fp64")
    for model in models:
        for branch in ("qm7x", "mptrj"):
            model.network.branch(branch).energy_scale.mul_(100.0)
    return models


def moved(atoms: Atoms, distance: float) -> Atoms:
    """The structure, translated along no axis of symmetry."""
    away = atoms.copy()
    away.positions += distance * np.array([0.6, -0.64, 0.48])
    return away


def unwrapped(atoms: Atoms, cells: int) -> Atoms:
    """The same crystal, every atom moved by lattice vectors of its own."""
    away = atoms.copy()
    rng = np.random.default_rng(0)
    away.positions += rng.integers(-cells, cells + 1, (len(atoms), 3)) @ atoms.cell.array
    return away


@pytest.mark.parametrize("distance", DISTANCES)
def test_molecules(pair: tuple[Model, Model], molecules: list[Atoms], distance: float) -> None:
    single, double = pair
    expected = double.predict(molecules, "qm7x")
    found = single.predict([moved(atoms, distance) for atoms in molecules], "qm7x")
    assert np.abs(expected.forces_of_atoms).max() > 0.1
    np.testing.assert_allclose(found.forces_of_atoms, expected.forces_of_atoms, atol=2e-5)
    np.testing.assert_allclose(found.energy, expected.energy, atol=1e-4)


@pytest.mark.parametrize("cells", [100, 5_000])
def test_crystals(pair: tuple[Model, Model], crystals: list[Atoms], cells: int) -> None:
    single, double = pair
    expected = double.predict(crystals, "mptrj")
    found = single.predict([unwrapped(atoms, cells) for atoms in crystals], "mptrj")
    np.testing.assert_allclose(found.forces_of_atoms, expected.forces_of_atoms, atol=5e-5)
    np.testing.assert_allclose(found.stress, expected.stress, atol=1e-5)
    np.testing.assert_allclose(found.energy, expected.energy, atol=2e-4)


def test_fragments_that_have_left_each_other(pair: tuple[Model, Model], molecules: list[Atoms]) -> None:
    """No one centre is near both."""
    single, double = pair
    both = molecules[0] + moved(molecules[1], 10_000.0)
    expected = np.concatenate([double.predict(atoms, "qm7x").forces for atoms in molecules[:2]])
    np.testing.assert_allclose(single.predict(both, "qm7x").forces, expected, atol=2e-5)


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_calculator(pair: tuple[Model, Model], molecules: list[Atoms], distance: float) -> None:
    single, double = pair
    near, far = molecules[0].copy(), moved(molecules[0], distance)
    near.calc, far.calc = Calculator(double, "qm7x"), Calculator(single, "qm7x")
    np.testing.assert_allclose(far.get_forces(), near.get_forces(), atol=2e-5)


def test_torch_sim(pair: tuple[Model, Model], molecules: list[Atoms], crystals: list[Atoms]) -> None:
    torch_sim = pytest.importorskip("torch_sim")
    from ramify.inference.integrations.torchsim import TorchSimModel

    far = {"qm7x": [moved(a, 10_000.0) for a in molecules], "mptrj": [unwrapped(a, 2000) for a in crystals]}
    for branch, images in far.items():
        state = torch_sim.io.atoms_to_state(images, torch.device("cpu"), torch.float64)
        found = TorchSimModel(pair[0], branch)(state)
        expected = pair[1].predict(images, branch)
        np.testing.assert_allclose(found["forces"].numpy(), expected.forces_of_atoms, atol=5e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TorchScript's, which metatomic is built on
@pytest.mark.parametrize("precision", ["fp32", "fp64"])
def test_metatomic(runs: Path, tmp_path: Path, molecules: list[Atoms], precision: str) -> None:
    """The engine's pairs carry the difference."""
    pytest.importorskip("metatomic.torch")
    from metatomic_ase import MetatomicCalculator

    from ramify.inference.integrations.metatomic import write_metatomic

    model = load(runs / "conservative", precision=precision)
    exact = load(runs / "conservative", precision="fp64")
    for each in (model, exact):
        each.network.branch("qm7x").energy_scale.mul_(100.0)
    far = moved(molecules[0], 10_000.0)
    far.calc = MetatomicCalculator(str(write_metatomic(model.predictor("qm7x"), tmp_path / "m.pt")))
    np.testing.assert_allclose(far.get_forces(), exact.predict(molecules[0], "qm7x").forces, atol=5e-5)
