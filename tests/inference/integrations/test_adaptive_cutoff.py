"""The reach in PyTorch is that of the neighbour lists, with the same derivative, compiled or not."""

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from hypothesis import given, settings
from hypothesis import strategies as st

from ramify.inference.integrations.adaptive_cutoff import differentiable_cutoff
from ramify.neighbors.edges import ROUNDING, SOFTNESS, edges_among, find_pairs, search_radius
from ramify.structures import Structures

CUTOFF = 4.0


@settings(deadline=None, max_examples=30)
@given(max_neighbors=st.integers(1, 30), seed=st.integers(0, 2**32 - 1), size=st.floats(0, 0.3), compiled=st.booleans())
def test_reach_and_its_derivative(max_neighbors: int, seed: int, size: float, compiled: bool) -> None:
    rng = np.random.default_rng(seed)
    images = [bulk("Cu", cubic=True), molecule("C6H6"), bulk("Si"), bulk("Po", "sc", a=3.3), molecule("H2O")]
    for atoms in images:
        atoms.positions += rng.normal(0, size, atoms.positions.shape)
    structures = Structures.from_ase(images)
    pairs = find_pairs(structures, search_radius(CUTOFF, max_neighbors))
    expected = edges_among(pairs, len(structures.numbers), CUTOFF, max_neighbors)
    distance = torch.from_numpy(pairs.distance).requires_grad_()
    function = torch.jit.script(differentiable_cutoff) if compiled else differentiable_cutoff
    atom_cutoff = function(
        distance, torch.from_numpy(pairs.receiver), len(structures.numbers), CUTOFF, max_neighbors, SOFTNESS, ROUNDING
    )
    np.testing.assert_allclose(atom_cutoff.detach().numpy(), expected.atom_cutoff, atol=1e-10)
    (gain,) = torch.autograd.grad(atom_cutoff.sum(), distance)
    by_pair = {
        (i, j, *s): g
        for i, j, s, g in zip(
            expected.cutoff_pairs.receiver,
            expected.cutoff_pairs.sender,
            expected.cutoff_pairs.shift.tolist(),
            expected.cutoff_pairs.gain,
            strict=True,
        )
    }
    known = zip(pairs.receiver, pairs.sender, pairs.shift.tolist(), strict=True)
    np.testing.assert_allclose(gain.numpy(), [by_pair.get((i, j, *s), 0.0) for i, j, s in known], atol=1e-6)


@pytest.mark.parametrize("pairs", [0, 1])
def test_hardly_any_pairs(pairs: int) -> None:
    atom_cutoff = differentiable_cutoff(
        torch.full((pairs,), 2.0), torch.zeros(pairs, dtype=torch.int64), 3, CUTOFF, 4, SOFTNESS, ROUNDING
    )
    assert atom_cutoff.tolist() == [CUTOFF] * 3
