"""Energies far from those of similar structures: wrong labels are found; compressed, torn or rare structures stay."""

import json
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from hypothesis import given, settings
from hypothesis import strategies as st

from ramify.prepare.checks.gates import OUTLIER
from ramify.prepare.checks.outliers import NEIGHBORS, _from_neighbors
from ramify.prepare.prepare import prepare_dataset
from ramify.sources.formats import formats
from ramify.store.manifest import Manifest

COMPRESSED = np.linspace(0.62, 1.2, 40)
"""Lengths of cells over that at rest: at 0.62, EMT copper lies 60 eV/atom above its minimum."""


def labelled(atoms: Atoms, shift: float = 0.0, group: str = "a") -> Atoms:
    """With energy (plus `shift` eV/atom) and forces of ASE's EMT."""
    atoms.calc = EMT()
    energy, forces = atoms.get_potential_energy() + shift * len(atoms), atoms.get_forces()
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    atoms.info["group"] = group
    return atoms


def rattled(atoms: Atoms, seed: int, size: float = 0.08) -> Atoms:
    atoms = atoms.copy()
    atoms.rattle(size, seed=seed)
    return atoms


def equation_of_state(symbol: str) -> list[Atoms]:
    """Cells of one atom, without any force, in the same formula as everything else of this element."""
    images = []
    for scale in COMPRESSED:
        cell = bulk(symbol)
        cell.set_cell(cell.cell * scale, scale_atoms=True)
        images.append(labelled(cell, group="equation of state"))
    return images


def prepare(folder: Path, images: list[Atoms]) -> Manifest:
    write(folder / "all.xyz", images, format="extxyz")
    options = formats()["extxyz"].options.model_validate(
        {
            "format": "extxyz",
            "path": "all.xyz",
            "group_key": "group",
            "split": {"by": "structure"},
            "gates": {"max_force": 1e4},
        }
    )
    return prepare_dataset("d", options, folder / "stores", base=folder)


def outliers(folder: Path) -> list[str]:
    path = folder / "stores/d/quarantine.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line["record"] for line in lines if line["reason"] == OUTLIER]


def crystal_data() -> list[Atoms]:
    """Typical data of a fitted potential: an equation of state, rattled cells, surfaces, an isolated atom."""
    images = equation_of_state("Cu")
    cell = bulk("Cu", cubic=True)
    images += [labelled(rattled(cell, seed)) for seed in range(100)]
    slab = fcc111("Cu", (1, 1, 4), vacuum=6.0, periodic=True)
    images += [labelled(rattled(slab, seed), group="surface") for seed in range(12)]
    images.append(labelled(Atoms("Cu", cell=[20, 20, 20], pbc=True), group="atom"))
    return images


def test_compressed_cells_surfaces_and_atoms_stay(tmp_path: Path) -> None:
    images = crystal_data()
    energies = np.array([atoms.get_potential_energy() / len(atoms) for atoms in images])
    apart = np.abs(energies - np.median(energies))
    assert (apart > 60 * max(np.median(apart), 0.05)).sum() > 2  # by their composition alone these were outliers
    manifest = prepare(tmp_path, images)
    assert manifest.dropped == {}
    assert manifest.structures == len(images)


def test_molecules_in_compressed_cells_stay(tmp_path: Path) -> None:
    """Bonds keep their lengths and there are no forces: the volume alone tells the structures apart."""
    rng, images = np.random.default_rng(0), []
    for k, length in enumerate(rng.permutation(np.linspace(3.2, 7.2, 60))):
        bond = 1.1 + float(rng.normal(0, 0.01))
        atoms = Atoms("N2", [[0, 0, 0], [0, 0, bond]], cell=[length] * 3, pbc=True)
        atoms.calc = SinglePointCalculator(atoms, energy=80.0 * float(np.exp((3.2 - length) / 0.5)) - 20.0)
        atoms.info["group"] = f"g{k}"
        images.append(atoms)
    manifest = prepare(tmp_path, images)
    assert manifest.dropped == {}


