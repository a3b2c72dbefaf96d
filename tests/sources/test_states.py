"""Charge and spin: which values are read, how they are converted, and which are refused."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from ase.io import write
from ase.io.trajectory import Trajectory
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ramify.errors import RamifyError
from ramify.sources.formats import formats
from ramify.sources.look import look
from ramify.sources.quarantine import Quarantine
from ramify.sources.states import apply_states, impossible_states
from ramify.structures import Structures
from tests.sources.general.test_deepmd import system
from tests.sources.molecules.test_hdf5_more import write_spice
from tests.sources.molecules.test_qcml import molecules
from tests.sources.molecules.test_qcml import write as write_qcml


def frames(*states: tuple[Any, Any], spin: str = "spin") -> list[Atoms]:
    """Water with a charge and a spin in `info`; None for an absent one."""
    images = []
    for index, (charge, value) in enumerate(states):
        atoms = molecule("H2O")
        atoms.info = {"charge": charge, spin: value}
        atoms.info = {name: found for name, found in atoms.info.items() if found is not None}
        atoms.calc = SinglePointCalculator(atoms, energy=-1.0 - index, forces=np.zeros((3, 3)))
        images.append(atoms)
    return images


def as_file(folder: Path, kind: str, images: list[Atoms]) -> Path:
    if kind == "extxyz":
        write(folder / "a.xyz", images, format="extxyz")
        return folder / "a.xyz"
    with connect(folder / f"a.{kind}") as database:
        for atoms in images:
            database.write(atoms, data=dict(atoms.info))
    return folder / f"a.{kind}"


@pytest.mark.parametrize("kind", ["extxyz", "db", "aselmdb"])
def test_named_values(tmp_path: Path, read: Any, kind: str) -> None:
    path = as_file(tmp_path, kind, frames((0, 1), (1, 2), (None, 3), (-1, None)))
    name = "extxyz" if kind == "extxyz" else "ase_db"
    found, _ = read(name, path, charge_key="charge", spin_key="spin")
    np.testing.assert_array_equal(found.charge, [0, 1, np.nan, -1])
    np.testing.assert_array_equal(found.spin, [1, 2, 3, np.nan])
    found, quarantine = read(name, path)
    assert np.isnan([found.charge, found.spin]).all()  # never 0 and 1
    assert list(quarantine.remarks.values()) == [3]  # the ions and the triplet
    for key in ("charge_key", "spin_key"):
        with pytest.raises(RamifyError, match=rf"{path.name} has no 'chrge' \(`{key}`\).*it has .*charge.*spin"):
            read(name, path, **{key: "chrge"})


def test_trajectory(tmp_path: Path, read: Any) -> None:
    """ASE's trajectories keep the results of the calculator: the total magnetic moment is one."""
    with Trajectory(tmp_path / "a.traj", "w") as file:
        for total in (0.0, 1.998, -2.0, 1.4):
            atoms = molecule("H2O")
            atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=np.zeros((3, 3)), magmom=total)
            file.write(atoms)
    found, quarantine = read("ase_traj", tmp_path / "a.traj", spin_key="magmom")
    assert found.spin.tolist() == [1, 3, 3]
    assert quarantine.counts == {"spin is not a multiplicity": 1}  # 1.4 μB


def test_moments_of_atoms_are_added_up(tmp_path: Path, read: Any) -> None:
    images = frames((0, None), (0, None))
    for atoms, moments in zip(images, ([1.1, 0.45, 0.4], [1.0, -0.6, -0.4]), strict=True):
        atoms.set_array("magmoms", np.array(moments))
    write(tmp_path / "a.xyz", images, format="extxyz")
    found, _ = read("extxyz", tmp_path / "a.xyz", charge_key="charge", spin_key="magmoms")
    assert found.spin.tolist() == [3, 1]
    assert np.isnan(read("extxyz", tmp_path / "a.xyz", charge_key="charge")[0].spin).all()


@pytest.mark.parametrize(
    ("name", "stated", "convention"),
    [("spin", None, "multiplicity"), ("n_unpaired", None, "unpaired"), ("magmom", None, "moments"),
     ("nupdown", None, "unpaired"), ("spin_multiplicity", "unpaired", "unpaired")],
)  # fmt: skip
def test_the_options_state_the_convention(name: str, stated: str | None, convention: str) -> None:
    """The options of a store say what its file held, also where the recipe left it to the name."""
    options = formats()["extxyz"].options.model_validate(
        {"format": "extxyz", "path": "x", "spin_key": name} | ({} if stated is None else {"spin_is": stated})
    )
    assert options.model_dump()["spin_is"] == convention
    assert type(options).model_validate(options.model_dump()) == options


def test_unpaired_electrons(tmp_path: Path, read: Any) -> None:
    write(tmp_path / "a.xyz", frames((0, 0), (1, 1), (0, 2), spin="unpaired"), format="extxyz")
    found, _ = read("extxyz", tmp_path / "a.xyz", charge_key="charge", spin_key="unpaired")
    assert found.spin.tolist() == [1, 2, 3]


def kept(path: Path, **keys: Any) -> tuple[Structures, Quarantine]:
    """What is read and possible."""
    format_, quarantine = formats()["extxyz"], Quarantine()
    options = format_.options.model_validate({"format": "extxyz", "path": str(path), **keys})
    chunks = [apply_states(c, options, quarantine) for c in format_.read(path, options, quarantine)]
    return Structures.concatenate(chunks), quarantine


