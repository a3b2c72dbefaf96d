"""Predictions: total energies on the scale of the dataset, independent of batches; refused structures."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ramify.batches.batch import Batch, BatchPart
from ramify.errors import RamifyError, RamifyWarning
from ramify.inference import predictor as predictor_module
from ramify.inference.batching import MemoryBudget, plan
from ramify.inference.model import Model
from ramify.neighbors.edges import find_edges
from ramify.store.store import Store
from ramify.structures import Structures


def test_energies_are_the_networks_and_the_references(exact: Model, runs: Path) -> None:
    """The test split of the store, predicted by hand: the network's energy per atom, and a sum of references."""
    store = Store.open(runs / "stores/qm7x")
    structures = store.take(store.range("test"))
    encoder = exact.options.encoder
    edges = find_edges(structures, encoder.cutoff, encoder.max_neighbors)
    batch = Batch.make([BatchPart("qm7x", "qm7x", structures, edges, store.references)], torch.float64)
    with torch.no_grad():
        by_hand = exact.network(batch)
    found = exact.predict(structures, "qm7x")
    energies = store.manifest.references.energies
    for k in range(len(structures)):
        atoms = structures.to_ase(k)
        references = sum(energies[symbol] for symbol in atoms.get_chemical_symbols())
        assert found.energy[k] == pytest.approx(float(by_hand.energy[k]) * len(atoms) + references, abs=1e-8)
    np.testing.assert_allclose(found.forces_of_atoms, by_hand.forces.numpy(), atol=1e-10)
    # the scale is the dataset's own: labels lie near, total energies of tens of thousands of eV though they are
    assert np.abs(found.energy - structures.energy).mean() < 1e-3 * np.abs(structures.energy).mean()


def test_one_structure_or_many(conservative: Model, molecules: list[Atoms]) -> None:
    many = conservative.predict(molecules, "qm7x")
    assert len(many) == len(molecules)
    for k, atoms in enumerate(molecules):
        one = conservative.predict(atoms, "qm7x")
        assert one.energy == pytest.approx(many[k].energy, abs=1e-6 * len(atoms))
        assert one.forces.shape == many.forces[k].shape == (len(atoms), 3)
        np.testing.assert_allclose(one.forces, many.forces[k], atol=2e-6)
        assert one.stress is None
    assert [p.energy for p in many] == list(many.energy)
    assert len(conservative.predict([], "qm7x")) == 0
    assert conservative.predict([], "qm7x").forces == []


@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    order=st.permutations(range(10)),
    budget=st.builds(MemoryBudget, st.integers(1, 60), st.integers(1, 400), st.just(1e9)),
)
def test_batches_do_not_matter(
    exact: Model, molecules: list[Atoms], crystals: list[Atoms], order: list[int], budget: MemoryBudget
) -> None:
    """Any order, any budget; elements are checked by the branch, so molecules and crystals take turns."""
    for images, branch in ((molecules, "qm7x"), (crystals, "mptrj")):
        some = [images[k] for k in order if k < len(images)]
        found = exact.predictor(branch).predict(Structures.from_ase(some), budget)
        for k, atoms in enumerate(some):
            alone = exact.predict(atoms, branch)
            assert found.energy[k] == pytest.approx(alone.energy, abs=1e-9)
            np.testing.assert_allclose(found.forces[k], alone.forces, atol=1e-10)


@given(
    counts=st.lists(st.tuples(st.integers(1, 30), st.integers(0, 300)), max_size=40),
    atoms=st.integers(1, 60),
    edges=st.integers(1, 400),
)
def test_plan_keeps_to_the_budget(counts: list[tuple[int, int]], atoms: int, edges: int) -> None:
    n_atoms, n_edges = (np.array([c[k] for c in counts], np.int64) for k in (0, 1))
    spans = list(plan(n_atoms, n_edges, MemoryBudget(atoms, edges, 1e9)))
    assert [k for s in spans for k in range(s.start, s.stop)] == list(range(len(counts)))
    for span in spans:
        fits = n_atoms[span].sum() <= atoms and n_edges[span].sum() <= edges
        assert fits or span.stop == span.start + 1


