"""Facts that a file states twice, or in its own names: units, keys, the symmetry of a stress."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from ase import Atoms
from ase.db import connect

from ramify.errors import RamifyError
from ramify.sources.look import look
from ramify.sources.units import Units, stated_units, units_in_names

HARTREE, KCAL = 27.2113862, 0.0433641043


def frame(comment: str, forces: str = "forces:R:3", row: str = "1 2 3") -> str:
    return f"2\nProperties=species:S:1:pos:R:3:{forces} {comment}\nH 0 0 0 {row}\nH 0 0 0.8 {row}\n"


def test_names_of_units() -> None:
    found = {
        "energy_unit": "Ha",
        "dft_energy_units": "eV",
        "unit_of_length": "bohr",
        "F_unit": b"eV/Ang",
        "unit_cell": "cubic",
        "stress_units": 3,
    }
    assert stated_units(found) == {"energy": "Ha", "length": "bohr", "forces": "eV/Ang"}
    assert stated_units(found, energy="dft_energy")["energy"] == "eV"
    assert stated_units({"units": {"Energy": "kcal/mol", "positions": "Å"}}) == {"energy": "kcal/mol", "length": "Å"}


def test_units_in_names() -> None:
    names = {"energy": "E0_kcal/mol_per_atom", "forces": "forces_Ha_per_bohr", "stress": "stress (GPa)"}
    assert units_in_names(Units(), **names) == {"energy": "kcal/mol/atom", "forces": "Ha/bohr", "stress": "GPa"}
    assert units_in_names(Units(energy="eV"), energy="energy_Ha") == {}
    for name in ("energy", "free_energy", "REF_energy", "E", "dft_total_energy", "energy_au_corrected", None):
        assert units_in_names(Units(), energy=name) == {}


def test_labels_with_units_in_their_names(tmp_path: Path, read: Any) -> None:
    path = tmp_path / "a.xyz"
    cell = 'Lattice="4 0 0 0 4 0 0 0 4" stress_GPa="1 0 0 0 1 0 0 0 1" max_force=3'
    path.write_text(
        frame(f"formation_energy=1 energy_Ha_per_atom=-1 {cell}", "F_eV_per_A:R:3").replace("F_eV", "force_eV")
    )
    chosen = {"energy_key": "energy_Ha_per_atom", "forces_key": "force_eV_per_A", "stress_key": "stress_GPa"}
    with pytest.raises(RamifyError, match="energy_is_per_atom: true"):
        read("extxyz", path, **chosen)
    found, _ = read("extxyz", path, **chosen, energy_is_per_atom=True)
    assert found.energy[0] == pytest.approx(-2 * HARTREE)
    assert found.stress[0, 0, 0] == pytest.approx(0.006241509, rel=1e-6)
    assert found.forces[0].tolist() == [1, 2, 3]
    drafted = look(path)
    for key, name in (chosen | {"energy_is_per_atom": "true"}).items():
        assert f"{key}: {name}\n" in drafted.recipe
    assert drafted.energy_per_atom == pytest.approx((-HARTREE, -HARTREE))


def test_the_unit_of_the_key_that_is_read(tmp_path: Path, read: Any) -> None:
    path = tmp_path / "a.xyz"
    path.write_text(frame("E0=-1 E0_unit=Hartree energy=-3 energy_unit=eV"))
    found, _ = read("extxyz", path, energy_key="E0")
    assert found.energy[0] == pytest.approx(-HARTREE)
    found, _ = read("extxyz", path)
    assert found.energy[0] == -3


@pytest.mark.parametrize("first", ["energy_unit=eV", ""])
def test_units_that_change_inside_a_file(tmp_path: Path, read: Any, first: str) -> None:
    path = tmp_path / "a.xyz"
    path.write_text(frame(f"energy=-1 {first}") * 2 + frame("energy=-1 energy_unit=Hartree"))
    with pytest.raises(RamifyError, match=r"structure 2 states its energy in Hartree.*\n  fix: "):
        read("extxyz", path)
    path.write_text(frame("energy=-1 energy_unit=Hartree") + frame("energy=-1"))
    found, _ = read("extxyz", path)
    assert found.energy == pytest.approx([-HARTREE] * 2)


def test_energies_that_are_stated_per_atom(tmp_path: Path, read: Any) -> None:
    path = tmp_path / "a.xyz"
    path.write_text(frame("energy=-1 energy_unit=Hartree/atom"))
    with pytest.raises(RamifyError, match=r"Hartree/atom.*total(.|\n)*energy_is_per_atom: true"):
        read("extxyz", path)
    found, _ = read("extxyz", path, energy_is_per_atom=True)
    assert found.energy[0] == pytest.approx(-2 * HARTREE)


def test_the_unit_of_a_virial(tmp_path: Path, read: Any) -> None:
    path = tmp_path / "a.xyz"
    cell = 'energy=-1 Lattice="4 0 0 0 4 0 0 0 4" virial="1 0 0 0 1 0 0 0 1"'
    path.write_text(frame(f"{cell} virial_unit=kcal/mol"))
    with pytest.raises(RamifyError, match="virial in kcal/mol"):
        read("extxyz", path, virial_key="virial")
    path.write_text(frame(f"{cell} virial_unit=eV"))
    assert read("extxyz", path, virial_key="virial")[0].stress[0, 0, 0] == pytest.approx(-1 / 64)


@pytest.mark.parametrize(
    "metadata",
    [
        {"key_descriptions": {"E": ["E", "total energy", "kcal/mol"]}},
        {"energy_unit": "kcal/mol"},
        {"units": {"energy": "kcal/mol", "length": "Å"}},
    ],
)
def test_units_in_the_metadata_of_a_database(tmp_path: Path, read: Any, metadata: dict[str, Any]) -> None:
    path = tmp_path / "a.db"
    with connect(str(path)) as database:
        database.write(Atoms("H"), E=-2.0)
        database.metadata = metadata
    found, _ = read("ase_db", path, energy_key="E")
    assert found.energy[0] == pytest.approx(-2 * KCAL, rel=1e-7)
    with pytest.raises(RamifyError, match="kcal/mol"):
        read("ase_db", path, energy_key="E", units={"energy": "eV"})


def molecule(**more: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {"z": np.array([8, 1, 1]), "R": rng.normal(0, 1, (4, 3, 3)), "E": np.arange(4.0)} | more


def test_units_and_periodic_axes_of_archives(tmp_path: Path, read: Any) -> None:
    path, keys = tmp_path / "a.npz", {"numbers": "z", "positions": "R", "energy": "E"}
    np.savez(path, **molecule())
    with pytest.raises(RamifyError, match="kcal/mol"):  # the layout of MD17, without its forces
        read("npz", path, keys=keys)
    np.savez(path, **molecule(energy_units="Hartree", position_unit="bohr", unit_cell=np.eye(3)))
    found, _ = read("npz", path, keys=keys)
    assert found.energy[1] == pytest.approx(HARTREE)
    assert found.positions[0, 0] == pytest.approx(molecule()["R"][0, 0, 0] * 0.529177211)
    cell = {"lattice": 9 * np.eye(3), "E_unit": "eV"}
    for pbc, expected in ((np.array([True, True, False]), [1, 1, 0]), (np.tile([0, 1, 1], (4, 1)), [0, 1, 1])):
        np.savez(path, **molecule(**cell, pbc=pbc))
        found, _ = read("npz", path, keys=keys | {"cell": "lattice"})
        assert found.pbc.tolist() == [expected] * 4
    for wrong in (np.array([2, 0, 0]), np.zeros(2, bool), np.array(["T", "T", "F"])):
        np.savez(path, **molecule(**cell, pbc=wrong))
        with pytest.raises(RamifyError, match="pbc"):
            read("npz", path, keys=keys | {"cell": "lattice"})


def test_a_unit_of_an_array_that_is_unknown(tmp_path: Path, read: Any) -> None:
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        group = file.create_group("mol-2")
        group["atomic_numbers"], group["conformations"] = [1, 1], np.arange(12.0).reshape(2, 2, 3)
        group["dft_total_energy"], group["dft_total_gradient"] = [-1.0, -2.0], np.zeros((2, 2, 3))
        group["dft_total_energy"].attrs["units"] = "zJ"
    with pytest.raises(RamifyError, match=r"mol-2 states that its energy is in zJ"):
        read("spice", tmp_path / "a.hdf5")


def test_keys_that_occur_twice(tmp_path: Path, read: Any) -> None:
    path = tmp_path / "a.xyz"
    good = frame("energy=-1 tag=a tag=a")
    path.write_text(good + frame("energy=-1 energy=-2") + frame("energy=-3", "forces:R:3:forces:R:3", "1 2 3 4 5 6"))
    found, quarantine = read("extxyz", path)
    assert found.energy.tolist() == [-1]
    assert quarantine.counts == {"malformed structure": 2}
    assert "energy occurs twice" in quarantine.summary()
    entry = '"Energy": -5.0, "Energy": -6.0, "AtomTypes": ["H"], "Positions": [[0, 0, 0]], "Lattice": [[9, 0, 0]]'
    (tmp_path / "a.json").write_text(f'{{"Dataset": {{"Data": [{{{entry}}}]}}}}')
    with pytest.raises(RamifyError, match="'Energy' occurs twice"):
        read("fitsnap", tmp_path / "a.json")


@pytest.mark.parametrize(("values", "kept"), [([6.5, 1.0], 0), ([6.0, 1.0], 2), ([6, 1j], None)])
def test_atomic_numbers_that_are_not_whole(tmp_path: Path, read: Any, values: list[Any], kept: int | None) -> None:
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        group = file.create_group("mol-1")
        group["atomic_numbers"], group["conformations"] = values, np.arange(12.0).reshape(2, 2, 3)
        group["dft_total_energy"], group["dft_total_gradient"] = [-1.0, -2.0], np.zeros((2, 2, 3))
    if kept is None:
        with pytest.raises(RamifyError, match="atomic numbers has type complex128"):
            read("spice", tmp_path / "a.hdf5")
        return
    found, quarantine = read("spice", tmp_path / "a.hdf5")
    assert len(found) == kept
    assert quarantine.total == 2 - kept
