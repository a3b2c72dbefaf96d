"""ANI-2x and SPICE, in the layouts of their releases."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ramify.errors import RamifyError

HARTREE, BOHR = 27.211386245988, 0.529177210903  # eV, Å; CODATA 2018
RNG = np.random.default_rng(5)


def write_ani2x(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """A group for each number of atoms, species row by row (zenodo 10108942; Devereux et al. 2020)."""
    made = {}
    with h5py.File(path, "w") as file:
        for n in (3, 5):
            species = RNG.choice([1, 6, 7, 8, 9, 16, 17], (20, n)).astype(np.int64)
            made[f"{n:03d}"] = {
                "species": species,
                "coordinates": RNG.normal(0, 2, (20, n, 3)).astype(np.float32),
                "energies": RNG.normal(-80, 5, 20),
                "forces": RNG.normal(0, 0.05, (20, n, 3)),
            }
            group = file.create_group(f"{n:03d}")
            for name, array in made[f"{n:03d}"].items():
                group[name] = array
    return made


def test_ani2x(tmp_path: Path, read: Any) -> None:
    made = write_ani2x(tmp_path / "a.h5")
    found, quarantine = read("ani2x", tmp_path / "a.h5")
    assert quarantine.total == 0
    assert found.n_atoms.tolist() == [3] * 20 + [5] * 20
    np.testing.assert_array_equal(found.numbers, np.concatenate([m["species"].ravel() for m in made.values()]))
    np.testing.assert_allclose(
        found.energy, np.concatenate([m["energies"] for m in made.values()]) * HARTREE, rtol=1e-7
    )
    forces = np.concatenate([m["forces"].reshape(-1, 3) for m in made.values()])
    np.testing.assert_allclose(found.forces, forces * HARTREE, rtol=1e-7)
    assert found.name(21) == "a.h5/005[1]"
    assert [found.group_names[g] for g in found.group[:2]] != [""] * 2
    first = found.group[0]
    for other in np.flatnonzero(found.group == first):  # a group is a composition
        ours, theirs = (np.sort(found.numbers[found.offsets[i] : found.offsets[i + 1]]) for i in (0, other))
        np.testing.assert_array_equal(ours, theirs)
    found, _ = read("ani2x", tmp_path / "a.h5", units={"energy": "eV", "length": "bohr"})
    np.testing.assert_allclose(found.forces, forces / BOHR, rtol=1e-7)


def test_layouts_of_ani_name_one_another(tmp_path: Path, read: Any) -> None:
    write_ani2x(tmp_path / "a.h5")
    for name in ("ani1", "ani1x", "spice"):
        with pytest.raises(RamifyError, match="set `format: ani2x`"):
            read(name, tmp_path / "a.h5")


@pytest.mark.parametrize("name", ["ani2x", "ani1x"])
def test_wrong_numbers_cost_their_rows_alone(tmp_path: Path, read: Any, name: str) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        group = file.create_group("003")
        group["coordinates"] = np.zeros((3, 3, 3))
        if name == "ani2x":
            group["species"] = np.array([[8, 1, 1], [8, -1, 1], [8, 300, 1]])
            group["energies"], group["forces"] = np.zeros(3), np.zeros((3, 3, 3))
        else:
            group["atomic_numbers"] = np.array([8, 300, 1])
            group["wb97x_dz.energy"], group["wb97x_dz.forces"] = np.zeros(3), np.zeros((3, 3, 3))
    found, quarantine = read(name, tmp_path / "a.h5")
    assert found.row.tolist() == ([0] if name == "ani2x" else [])
    assert quarantine.counts == {"malformed structure": 2 if name == "ani2x" else 3}


def test_texts_where_numbers_belong(tmp_path: Path, read: Any) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        group = file.create_group("003")
        group["coordinates"], group["species"] = np.zeros((1, 1, 3)), np.array([[1]])
        group["energies"] = np.array(["-1.0"], object)
    with pytest.raises(RamifyError, match="energy has type object"):
        read("ani2x", tmp_path / "a.h5")


def write_spice(path: Path, molecules: int = 4) -> list[dict[str, np.ndarray]]:
    """A group for each molecule, gradients in atomic units (github.com/openmm/spice-dataset, downloader)."""
    made = []
    with h5py.File(path, "w") as file:
        for m in range(molecules):
            n = 3 + m
            arrays = {
                "atomic_numbers": RNG.integers(1, 9, n).astype(np.int16),
                "conformations": RNG.normal(0, 3, (6, n, 3)).astype(np.float32),
                "dft_total_energy": RNG.normal(-200, 5, 6),
                "dft_total_gradient": RNG.normal(0, 0.05, (6, n, 3)).astype(np.float32),
            }
            group = file.create_group(f"mol-{m}")
            for name, array in arrays.items():
                group[name] = array
            group["subset"] = [b"Dipeptides" if m % 2 else b"PubChem 1"]
            group["smiles"] = [b"[H:1][O:2][H:3]"]
            made.append(arrays)
    return made


def test_spice(tmp_path: Path, read: Any) -> None:
    made = write_spice(tmp_path / "a.hdf5")
    found, quarantine = read("spice", tmp_path / "a.hdf5")
    assert quarantine.total == 0
    assert found.group_names == tuple(f"mol-{m}" for m in range(4))
    np.testing.assert_allclose(found.energy, np.concatenate([m["dft_total_energy"] for m in made]) * HARTREE, rtol=1e-7)
    positions = np.concatenate([m["conformations"].reshape(-1, 3) for m in made])
    np.testing.assert_allclose(found.positions, positions * BOHR, rtol=1e-6)
    gradients = np.concatenate([m["dft_total_gradient"].reshape(-1, 3) for m in made])
    np.testing.assert_allclose(found.forces, -gradients * HARTREE / BOHR, rtol=1e-6)
    assert not found.pbc.any()
    found, quarantine = read("spice", tmp_path / "a.hdf5", subsets=["Dipeptides"])
    assert found.group_names == ("mol-1", "mol-3")
    assert quarantine.counts == {"of another subset (subsets)": 12}
    with pytest.raises(RamifyError, match=r"no subset 'Dipeptide'.*did you mean 'Dipeptides'"):
        read("spice", tmp_path / "a.hdf5", subsets=["Dipeptide"])


def test_units_that_arrays_state(tmp_path: Path, read: Any) -> None:
    """SPICE's downloader writes the unit of each array as its attribute."""
    write_spice(tmp_path / "a.hdf5")
    units = {"conformations": "bohr", "dft_total_energy": "hartree", "dft_total_gradient": "hartree/bohr"}
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        for group in file.values():
            for name, unit in units.items():
                group[name].attrs["units"] = unit
    assert len(read("spice", tmp_path / "a.hdf5")[0]) == 24
    for name, unit in (("conformations", "angstrom"), ("dft_total_energy", "kcal/mol")):
        with h5py.File(tmp_path / "a.hdf5", "a") as file:
            file["mol-2"][name].attrs["units"] = np.bytes_(unit)
        with pytest.raises(RamifyError, match=rf"mol-2 states that its \w+ is in {unit}"):
            read("spice", tmp_path / "a.hdf5")
        with h5py.File(tmp_path / "a.hdf5", "a") as file:
            file["mol-2"][name].attrs["units"] = units[name]


