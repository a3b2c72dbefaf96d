"""Mistakes of units and totals are found, each with the key that mends it; correct labels are left alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from ramify.elements import all_electron_energy
from ramify.errors import RamifyError
from ramify.minicorpora import FILES
from ramify.prepare.prepare import prepare_dataset
from ramify.sources.formats import formats
from ramify.store.manifest import Manifest

ATOMS = {"H": -13.61, "C": -1029.49, "N": -1484.98, "O": -2041.98}
"""eV, isolated atoms at wB97X/6-31G(d)."""
NAMES = ("H2O", "CH4", "NH3", "C2H6", "C2H4", "CH3OH", "H2CO", "HCN", "CO2", "C2H2", "N2H4", "C6H6")


def molecules(scale: float = 1.0, forces: float | None = None, power: int = 0, total: bool = True) -> list[Atoms]:
    """Vibrating molecules bound by springs, on top of atomic energies; energies times `scale` and N^`power`."""
    rng = np.random.default_rng(0)
    images = []
    for name in NAMES:
        for _ in range(6):
            atoms = molecule(name)
            moved = rng.normal(size=atoms.positions.shape) * 0.03
            moved -= moved.mean(axis=0)
            atoms.positions += moved
            bound = sum(ATOMS[s] for s in atoms.symbols) - 4.0 * (len(atoms) - 1) if total else -4.0 * len(atoms)
            energy = (bound + 15.0 * float((moved**2).sum())) * scale * float(len(atoms)) ** power
            found = -30.0 * moved * (scale if forces is None else forces)
            atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=found)
            atoms.info["group"] = name
            images.append(atoms)
    return images


def crystals(count: int = 60, power: int = 0) -> list[Atoms]:
    """Copper of several sizes on the scale of a plane-wave code: about -4 eV/atom."""
    images = []
    for k in range(count):
        atoms = bulk("Cu", cubic=True) * ((1, 1, 1), (2, 1, 1), (2, 2, 1), (2, 2, 2))[k % 4]
        atoms.rattle(0.08, seed=k)
        atoms.calc = EMT()
        energy, forces, stress = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
        energy = (energy - 4.0 * len(atoms)) * float(len(atoms)) ** power
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces, stress=stress)
        atoms.info["group"] = "copper"
        images.append(atoms)
    return images


def prepare(folder: Path, images: list[Atoms], **keys: Any) -> Manifest:
    write(folder / "all.xyz", images, format="extxyz")
    chosen = {"format": "extxyz", "path": "all.xyz", "group_key": "group", "split": {"by": "block"}, **keys}
    chosen.setdefault("gates", {"energy_outlier": 1e9})
    options = formats()["extxyz"].options.model_validate(chosen)
    return prepare_dataset("d", options, folder / "stores", base=folder)


def implausible(manifest: Manifest) -> list[str]:
    """Findings but that of too few compositions for reference energies."""
    return [finding.text for finding in manifest.findings if not finding.fix.startswith("references")]


def said(manifest: Manifest) -> dict[str, str]:
    return {finding.fix: finding.text for finding in manifest.findings}


def test_energies_of_atoms_from_their_charge() -> None:
    """Against the energies of isolated atoms by wB97X and PBE0 of the embedded datasets, and Hartree-Fock
    (Clementi and Roetti, doi:10.1016/S0092-640X(74)80016-1): neon -128.547, argon -526.818 Hartree."""
    found = all_electron_energy()
    for number, expected in ((6, -1029.49), (7, -1484.98), (8, -2041.98), (16, -10825.7), (17, -12512.8)):
        assert found[number] == pytest.approx(expected, rel=0.01)
    for number, expected in ((10, -128.547), (18, -526.818)):
        assert found[number] / units.Hartree == pytest.approx(expected, rel=0.01)
    assert found[1] == pytest.approx(-13.6, rel=0.09)


def test_what_is_right_is_left_alone(tmp_path: Path) -> None:
    for name, images in {
        "all electrons": molecules(),
        "relative to atoms": molecules(total=False),
        "plane waves": crystals(),
    }.items():
        (tmp_path / name).mkdir()
        assert not implausible(prepare(tmp_path / name, images)), name


@pytest.mark.parametrize(("name", "format_name"), [("ani1x_mini", "ani1x"), ("mptrj_mini", "mptrj")])
def test_embedded_corpora_are_left_alone(tmp_path: Path, name: str, format_name: str) -> None:
    options = formats()[format_name].options.model_validate({"format": format_name, "path": str(FILES[name])})
    assert not implausible(prepare_dataset("d", options, tmp_path, base=Path()))


@pytest.mark.parametrize("unit", ["Hartree", "Rydberg"])
def test_units_smaller_than_said(tmp_path: Path, unit: str) -> None:
    value = {"Hartree": units.Hartree, "Rydberg": units.Rydberg}[unit]
    assert f"units: {{energy: {unit}}}" in said(prepare(tmp_path, molecules(1 / value)))


@pytest.mark.parametrize("unit", ["kcal/mol", "kJ/mol"])
def test_units_larger_than_said_cannot_be(tmp_path: Path, unit: str) -> None:
    value = {"kcal/mol": units.kcal / units.mol, "kJ/mol": units.kJ / units.mol}[unit]
    with pytest.raises(RamifyError, match=rf"fix: units: \{{energy: {unit}\}}"):
        prepare(tmp_path, molecules(1 / value), gates={"max_force": 1e6})
    assert not list((tmp_path / "stores").glob("*"))


def test_energies_per_atom_taken_for_totals(tmp_path: Path) -> None:
    for name, images in {"molecules": molecules(power=-1, forces=1.0), "crystals": crystals(power=-1)}.items():
        (tmp_path / name).mkdir()
        found = said(prepare(tmp_path / name, images, forces_key=None))  # forces would tell by the slope
        assert "energy_is_per_atom: true" in found, name


def test_totals_taken_for_energies_per_atom(tmp_path: Path) -> None:
    with pytest.raises(RamifyError, match="times the total energies of all atoms"):
        prepare(tmp_path, molecules(), energy_is_per_atom=True, forces_key=None)
    (tmp_path / "crystals").mkdir()
    found = said(prepare(tmp_path / "crystals", crystals(), energy_is_per_atom=True, forces_key=None))
    assert "energy_is_per_atom: false" in found


def test_placeholders(tmp_path: Path) -> None:
    images = molecules()
    for atoms in images[:5]:
        results = dict(atoms.calc.results)
        atoms.calc = SinglePointCalculator(atoms, energy=results["energy"], forces=np.zeros((len(atoms), 3)))
    (found,) = prepare(tmp_path, images).findings
    assert "all forces of 5 of 72 structures are exactly 0" in found.text
    assert "zeros_are_absent: [forces]" in found.fix
    (tmp_path / "stress").mkdir()
    images = crystals()
    for atoms in images[:7]:
        atoms.calc = SinglePointCalculator(atoms, **(dict(atoms.calc.results) | {"stress": np.zeros(6)}))
    found = prepare(tmp_path / "stress", images).findings
    assert [finding.text for finding in found] == ["7 of 60 stresses are exactly 0: they may not have been computed"]
    assert "zeros_are_absent: [stress]" in found[0].fix  # the key that leaves them out, for every format


@pytest.mark.parametrize(("unit", "coarse"), [("eV", True), ("Hartree", True), ("eV", False)])
def test_energies_in_single_precision(tmp_path: Path, unit: str, coarse: bool) -> None:
    """At 45,000 eV/atom the spacing of float32 is some meV/atom; relative to isolated atoms it does not matter."""
    images, value = crystals(24), units.Hartree if unit == "Hartree" else 1.0
    for atoms in images:
        energy = atoms.get_potential_energy() + coarse * float(all_electron_energy()[29]) * len(atoms)
        atoms.calc = SinglePointCalculator(atoms, energy=float(np.float32(energy / value)))
    found = implausible(prepare(tmp_path, images, units={"energy": unit}, forces_key=None, stress_key=None))
    assert ["single precision" in text for text in found] == ([True] if coarse else [])


def test_forces_that_do_not_add_up(tmp_path: Path) -> None:
    images = molecules()
    for atoms in images:
        forces = atoms.get_forces() + np.array([0.5, 0.0, 0.0])
        atoms.calc = SinglePointCalculator(atoms, energy=atoms.get_potential_energy(), forces=forces)
    assert any("do not add up to zero" in finding.text for finding in prepare(tmp_path, images).findings)


def test_lengths(tmp_path: Path) -> None:
    images = crystals()
    for atoms in images:
        labels = dict(atoms.calc.results)
        atoms.set_cell(atoms.cell / units.Bohr, scale_atoms=True)
        atoms.calc = SinglePointCalculator(atoms, **(labels | {"forces": labels["forces"] * units.Bohr}))
    assert any("length: bohr" in finding.fix for finding in prepare(tmp_path, images).findings)


def test_findings_are_kept_in_the_manifest(tmp_path: Path) -> None:
    manifest = prepare(tmp_path, molecules(1 / units.Hartree))
    content = json.loads((tmp_path / "stores/d/manifest.json").read_text())
    assert [Manifest.model_validate(content).findings] == [manifest.findings]
    assert content["findings"][0].keys() == {"text", "fix"}
