"""Variances against explicit covariances in numpy, and against finite differences of the features."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from numpy.typing import NDArray

from ramify.batches.batch import Batch, BatchPart
from ramify.batches.loader import SplitReader
from ramify.elements import MAX_NUMBER
from ramify.evaluate.predict_split import read_by
from ramify.inference.model import Model, load
from ramify.model.graph import build_graph
from ramify.neighbors.edges import find_edges
from ramify.store.store import Store
from ramify.structures import Structures
from ramify.uncertainty.last_layer import conservative_force_std, direct_force_std, energy_features, whitening

Floats = NDArray[np.float64]


def batch_of(model: Model, atoms: Atoms, branch: str) -> Batch:
    """One structure as a batch."""
    structures = Structures.from_ase([atoms])
    encoder = model.options.encoder
    edges = find_edges(structures, encoder.cutoff, encoder.max_neighbors)
    return Batch.make([BatchPart("-", branch, structures, edges, np.zeros(MAX_NUMBER + 1))], torch.float64)


def gradients(model: Model, branch: str, batch: Batch) -> Floats:
    """(S, D) derivatives of energies per atom with respect to the weights of the last layer, by autograd."""
    head = model.network.branch(branch)
    last = head.energy.layers[-1]
    weights = [p.requires_grad_() for p in (last.weight, head.energy.linear.weight, last.bias)]
    energy = model.network(read_by(batch, branch)).energy
    rows = []
    for k in range(len(energy)):
        found = torch.autograd.grad(energy[k], weights, retain_graph=True)
        rows.append(torch.cat([g.reshape(-1) for g in found]).numpy() / float(head.energy_scale))
    for p in weights:
        p.requires_grad_(False)
    return np.array(rows)


def test_energy_variance_is_that_of_the_dense_covariance(calibrated: Path) -> None:
    """Features are derivatives of the energy with respect to the last weights: σ² = α² (gᵀ (Σ g gᵀ + ς²)⁻¹ g + t²)."""
    model = load(calibrated / "conservative")
    assert model.bars is not None
    bars = model.bars.branches["bare"]
    store = Store.open(calibrated / "stores" / "bare")
    encoder = model.options.encoder
    reader = SplitReader(
        "bare", store, "train", "bare", cutoff=encoder.cutoff, max_neighbors=encoder.max_neighbors, edge_cache=0.0
    )
    g = np.concatenate([gradients(model, "bare", batch) for _, batch in reader.batches(500, torch.float64)])
    assert len(g) == bars.facts.structures
    inverse = np.linalg.inv(g.T @ g + bars.facts.ridge * np.eye(g.shape[1]))
    for shift in (0.0, 0.2):
        atoms = Atoms("OH2", positions=[[0, 0, 0], [0.96 + shift, 0, 0], [-0.24, 0.93, 0]])
        (own,) = gradients(model, "bare", batch_of(model, atoms, "bare"))
        scale = bars.facts.datasets["bare"].energy
        variance = scale.all**2 * (own @ inverse @ own + scale.floor**2)
        found = model.predict(atoms, "bare").energy_std
        assert found == pytest.approx(3 * np.sqrt(variance), rel=1e-6)


def test_force_variance_is_that_of_finite_differences(calibrated: Path) -> None:
    """Force components are derivatives of w·f, so their features are those of f by central differences."""
    model = load(calibrated / "conservative")
    assert model.bars is not None
    bars, atoms = model.bars.branches["ani1x"], molecule("CH3OH")
    atoms.rattle(0.05, seed=0)
    white = whitening(torch.from_numpy(bars.tensors["covariance"]), bars.facts.ridge).numpy()

    def whitened(moved: Atoms) -> Floats:
        batch = batch_of(model, moved, "ani1x")
        with torch.no_grad():
            scalars, _ = model.network.encoder(build_graph(batch, model.network.cutoff, batch.positions))
        return len(moved) * energy_features(model.network.branch("ani1x"), scalars, batch)[0].numpy() @ white

    raw, step = np.zeros((len(atoms), 3)), 1e-4
    for index in np.ndindex(raw.shape):
        ends = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[index] += sign * step
            ends.append(whitened(moved))
        raw[index] = np.linalg.norm((ends[0] - ends[1]) / (2 * step))
    scale = bars.facts.datasets["ani1x"].forces
    assert scale is not None
    expected = scale.by_elements.get("H C O", scale.all) * np.hypot(raw, scale.floor)
    found = model.predict(atoms, "ani1x", forces_std=True).forces_std
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_few_directions_estimate_the_variance(calibrated: Path) -> None:
    model = load(calibrated / "conservative")
    assert model.bars is not None
    white = torch.from_numpy(model.bars.branches["ani1x"].tensors["directions"])
    batch, size = batch_of(model, molecule("C6H6"), "ani1x"), len(white)
    exact = conservative_force_std(model.network, "ani1x", batch, white).square()
    estimates = []
    for seed in range(40):
        chosen, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((size, 6)))
        some = white @ torch.from_numpy(chosen) * (size / 6) ** 0.5
        estimates.append(conservative_force_std(model.network, "ani1x", batch, some).square())
    ratios = torch.stack([estimate.sum() / exact.sum() for estimate in estimates])
    assert float(ratios.mean()) == pytest.approx(1.0, abs=0.15)
    assert float(ratios.std()) > 0.05


def test_direct_force_variance_is_that_of_the_kronecker_product() -> None:
    """σ² = (v ⊗ h)ᵀ (V ⊗ H)⁻¹ (v ⊗ h), with the product formed explicitly."""
    rng = np.random.default_rng(0)
    h, v = rng.normal(size=(5, 4)), rng.normal(size=(5, 3, 2))
    of_h, of_v = h.T @ h + np.eye(4), np.einsum("nxc,nxd->cd", v, v) + np.eye(2)
    inverse = np.linalg.inv(np.kron(of_v, of_h))
    rows = np.einsum("nxc,nk->nxck", v, h).reshape(5, 3, 8)
    expected = np.sqrt(np.einsum("nxa,ab,nxb->nx", rows, inverse, rows))
    whites = [whitening(torch.from_numpy(c), 0.0) for c in (of_h, of_v)]
    found = direct_force_std(torch.from_numpy(h), torch.from_numpy(v), *whites)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("kind", ["direct", "conservative"])
def test_error_bars_do_not_depend_on_orientation(calibrated: Path, kind: str) -> None:
    model, atoms = load(calibrated / kind), molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=0)
    turned = atoms.copy()
    turned.rotate(37.0, (1, 2, 3))
    found = [model.predict(a, "ani1x", forces_std=True) for a in (atoms, turned)]
    assert found[0].energy_std == pytest.approx(found[1].energy_std, rel=1e-9)
    stds = [f.forces_std for f in found]
    assert stds[0] is not None
    assert stds[1] is not None
    np.testing.assert_allclose(*(np.linalg.norm(s, axis=1) for s in stds), rtol=1e-6)
    assert not np.allclose(stds[0], stds[1], rtol=1e-3)  # the components turn