def test_gradients_of_spice_become_forces_of_its_energies(tmp_path: Path, read: Any) -> None:
    """Springs in atomic units: the energy decreases along the forces, by their work."""
    steps = np.linspace(0, 0.1, 6)
    positions = np.zeros((6, 2, 3))
    positions[:, 1, 0] = 2.0 + steps
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        group = file.create_group("H2")
        group["atomic_numbers"], group["conformations"] = [1, 1], positions
        group["dft_total_energy"] = 0.5 * 0.3 * (positions[:, 1, 0] - 1.4) ** 2
        gradient = np.zeros((6, 2, 3))
        gradient[:, 1, 0] = 0.3 * (positions[:, 1, 0] - 1.4)
        gradient[:, 0, 0] = -gradient[:, 1, 0]
        group["dft_total_gradient"] = gradient
    found, _ = read("spice", tmp_path / "a.hdf5")
    force = found.forces.reshape(6, 2, 3)[:, 1, 0]
    moved = np.diff(found.positions.reshape(6, 2, 3)[:, 1, 0])
    np.testing.assert_allclose(np.diff(found.energy), -(force[1:] + force[:-1]) / 2 * moved, rtol=1e-5)


@pytest.mark.parametrize("name", ["ani2x", "spice"])
def test_damaged_files_give_messages(tmp_path: Path, read: Any, reads_or_says_why: Any, name: str) -> None:
    path = tmp_path / "a.h5"
    {"ani2x": write_ani2x, "spice": write_spice}[name](path)
    content, rng = path.read_bytes(), np.random.default_rng(0)
    for size in rng.integers(1, len(content), 15).tolist():
        path.write_bytes(content[:size])
        with pytest.raises(RamifyError, match=r"\n  fix: "):
            read(name, path)
    for at in rng.integers(0, len(content), 30).tolist():
        changed = bytearray(content)
        changed[at] ^= 0xFF
        path.write_bytes(changed)
        reads_or_says_why(name, path)
