"""Reference energies from isolated atoms, and the remark where the data do not determine fitted ones."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.io import write
from ase.units import Hartree

from ramify.errors import RamifyError
from ramify.model.branch import Branch
from ramify.model.build import LabelSpread, build_parts
from ramify.prepare.prepare import prepare_dataset
from ramify.recipe import ModelOptions, parse_recipe
from ramify.store.manifest import Manifest
from ramify.store.store import Store

ATOMS = {"H": -13.6, "C": -1029.5, "O": -2041.8}
"""eV."""


def write_data(folder: Path, unit: float = 1.0) -> None:
    """40 frames of one molecule, with the energies of isolated atoms and a binding energy of 20 to 21 eV."""
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(40):
        atoms = molecule("CH3OH")
        atoms.rattle(0.05, rng=rng)
        binding = 20 + float(rng.random())
        atoms.info["energy"] = (sum(ATOMS[s] for s in atoms.symbols) - binding) / unit
        frames.append(atoms)
    write(folder / "data.xyz", frames, format="extxyz")
    singles = [Atoms(symbol, info={"energy": energy / unit}) for symbol, energy in ATOMS.items()]
    write(folder / "atoms.xyz", [*singles, frames[0]], format="extxyz")


def prepare(folder: Path, **keys: Any) -> Manifest:
    entry = {"format": "extxyz", "path": "data.xyz", "split": {"by": "structure"}} | keys
    recipe = parse_recipe({"datasets": {"d": entry}}, "own.yaml")
    return prepare_dataset("d", recipe.datasets["d"], folder / "stores", base=folder)


@pytest.mark.parametrize("unit", ["eV", "Hartree"])
def test_the_energies_of_a_file_are_the_references(tmp_path: Path, unit: str) -> None:
    """In the units of the dataset; what remains is minus the binding energy per atom."""
    write_data(tmp_path, {"eV": 1.0, "Hartree": Hartree}[unit])
    found = prepare(tmp_path, references={"file": "atoms.xyz"}, units={"energy": unit}).references
    assert found.energies == pytest.approx(ATOMS, abs=1e-6)
    assert found.rank == 3
    assert 20 / 6 < found.residual_mae < 21 / 6
    store = Store.open(tmp_path / "stores/d")
    assert store.references[8] == pytest.approx(ATOMS["O"], abs=1e-6)
    mean = store.manifest.statistics.energy_mean
    assert -21 / 6 < mean < -20 / 6
    (head,) = build_parts(ModelOptions(), {"d": [LabelSpread.of_manifest(store.manifest)]}).branches.values()
    assert isinstance(head, Branch)
    found_mean = head.atom_energies(torch.zeros(1, 128)).detach()  # a new head predicts the mean binding energy
    assert float(found_mean) == pytest.approx(mean, rel=1e-6)
    assert "atoms.xyz" in [Path(source.path).name for source in store.manifest.sources]


def test_values_are_the_references(tmp_path: Path) -> None:
    write_data(tmp_path)
    found = prepare(tmp_path, references=ATOMS | {"N": -1485.3})
    assert found.references.energies == ATOMS
    assert not [f for f in found.findings if "references" in f.fix]


def test_one_composition_does_not_determine_references(tmp_path: Path) -> None:
    write_data(tmp_path)
    (finding,) = [f for f in prepare(tmp_path).findings if "references" in f.fix]
    assert "1 composition does not determine the reference energies of 3 elements" in finding.text


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    write_data(tmp_path)
    prepare(tmp_path, references={"file": "atoms.xyz"})
    write(tmp_path / "atoms.xyz", [Atoms(s, info={"energy": e - 1}) for s, e in ATOMS.items()], format="extxyz")
    with pytest.raises(RamifyError, match=r"prepared from other files .*atoms\.xyz"):
        prepare(tmp_path, references={"file": "atoms.xyz"})


@pytest.mark.parametrize(
    ("references", "expected"),
    [
        ({"H": -13.6, "O": -2041.8}, r"datasets\.d\.references: no energy of C; stated: H, O"),
        ({"Xx": 1.0}, r"references: 'Xx' is not an element symbol"),
        ({"file": "missing.xyz"}, r"references\.file: .*missing\.xyz does not exist"),
    ],
)
def test_wrong_references(tmp_path: Path, references: dict[str, Any], expected: str) -> None:
    write_data(tmp_path)
    with pytest.raises(RamifyError, match=expected):
        prepare(tmp_path, references=references)


def test_two_energies_of_one_element(tmp_path: Path) -> None:
    write_data(tmp_path)
    write(tmp_path / "atoms.xyz", [Atoms("H", info={"energy": e}) for e in (-13.6, -13.5)], format="extxyz")
    with pytest.raises(RamifyError, match=r"two energies of H, -13\.6.* and -13\.5"):
        prepare(tmp_path, references={"file": "atoms.xyz"})
