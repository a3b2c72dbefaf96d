"""Rules for labels in every format, and the output of `prepare` about them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from ramify.errors import RamifyError
from ramify.prepare.prepare import prepare_dataset
from ramify.sources.base import DatasetOptions
from ramify.sources.formats import formats
from ramify.sources.label_rules import apply_label_rules
from ramify.sources.quarantine import Quarantine
from ramify.store.manifest import Manifest
from ramify.structures import Structures

FORMULAS = ("H2O", "CH4", "NH3", "C2H6", "C2H4", "CH4O", "CH2O", "CHN", "CO2", "N2", "C2H2", "N2H4")


def images(count: int = 40) -> list[Atoms]:
    """Displaced structures bound to their places by springs, every second one in a periodic cell."""
    rng, made = np.random.default_rng(0), []
    for i in range(count):
        atoms = Atoms(FORMULAS[i % len(FORMULAS)])
        moved = rng.normal(0, 0.05, (len(atoms), 3))
        atoms.positions = np.arange(len(atoms))[:, None] * [1.4, 0.3, 0.2] + moved
        if i % 2:
            atoms.set_cell([20, 21, 22])
            atoms.pbc = True
        energy = -100.0 * len(atoms) + 5 * float((moved**2).sum())
        stress = rng.normal(0, 1e-3, 6) if i % 2 else None
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=-10 * moved, stress=stress)
        made.append(atoms)
    return made


def changed(atoms: Atoms, **labels: Any) -> None:
    atoms.calc = SinglePointCalculator(atoms, **(dict(atoms.calc.results) | labels))


def prepare(folder: Path, made: list[Atoms], **keys: Any) -> Manifest:
    write(folder / "a.xyz", made, format="extxyz")
    options = formats()["extxyz"].options.model_validate({"format": "extxyz", "path": "a.xyz", **keys})
    return prepare_dataset("d", options, folder / "stores", base=folder)


def test_zeros_are_counted_or_left_out(tmp_path: Path) -> None:
    made = images()
    for i in (1, 3, 5):
        changed(made[i], stress=np.zeros(6))
    for i in (0, 2):
        changed(made[i], forces=np.zeros((len(made[i]), 3)))
    manifest = prepare(tmp_path, made)
    assert manifest.labels.model_dump() == {"energy": 40, "forces": 40, "stress": 20}
    assert manifest.dropped == {}
    assert manifest.remarks == {
        "forces of exact zeros, kept as a label: zeros_are_absent: [forces] leaves it out": 2,
        "stress of exact zeros, kept as a label: zeros_are_absent: [stress] leaves it out": 3,
    }
    lines = (tmp_path / "stores/d/quarantine.jsonl").read_text().splitlines()
    assert {(json.loads(line)["record"], json.loads(line)["kept"]) for line in lines} == {
        ("a.xyz[0,2]", True),
        ("a.xyz[1,3,5]", True),
    }
    assert any(
        line.startswith("3 structures: stress") and "zeros_are_absent: [stress]" in line for line in manifest.warnings()
    )
    (tmp_path / "again").mkdir()
    manifest = prepare(tmp_path / "again", made, zeros_are_absent=["stress", "forces"])
    assert manifest.labels.model_dump() == {"energy": 40, "forces": 38, "stress": 17}
    assert manifest.remarks == {
        "forces of exact zeros, left out (zeros_are_absent)": 2,
        "stress of exact zeros, left out (zeros_are_absent)": 3,
    }


def test_stress_without_a_cell_is_left_out(tmp_path: Path) -> None:
    made = images()
    for i in (0, 2):  # without a cell
        changed(made[i], stress=np.full(6, 1e-3))
    made[1].pbc = False  # with one, but nothing is periodic
    manifest = prepare(tmp_path, made)
    assert manifest.labels.stress == 19
    assert manifest.remarks == {"stress without a cell, left out": 3}


@pytest.mark.parametrize(
    ("n_atoms", "pbc", "energy", "forces", "stress", "doubtful"),
    [
        (1, False, -1.0, 0.0, None, set()),  # an isolated atom
        (1, False, 0.0, 0.0, None, set()),  # ... relative to itself
        (1, True, -1.0, 0.0, 1e-3, set()),  # a crystal of one atom
        (2, True, -1.0, 0.0, 1e-3, set()),  # forces that vanish by symmetry
        (2, True, -1.0, 0.0, None, set()),  # the same without stresses
        (2, True, -1.0, 0.0, 0.0, {"forces", "stress"}),
        (2, True, -1.0, 0.1, 0.0, {"stress"}),
        (2, False, -1.0, 0.0, None, {"forces"}),
        (2, False, 0.0, 0.1, None, {"energy"}),
        (2, False, -1.0, 0.1, None, set()),
    ],
)
def test_which_zeros_are_doubtful(
    n_atoms: int, pbc: bool, energy: float, forces: float, stress: float | None, doubtful: set[str]
) -> None:
    chunk = Structures.make(
        n_atoms=[n_atoms],
        numbers=[6] * n_atoms,
        positions=np.arange(3 * n_atoms).reshape(-1, 3),
        cell=[np.eye(3) * 9 * pbc],
        pbc=[[pbc] * 3],
        energy=[energy],
        forces=np.full((n_atoms, 3), forces),
        stress=None if stress is None else np.full((1, 3, 3), stress),
    )
    quarantine = Quarantine()
    kept = apply_label_rules(chunk, DatasetOptions(format="x", path="x"), quarantine)
    assert {reason.split()[0] for reason in quarantine.remarks} == doubtful
    assert kept.energy[0] == energy
    named = DatasetOptions(format="x", path="x", zeros_are_absent=["energy", "forces", "stress"])
    without = apply_label_rules(chunk, named, Quarantine())
    for label in ("energy", "forces", "stress"):
        zero = getattr(chunk, label).size and (getattr(chunk, label) == 0).all()
        atom_alone = n_atoms == 1 and label != "stress"
        assert np.isnan(getattr(without, label)).all() == bool(
            (zero and not atom_alone) or np.isnan(getattr(chunk, label)).all()
        )


def test_when_nothing_is_left_the_first_reason_is_said(tmp_path: Path) -> None:
    made = images(3)
    for atoms in made:
        changed(atoms, energy=np.nan)
    with pytest.raises(RamifyError, match=r"left \(3 non-finite label \(first: a\.xyz\[0\]: energy\)\)"):
        prepare(tmp_path, made)


def test_a_stress_in_another_order_is_left_out() -> None:
    """Nine numbers that begin xx yy zz are not symmetric as three rows."""
    ordered = np.array([[3.0, 0.2, 0.3], [0.2, 4.0, 0.1], [0.3, 0.1, 5.0]]) * 1e-2
    voigt_first = np.array([3.0, 4.0, 5.0, 0.1, 0.3, 0.2, 0.1, 0.3, 0.2]).reshape(3, 3) * 1e-2
    rounded = ordered + np.array([[0, 1e-5, 0], [0, 0, 0], [0, 0, 0]])
    made = Structures.make(
        n_atoms=[1] * 3,
        numbers=[29] * 3,
        positions=np.zeros((3, 3)),
        cell=np.tile(4 * np.eye(3), (3, 1, 1)),
        pbc=np.ones((3, 3), bool),
        energy=[-1.0] * 3,
        stress=np.stack([ordered, voigt_first, rounded]),
    )
    quarantine = Quarantine()
    found = apply_label_rules(made, DatasetOptions(format="extxyz", path="a"), quarantine)
    assert np.isnan(found.stress).all(axis=(1, 2)).tolist() == [False, True, False]
    np.testing.assert_array_equal(found.stress[[0, 2]], made.stress[[0, 2]])
    ((reason, count),) = quarantine.remarks.items()
    assert "not symmetric" in reason
    assert count == 1