@pytest.mark.parametrize("shift", [1.36, -1.36])
@pytest.mark.parametrize("row", [60, 80, 100])
def test_a_wrong_energy_among_them_is_found(tmp_path: Path, shift: float, row: int) -> None:
    images = crystal_data()
    labelled(images[row], shift, group="wrong")
    manifest = prepare(tmp_path, images)
    assert manifest.dropped == {OUTLIER: 1}
    assert outliers(tmp_path) == [f"all.xyz[{row}]"]
    assert "1 in wrong" in manifest.findings[0].text
    assert "energy_outlier" in manifest.findings[0].fix


def test_formulas_with_few_structures_are_judged_by_what_references_leave(tmp_path: Path) -> None:
    """Five structures of each of eight alloys: too few of each formula, and total energies cannot be compared."""
    rng = np.random.default_rng(0)
    images = []
    for count in range(1, 9):
        for seed in range(5):
            cell = bulk("Cu", cubic=True) * (2, 2, 1)
            cell.numbers[rng.permutation(16)[:count]] = 47 + 32 * (seed % 2)  # silver or gold
            cell.set_cell(cell.cell * 1.05, scale_atoms=True)
            images.append(labelled(rattled(cell, seed)))
    assert prepare(tmp_path, images).dropped == {}
    for atoms in images:  # energies on another scale: 1,000 eV for each copper, 2,000 for all else
        on_scale = atoms.get_potential_energy() - (1000.0 * (1 + (atoms.numbers != 29))).sum()
        atoms.calc = SinglePointCalculator(atoms, energy=on_scale, forces=atoms.get_forces())
    wrong = images[17]
    energy = wrong.get_potential_energy() + 4.0 * len(wrong)
    wrong.calc = SinglePointCalculator(wrong, energy=energy, forces=wrong.get_forces())
    (tmp_path / "shifted").mkdir()
    prepare(tmp_path / "shifted", images)
    assert outliers(tmp_path / "shifted") == ["all.xyz[17]"]


def bond(length: float, shift: float = 0.0) -> Atoms:
    """N2 by a Morse curve of 10 eV; `shift` in eV/atom."""
    atoms = Atoms("N2", positions=[[0, 0, 0], [length, 0, 0]])
    rest = 1 - np.exp(-2.7 * (length - 1.1))
    slope = 20 * rest * 2.7 * (1 - rest)
    forces = np.array([[slope, 0, 0], [-slope, 0, 0]])
    atoms.calc = SinglePointCalculator(atoms, energy=10 * rest**2 + 2 * shift, forces=forces)
    atoms.info["group"] = "a"
    return atoms


def test_molecules_are_judged_without_a_volume(tmp_path: Path) -> None:
    images = [bond(0.7 + 0.03 * k) for k in range(60)] + [bond(1.0005 + 0.002 * k) for k in range(100)]
    energies = [atoms.get_potential_energy() for atoms in images]
    assert max(energies) - min(energies) > 10  # a torn and a squeezed molecule
    assert prepare(tmp_path, images).dropped == {}
    images[100] = bond(1.0805, shift=2.0)
    (tmp_path / "wrong").mkdir()
    prepare(tmp_path / "wrong", images)
    assert outliers(tmp_path / "wrong") == ["all.xyz[100]"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-50, 50), min_size=2, max_size=70))
def test_distances_by_hand(values: list[float]) -> None:
    energy = np.array(values)
    distance, unit = _from_neighbors(energy, 6)
    for k, here in enumerate(values):
        sides = [energy[max(0, k - NEIGHBORS) : k], energy[k + 1 : k + 1 + NEIGHBORS]]
        medians = [float(np.median(side)) for side in sides if len(side)]
        low, high = min(medians), max(medians)
        if len(medians) == 1:
            atom_cutoff = 3 * float(np.ptp(np.concatenate(sides)))
            low, high = low - atom_cutoff, high + atom_cutoff
        spread = np.concatenate([np.abs(side - np.median(side)) for side in sides if len(side)])
        assert distance[k] == pytest.approx(max(low - here, here - high, 0.0))
        assert unit[k] == pytest.approx(max(np.median(spread) / 6, 0.02))