def test_neighbours_are_searched_in_pieces(
    exact: Model, molecules: list[Atoms], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = exact.predict(molecules, "qm7x")
    monkeypatch.setattr(predictor_module, "SEARCHED_ATOMS", 10)
    np.testing.assert_allclose(exact.predict(molecules, "qm7x").energy, whole.energy, atol=1e-9)


def test_what_a_branch_lacks_is_absent(direct: Model, conservative: Model, crystals: list[Atoms]) -> None:
    water = molecule("H2O")
    assert direct.predict(water, "bare").forces is None
    assert direct.predict([water], "bare").forces is None
    assert direct.predict(water, "ani1x").forces.shape == (3, 3)
    assert direct.predict(crystals[0], "mptrj").stress is None  # direct forces have no stress
    stress = conservative.predict(crystals[0], "mptrj").stress
    np.testing.assert_allclose(stress, stress.T, atol=1e-8)
    boxed = crystals[0].copy()
    boxed.pbc = False
    assert conservative.predict(boxed, "mptrj").stress is None  # a box without periodic axes
    both = conservative.predict([boxed, crystals[0]], "mptrj")
    assert both[0].stress is None
    np.testing.assert_allclose(both[1].stress, stress, atol=1e-7)


def bad_structures() -> dict[str, tuple[Atoms, str]]:
    """Structures without a prediction, and their reasons."""
    water = molecule("H2O")
    flat = Atoms("H2", [[0, 0, 0], [0, 0, 0.8]], cell=[[3, 0, 0], [0, 3, 0], [3, 3, 0]], pbc=True)
    no_cell = Atoms("H", pbc=[True, False, False])
    nowhere = water.copy()
    nowhere.positions[1, 2] = np.nan
    endless = bulk("C", cubic=True)
    endless.cell[0, 0] = np.inf
    many_on_one = Atoms("H40", np.zeros((40, 3)))
    images = Atoms("H", cell=[0.01, 5, 5], pbc=True)
    return {
        "no atoms": (Atoms(), r"no atoms: it has 0 atoms"),
        "element": (
            molecule("SiH4"),
            r"element that the branch never saw: it holds Si; branch 'qm7x' was trained on H C",
        ),
        "no element": (Atoms("X"), r"element that the branch never saw: it holds X"),
        "one spot": (Atoms("HO", np.zeros((2, 3))), r"two atoms on one spot: two of its atoms are 0\.0000 Å apart"),
        "forty": (many_on_one, r"two atoms on one spot"),
        "own image": (images, r"two atoms on one spot: two of its atoms are 0\.0100 Å apart"),
        "flat": (flat, r"periodic cell without volume: pbc \[True, True, True\], cell"),
        "no cell": (no_cell, r"periodic cell without volume"),
        "nan": (nowhere, r"position or cell is not a number: 1 of its atoms"),
        "inf": (endless, r"position or cell is not a number"),
    }


@pytest.mark.parametrize("name", bad_structures())
def test_a_bad_structure_is_refused(conservative: Model, molecules: list[Atoms], name: str) -> None:
    atoms, said = bad_structures()[name]
    with pytest.raises(RamifyError, match=said):
        conservative.predict(atoms, "qm7x")
    with pytest.raises(RamifyError, match=f"structure 1: {said}.*\n  fix: .* skip=True"):
        conservative.predict([molecules[0], atoms], "qm7x")


def test_bad_structures_are_left_out_and_counted(exact: Model, molecules: list[Atoms]) -> None:
    bad = [atoms for atoms, _ in bad_structures().values()]
    mixed = [atoms for pair in zip(bad, molecules * 2, strict=False) for atoms in pair]
    found = exact.predict(mixed, "qm7x", skip=True)
    assert list(found.refused) == list(range(0, 2 * len(bad), 2))
    for k, prediction in enumerate(found):
        assert (prediction is None) == (k % 2 == 0) == bool(np.isnan(found.energy[k]))
    expected = exact.predict(mixed[1::2], "qm7x")
    np.testing.assert_allclose(found.energy[1::2], expected.energy, atol=1e-9)
    np.testing.assert_allclose(np.concatenate(found.forces[1::2]), expected.forces_of_atoms, atol=1e-10)
    assert all(np.isnan(forces).all() for forces in found.forces[::2])
    with pytest.raises(RamifyError, match=rf"\({len(bad)} of {len(mixed)} structures have no prediction\)"):
        exact.predict(mixed, "qm7x")


def test_closer_than_the_training_data_is_doubted(conservative: Model, molecules: list[Atoms], runs: Path) -> None:
    limit = conservative.branches["qm7x"].datasets["qm7x"].min_distance
    close = Atoms("H2", [[0, 0, 0], [0, 0, limit - 0.1]])
    with pytest.warns(
        RamifyWarning, match=rf"extrapolation: atoms closer than .*{limit - 0.1:.3f} Å against {limit:.3f} Å"
    ):
        found = conservative.predict(close, "qm7x")
    assert "closer" in found.warning
    with pytest.warns(RamifyWarning, match="extrapolation: 1 of 2 structures, the first is number 1: atoms closer"):
        found = conservative.predict([molecules[0], close], "qm7x")
    assert list(found.warnings) == [1]
    store = Store.open(runs / "stores/qm7x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        conservative.predict(store.take(store.range("train")), "qm7x")  # the training data themselves are not doubted


def test_overflow_is_no_prediction(conservative: Model, molecules: list[Atoms]) -> None:
    bias = conservative.network.branch("qm7x").energy.layers[-1].bias
    before = bias.clone()
    try:
        bias.fill_(torch.inf)
        with pytest.raises(RamifyError, match="prediction is not a number: the model overflows on this structure"):
            conservative.predict(molecules[0], "qm7x")
        found = conservative.predict(molecules, "qm7x", skip=True)
    finally:
        bias.copy_(before)
    assert len(found.refused) == len(molecules)
    assert np.isnan(found.forces_of_atoms).all()


def test_progress_counts_every_structure_once(conservative: Model, molecules: list[Atoms]) -> None:
    heard: list[int] = []
    conservative.predict([Atoms(), *molecules, Atoms("H2")], "qm7x", skip=True, progress=heard.append)
    assert sum(heard) == len(molecules) + 2