def test_impossible_states(tmp_path: Path) -> None:
    write(
        tmp_path / "a.xyz",
        frames((0, 1), (0.5, 1), (0, 0), (0, 2), (1, 1), (1, 2), (11, 2), ("+1", 2), (0, 1.5), (0.004, 3.0), (0, 13)),
        format="extxyz",
    )
    found, quarantine = kept(tmp_path / "a.xyz", charge_key="charge", spin_key="spin")
    assert found.row.tolist() == [0, 5, 7, 9]  # the text `+1` is a number in extended XYZ
    assert found.charge.tolist() == [0, 1, 1, 0]
    assert quarantine.counts == {
        "charge is not a whole number, or exceeds the nuclear charge": 2,
        "spin is not a multiplicity": 3,
        "charge and spin contradict the number of electrons": 2,
    }
    assert "spin_is: unpaired" in quarantine.first["spin is not a multiplicity"].detail


def test_the_recipe_states_what_the_file_does_not(tmp_path: Path) -> None:
    write(tmp_path / "a.xyz", frames((None, None), (1, 2)), format="extxyz")
    found, _ = kept(tmp_path / "a.xyz", charge=0, spin=1)
    assert found.row.tolist() == [0, 1]
    assert (found.charge.tolist(), found.spin.tolist()) == ([0, 0], [1, 1])
    found, _ = kept(tmp_path / "a.xyz", charge_key="charge", charge=0, spin_key="spin", spin=1)
    assert (found.charge.tolist(), found.spin.tolist()) == ([0, 1], [1, 2])
    with pytest.raises(ValidationError, match="spin"):
        kept(tmp_path / "a.xyz", spin=0)


@given(st.integers(-4, 10), st.integers(1, 8))
def test_parity(charge: int, spin: int) -> None:
    """An independent count: unpaired electrons and pairs make up all ten electrons of water, less the charge."""
    water = Structures.make(n_atoms=[3], numbers=[8, 1, 1], positions=np.zeros((3, 3)), charge=[charge], spin=[spin])
    electrons, unpaired = 10 - charge, spin - 1
    possible = any(unpaired + 2 * pairs == electrons for pairs in range(12))
    assert (not impossible_states(water)) == possible


def test_qcml(tmp_path: Path, read: Any) -> None:
    made = molecules()
    path = write_qcml(tmp_path / "q.tfrecord-00000-of-00001", made)
    found, quarantine = read("qcml", path, length="bohr", outliers="keep")
    assert found.charge.tolist() == [0, 0, -1, 0, 0, 0, 0, 0]
    assert found.spin.tolist() == [m["multiplicity"][0] for m in made]
    assert set(found.spin.tolist()) == {1, 2}
    assert not quarantine.remarks


def test_spice(tmp_path: Path, read: Any) -> None:
    """The charge is in the SMILES; the spin is nowhere."""
    write_spice(tmp_path / "a.hdf5")
    smiles = [b"[H:1][O:2][H:3]", b"[NH3+:1][CH2:2][C:3](=[O:4])[O-:5]", b"[Ca+2:1]", b"[O--:1].[Na+:2]"]
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        for group, text in zip(file.values(), smiles, strict=True):
            group["smiles"][...] = [text]
    found, _ = read("spice", tmp_path / "a.hdf5")
    assert found.charge.tolist() == [0] * 12 + [2] * 6 + [-1] * 6
    assert np.isnan(found.spin).all()


def test_npz(tmp_path: Path, read: Any) -> None:
    arrays = {
        "z": np.array([[8, 1, 1], [8, 1, 0], [1, 1, 0]]),
        "R": np.arange(27.0).reshape(3, 3, 3),
        "E": np.array([-1.0, -2.0, -3.0]),
        "F": np.zeros((3, 3, 3)),
        "Q": np.array([[0], [-1], [1]]),
        "S": np.array([0.0, 0.0, 1.0]),
    }
    np.savez(tmp_path / "a.npz", **arrays)
    keys = {"charge_key": "Q", "spin_key": "S", "spin_is": "unpaired", "units": {"energy": "eV"}}
    found, _ = read("npz", tmp_path / "a.npz", **keys)
    assert (found.charge.tolist(), found.spin.tolist()) == ([0, -1, 1], [1, 1, 2])
    np.savez(tmp_path / "b.npz", **arrays | {"Q": np.array(1)})
    assert read("npz", tmp_path / "b.npz", **keys)[0].charge.tolist() == [1, 1, 1]
    with pytest.raises(RamifyError, match=r"no array 'q' \(`charge_key`\).*it has E, F, Q, R, S, z"):
        read("npz", tmp_path / "a.npz", **keys | {"charge_key": "q"})


def test_deepmd(tmp_path: Path, read: Any) -> None:
    system(tmp_path / "w")
    for name, n in (("set.000", 5), ("set.001", 3)):
        np.save(tmp_path / f"w/{name}/fparam.npy", np.stack([np.zeros(n), np.full(n, 2.0)], axis=1))
        np.save(tmp_path / f"w/{name}/charge.npy", np.full(n, -1.0))
    found, _ = read("deepmd", tmp_path / "w", charge_key="charge", spin_key="fparam:1", spin_is="unpaired")
    assert (found.charge.tolist(), found.spin.tolist()) == ([-1] * 8, [3] * 8)
    for key in ("chrge", "fparam:2"):
        with pytest.raises(RamifyError, match=rf"charge_key: {key}"):
            read("deepmd", tmp_path / "w", charge_key=key)


def test_look(tmp_path: Path) -> None:
    write(tmp_path / "a.xyz", frames((0, 1), (1, 2), (1, 2)), format="extxyz")
    found = look(tmp_path / "a.xyz")
    assert found.states == {"charge +1, multiplicity 2": 2, "charge 0, multiplicity 1": 1}
    assert "charge_key: charge" in found.recipe
    assert "spin_key: spin" in found.recipe
