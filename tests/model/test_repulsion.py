"""The screened repulsion of nuclei: against the published formula, finite differences, and in all that uses a model."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, make_supercell, molecule
from ase.data import atomic_numbers, covalent_radii

from ramify.batches.batch import Batch, BatchPart
from ramify.batches.padding import Padding
from ramify.errors import RamifyError
from ramify.model import compiled
from ramify.model.build import LabelSpread, build_parts
from ramify.model.compiled import CompiledModel
from ramify.model.multibranch import MultiBranch
from ramify.neighbors.edges import find_edges
from ramify.recipe import ModelOptions, parse_recipe
from ramify.structures import Structures

CUTOFF = 5.0
ENCODER = {"kind": "schnet", "layers": 1, "width": 8, "radial": 4, "cutoff": CUTOFF}
HEADS = {"energy_head": {"layers": 1, "width": 8}, "force_head": {"kind": "conservative"}}


def zbl(one: int, other: int, r: float) -> float:
    """eV; as printed by Ziegler, Biersack and Littmark, with e²/(4πε0) and a0 of CODATA 2018 in eV Å and Å."""
    a = 0.8854 * 0.529177210903 / (one**0.23 + other**0.23)
    x = r / a
    phi = 0.1818 * np.exp(-3.2 * x) + 0.5099 * np.exp(-0.9423 * x)
    phi += 0.2802 * np.exp(-0.4029 * x) + 0.02817 * np.exp(-0.2016 * x)
    return float(14.3996454784 * one * other / r * phi)


def model_of(repulsion: str = "zbl", limit: int | None = None) -> MultiBranch:
    """New heads predict zero, so that the repulsion is the whole energy; in float64."""
    options = ModelOptions.model_validate(
        {"encoder": ENCODER | {"max_neighbors": limit}, "repulsion": repulsion} | HEADS
    )
    return build_parts(options, {"b": [LabelSpread(0.7, 1.3, 1)]}).double().eval()


def batch_of(images: list[Atoms], limit: int | None = None) -> Batch:
    structures = Structures.from_ase(images)
    edges = find_edges(structures, CUTOFF, limit)
    return Batch.make([BatchPart("d", "b", structures, edges, np.zeros(119))], torch.float64)


def energy(model: MultiBranch, atoms: Atoms, limit: int | None = None) -> float:
    with torch.no_grad():
        return float(model(batch_of([atoms], limit)).energy[0]) * len(atoms)


def rattled() -> list[Atoms]:
    """A compressed molecule and compressed crystals, one of them with a skewed cell."""
    rng = np.random.default_rng(0)
    images = [molecule("CH3CH2OH"), bulk("Cu", cubic=True), bulk("NaCl", "rocksalt", a=5.6)]
    for atoms, factor in zip(images, (0.75, 0.7, 0.55), strict=True):
        atoms.set_cell(factor * atoms.cell.array, scale_atoms=True)
        if not atoms.pbc.any():
            atoms.positions *= factor
        atoms.rattle(0.05, rng=rng)
    return images


@pytest.mark.parametrize(("pair", "r"), [("HH", 0.1), ("OH", 0.3), ("SiSi", 0.2), ("AuC", 0.5), ("UU", 0.05)])
def test_pairs_follow_the_published_formula(pair: str, r: float) -> None:
    atoms = Atoms(pair, positions=[[0, 0, 0], [0, 0, r]])
    one, other = atoms.numbers
    u = r / (covalent_radii[one] + covalent_radii[other])
    expected = zbl(one, other, r) * (1 - 28 * u**6 + 48 * u**7 - 21 * u**8)
    assert energy(model_of(), atoms) == pytest.approx(expected, rel=3e-4)  # the constants were printed to 4 digits


def test_bonds_are_hardly_stretched_and_the_cut_is_smooth() -> None:
    """Zero from the sum of the covalent radii on, with zero slope and curvature; below 0.5 eV in a double bond."""
    model, carbon = model_of(), atomic_numbers["C"]
    reach = 2 * covalent_radii[carbon]

    def at(r: float) -> float:
        return energy(model, Atoms("C2", positions=[[0, 0, 0], [0, 0, r]]))

    assert at(reach) == at(reach + 0.3) == 0.0
    assert 0 < at(1.34) < 0.5
    assert 0 < at(reach - 1e-3) < 1e-6  # the third power of the distance


@pytest.mark.parametrize("limit", [None, 14])
def test_forces_and_stress_are_derivatives(limit: int | None) -> None:
    """Also where `max_neighbors` ends a neighbourhood inside the covalent radii."""
    model, step = model_of(limit=limit), 1e-5
    for atoms in rattled():
        found = model(batch_of([atoms], limit), stress=bool(atoms.pbc.any()))
        assert found.forces.abs().max() > 1.0
        for atom, axis in ((0, 0), (1, 2)):
            ends = []
            for sign in (1, -1):
                moved = atoms.copy()
                moved.positions[atom, axis] += sign * step
                ends.append(energy(model, moved, limit))
            slope = -(ends[0] - ends[1]) / (2 * step)
            assert float(found.forces[atom, axis]) == pytest.approx(slope, rel=1e-6, abs=1e-6)
        if found.stress is None:
            continue
        for a, b in ((0, 0), (1, 2)):
            ends = []
            for sign in (1, -1):
                strain = np.eye(3)
                strain[a, b] += sign * step / 2
                strain[b, a] += sign * step / 2
                strained = atoms.copy()
                strained.set_cell(atoms.cell.array @ strain, scale_atoms=True)
                ends.append(energy(model, strained, limit))
            slope = (ends[0] - ends[1]) / (2 * step) / atoms.get_volume()
            assert float(found.stress[0, a, b]) == pytest.approx(slope, rel=1e-6, abs=1e-6)


def test_periodic_images_repel() -> None:
    model, atoms = model_of(), rattled()[2]
    large = make_supercell(atoms, [[2, 1, 0], [0, 2, 0], [0, 0, 1]])
    assert energy(model, large) == pytest.approx(4 * energy(model, atoms), rel=1e-12)


def test_crowded_atoms_are_pushed_apart() -> None:
    """Whatever the weights of the network: at 0.4 Å it cannot hold two atoms together."""
    model = model_of()
    with torch.no_grad():
        for parameter in model.branches.parameters():
            parameter.normal_()
    atoms = Atoms("CO", positions=[[0, 0, 0], [0, 0, 0.4]])
    forces = model(batch_of([atoms])).forces
    assert forces[1, 2] > 100
    assert forces[0, 2] == pytest.approx(-float(forces[1, 2]))


def test_nothing_is_trained_or_stored() -> None:
    plain, with_repulsion = model_of("none"), model_of()
    assert plain.state_dict().keys() == with_repulsion.state_dict().keys()
    assert [n for n, _ in plain.named_parameters()] == [n for n, _ in with_repulsion.named_parameters()]


def test_a_compiled_step_includes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    model = model_of().train()
    batch = batch_of(rattled())
    found, expected = CompiledModel(model, "default")(Padding(("b",))(batch), stress=True), model(batch, stress=True)
    np.testing.assert_allclose(found.energy.detach()[: len(batch.n_atoms)], expected.energy.detach(), rtol=1e-12)
    n_atoms = len(batch.numbers)
    np.testing.assert_allclose(found.forces.detach()[:n_atoms], expected.forces.detach(), rtol=1e-9, atol=1e-10)


def test_direct_forces_are_refused() -> None:
    content = {
        "datasets": {"d": {"format": "extxyz", "path": "d.xyz"}},
        "model": {"repulsion": "zbl", "force_head": {"kind": "direct"}},
    }
    with pytest.raises(RamifyError, match=r"model\.repulsion: zbl .* found model\.force_head\.kind: direct; accepted"):
        parse_recipe(content, "own.yaml")
