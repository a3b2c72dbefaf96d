"""What must not change a prediction, and how forces and stress must turn: 1e-5 in float32, 1e-10 in float64."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import make_supercell
from scipy.spatial.transform import Rotation

from ramify.model.multibranch import BatchPredictions, MultiBranch

from .conftest import batch_of

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
CASES = [(f, d, m) for f in ("direct", "conservative") for d in TOLERANCE for m in (1, 2)]
pytestmark = pytest.mark.parametrize(("forces", "dtype", "message_layers"), CASES)


def predict(model: MultiBranch, images: list[Atoms], dtype: torch.dtype) -> BatchPredictions:
    with torch.no_grad():
        return model(batch_of(images, dtype), stress=True)


def close(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    assert torch.nan_to_num(expected).abs().max() > 1e-3  # else the comparison would say nothing
    torch.testing.assert_close(found, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype], equal_nan=True)


def test_rotation_and_reflection(make_model: Callable, images, forces, dtype, message_layers) -> None:
    model = make_model(forces, dtype, message_layers)
    before = predict(model, images, dtype)
    for matrix in (Rotation.from_euler("xyz", [0.4, -1.1, 2.0]).as_matrix(), -np.eye(3)):
        turned = [Atoms(a.numbers, a.positions @ matrix.T, cell=a.cell.array @ matrix.T, pbc=a.pbc) for a in images]
        after = predict(model, turned, dtype)
        rotation = torch.tensor(matrix, dtype=dtype)
        close(after.energy, before.energy, dtype)
        close(after.forces, before.forces @ rotation.T, dtype)
        if forces == "conservative":
            close(after.stress, rotation @ before.stress @ rotation.T, dtype)


def test_translation_and_periodic_images(make_model: Callable, images, forces, dtype, message_layers) -> None:
    """Moving everything, and moving single atoms by lattice vectors, changes nothing."""
    model = make_model(forces, dtype, message_layers)
    before = predict(model, images, dtype)
    rng = np.random.default_rng(3)
    moved = [a.copy() for a in images]
    for atoms in moved:
        atoms.translate(rng.uniform(-3, 3, 3))
        atoms.positions += rng.integers(-1, 2, (len(atoms), 3)) @ atoms.cell.array
    after = predict(model, moved, dtype)
    close(after.energy, before.energy, dtype)
    close(after.forces, before.forces, dtype)


def test_permutation(make_model: Callable, images, forces, dtype, message_layers) -> None:
    model = make_model(forces, dtype, message_layers)
    before = predict(model, images, dtype)
    rng = np.random.default_rng(4)
    orders = [rng.permutation(len(a)) for a in images]
    after = predict(model, [a[order] for a, order in zip(images, orders, strict=True)], dtype)
    first, rows = 0, []
    for order in orders:
        rows.append(first + order)
        first += len(order)
    close(after.energy, before.energy, dtype)
    close(after.forces, before.forces[np.concatenate(rows)], dtype)


def test_supercell(make_model: Callable, images, forces, dtype, message_layers) -> None:
    """A cell repeated along skewed vectors has the same energy per atom, forces and stress."""
    model = make_model(forces, dtype, message_layers)
    crystals = [a for a in images if a.pbc.all()]
    skewed = [[2, 1, 0], [0, 2, 0], [0, 0, 1]]
    large = [make_supercell(a, skewed, wrap=False, order="cell-major") for a in crystals]
    before, after = predict(model, crystals, dtype), predict(model, large, dtype)
    close(after.energy, before.energy, dtype)
    if forces == "conservative":
        close(after.stress, before.stress, dtype)
    first_small = first_large = 0
    for small in crystals:
        n = len(small)
        expected = before.forces[first_small : first_small + n].repeat(4, 1)
        torch.testing.assert_close(
            after.forces[first_large : first_large + 4 * n], expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype]
        )
        first_small, first_large = first_small + n, first_large + 4 * n


def test_structures_of_a_batch_do_not_touch(make_model: Callable, images, forces, dtype, message_layers) -> None:
    model = make_model(forces, dtype, message_layers)
    together = predict(model, images, dtype)
    alone = [predict(model, [a], dtype) for a in images]
    close(together.energy, torch.cat([p.energy for p in alone]), dtype)
    close(together.forces, torch.cat([p.forces for p in alone]), dtype)
