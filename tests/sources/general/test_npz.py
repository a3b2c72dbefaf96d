"""Padded numpy archives: padding atoms, pairs of labels, shared atomic numbers, blocks."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramify.errors import RamifyError
from ramify.sources.formats.general import npz


def padded(sizes: list[int], seed: int = 0) -> dict[str, np.ndarray]:
    rng, n = np.random.default_rng(seed), max(sizes)
    z = np.zeros((len(sizes), n), int)
    R, F = np.zeros((len(sizes), n, 3)), np.zeros((len(sizes), n, 3))
    for i, size in enumerate(sizes):
        z[i, :size] = rng.integers(1, 9, size)
        R[i, :size], F[i, :size] = rng.normal(0, 1, (2, size, 3))
    return {"z": z, "R": R, "F": F, "E": rng.normal(-5, 1, (len(sizes), 1))}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=25), st.integers(1, 40), st.booleans())
def test_padding_is_gone_whatever_the_blocks(
    tmp_path_factory: pytest.TempPathFactory, read: Any, sizes: list[int], limit: int, compressed: bool
) -> None:
    arrays, path = padded(sizes), tmp_path_factory.mktemp("npz") / "a.npz"
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    before, npz.CHUNK_ATOMS = npz.CHUNK_ATOMS, limit
    try:
        found, quarantine = read("npz", path)
    finally:
        npz.CHUNK_ATOMS = before
    assert quarantine.total == 0
    assert found.n_atoms.tolist() == sizes
    np.testing.assert_array_equal(found.energy, arrays["E"][:, 0])
    for i, size in enumerate(sizes):
        atoms = slice(*found.offsets[i : i + 2])
        np.testing.assert_array_equal(found.numbers[atoms], arrays["z"][i, :size])
        np.testing.assert_array_equal(found.positions[atoms], arrays["R"][i, :size])
        np.testing.assert_array_equal(found.forces[atoms], arrays["F"][i, :size])
    assert found.row.tolist() == list(range(len(sizes)))


def test_padding_need_not_be_at_the_end(tmp_path: Path, read: Any) -> None:
    arrays = padded([3, 3])
    arrays["z"][0] = [0, 8, 1]
    np.savez(tmp_path / "a.npz", **arrays)
    found, _ = read("npz", tmp_path / "a.npz")
    assert found.n_atoms.tolist() == [2, 3]
    np.testing.assert_array_equal(found.positions[:2], arrays["R"][0, 1:])


def test_pairs_are_not_mixed_and_not_guessed(tmp_path: Path, read: Any) -> None:
    arrays = padded([3, 2])
    named = {"atNUM": arrays["z"], "atXYZ": arrays["R"], "ePBE0+MBD": arrays["E"], "pbe0FOR": arrays["F"]}
    np.savez(tmp_path / "a.npz", **named)
    with pytest.raises(RamifyError, match="no known set of arrays"):
        read("npz", tmp_path / "a.npz")
    keys = {"numbers": "atNUM", "positions": "atXYZ", "energy": "ePBE0+MBD", "forces": "pbe0FOR"}
    with pytest.raises(RamifyError, match=r"MBD with pbe0FOR"):
        read("npz", tmp_path / "a.npz", keys=keys)
    np.savez(tmp_path / "b.npz", **named, ePBE0=arrays["E"] - 1, totFOR=arrays["F"] * 2)
    with pytest.raises(RamifyError, match="several known sets of labels"):
        read("npz", tmp_path / "b.npz")
    found, _ = read("npz", tmp_path / "b.npz", keys=keys | {"forces": "totFOR"})
    np.testing.assert_array_equal(found.forces[:3], arrays["F"][0] * 2)


def test_shared_numbers_units_and_groups(tmp_path: Path, read: Any) -> None:
    arrays = padded([3, 3, 3])
    np.savez(
        tmp_path / "a.npz",
        nuclear_charges=np.array([6, 1, 1], np.uint8),
        coords=arrays["R"],
        energies=arrays["E"][:, 0],
        forces=arrays["F"],
        run=np.array(["a", "b", "a"]),
    )
    found, _ = read("npz", tmp_path / "a.npz", units={"energy": "kcal/mol"}, group_key="run")
    np.testing.assert_allclose(found.energy, arrays["E"][:, 0] * 0.0433641043, rtol=1e-7)
    np.testing.assert_allclose(found.forces[:3], arrays["F"][0] * 0.0433641043, rtol=1e-7)
    assert found.numbers.tolist() == [6, 1, 1] * 3
    assert [found.group_names[g] for g in found.group] == ["a", "b", "a"]
    found, _ = read("npz", tmp_path / "a.npz", units={"energy": "eV"})
    assert found.group_names == ("CH2",)
    with pytest.raises(RamifyError, match=r"MD17 or rMD17(.|\n)*units: \{energy: kcal/mol\}"):
        read("npz", tmp_path / "a.npz")
    with pytest.raises(RamifyError, match="MD17 or rMD17"):  # the length alone says nothing about the energy
        read("npz", tmp_path / "a.npz", units={"length": "Å"})


def sgdml(path: Path, **more: Any) -> dict[str, np.ndarray]:
    """A data set as sGDML's converters write it (scripts/sgdml_dataset_from_extxyz.py of sGDML)."""
    rng = np.random.default_rng(3)
    arrays = {"R": rng.normal(0, 2, (4, 3, 3)), "F": rng.normal(0, 1, (4, 3, 3)), "E": rng.normal(-5, 1, 4)}
    np.savez_compressed(path, type="d", name="x", theory="unknown", md5="0", z=np.array([8, 1, 1]), **arrays, **more)
    return arrays


@pytest.mark.parametrize(
    ("energy", "length", "energy_factor", "length_factor"),
    [
        ("kcal/mol", "Ang", 0.0433641043, 1.0),
        ("eV", "Angstrom", 1.0, 1.0),
        ("Ha", "bohr", 27.2113862, 0.529177211),
        ("Hartree", "au", 27.2113862, 0.529177211),
        ("kJ/mol", "A", 0.0103642696, 1.0),
    ],
)
def test_units_that_the_file_states(
    tmp_path: Path, read: Any, energy: str, length: str, energy_factor: float, length_factor: float
) -> None:
    arrays = sgdml(tmp_path / "a.npz", e_unit=energy, r_unit=length, lattice=np.diag([8.0, 9.0, 10.0]))
    found, quarantine = read("npz", tmp_path / "a.npz")
    assert quarantine.total == 0
    np.testing.assert_allclose(found.energy, arrays["E"] * energy_factor, rtol=1e-7)
    np.testing.assert_allclose(found.forces[:3], arrays["F"][0] * energy_factor / length_factor, rtol=1e-7)
    np.testing.assert_allclose(found.positions[:3], arrays["R"][0] * length_factor, rtol=1e-7)
    np.testing.assert_allclose(found.cell, [np.diag([8.0, 9.0, 10.0]) * length_factor] * 4, rtol=1e-7)
    assert found.pbc.all()
    with pytest.raises(RamifyError, match=rf"energy is in {energy}, the recipe reads it as meV"):
        read("npz", tmp_path / "a.npz", units={"energy": "meV"})
    other = "bohr" if length_factor == 1 else "Å"
    with pytest.raises(RamifyError, match=rf"length is in {length}, the recipe reads it as {other}"):
        read("npz", tmp_path / "a.npz", units={"length": other})


def test_units_stated_in_an_unknown_word(tmp_path: Path, read: Any) -> None:
    arrays = sgdml(tmp_path / "a.npz", e_unit="unknown", r_unit="Ang")
    with pytest.raises(RamifyError, match="'unknown', which is not a known unit"):
        read("npz", tmp_path / "a.npz")
    found, _ = read("npz", tmp_path / "a.npz", units={"energy": "eV"})
    np.testing.assert_allclose(found.energy, arrays["E"])


def test_a_skew_lattice_is_asked_about(tmp_path: Path, read: Any) -> None:
    cell = np.array([[8.0, 0, 0], [1, 9, 0], [0, 0, 7]])
    sgdml(tmp_path / "a.npz", e_unit="eV", r_unit="Ang", lattice=cell)
    with pytest.raises(RamifyError, match=r"not symmetric(.|\n)*`lattice: rows` or `lattice: columns`"):
        read("npz", tmp_path / "a.npz")
    found, _ = read("npz", tmp_path / "a.npz", lattice="rows")
    np.testing.assert_array_equal(found.cell[0], cell)
    found, _ = read("npz", tmp_path / "a.npz", lattice="columns")
    np.testing.assert_array_equal(found.cell[0], cell.T)


def test_cells_row_by_row_and_arrays_that_nobody_reads(tmp_path: Path, read: Any) -> None:
    arrays, cells = padded([3, 2]), np.random.default_rng(0).normal(0, 5, (2, 3, 3))
    np.savez(tmp_path / "a.npz", **arrays, cell=cells, stress=np.zeros((2, 3, 3)))
    _, quarantine = read("npz", tmp_path / "a.npz")
    assert quarantine.remarks == {"array 'cell' not read": 1, "array 'stress' not read": 1}
    keys = {"numbers": "z", "positions": "R", "energy": "E", "forces": "F", "cell": "cell"}
    found, quarantine = read("npz", tmp_path / "a.npz", keys=keys, lattice="rows")
    np.testing.assert_array_equal(found.cell, cells)
    assert quarantine.remarks == {"array 'stress' not read": 1}


def test_wrong_numbers_and_energies_cost_their_rows_alone(tmp_path: Path, read: Any) -> None:
    arrays = padded([3, 3, 3, 3, 3])
    arrays["z"][1], arrays["z"][3] = [8, -1, 300], [8, 0, 119]
    texts = np.array(["-1.5", "-2.5", "None", "-3.5", "-1.5D+01"])
    np.savez(tmp_path / "a.npz", **(arrays | {"E": texts}))
    found, quarantine = read("npz", tmp_path / "a.npz")
    assert found.energy.tolist() == [-1.5]
    assert quarantine.counts == {"malformed structure": 2, "malformed energy": 2}
    assert "-1, 300" in quarantine.first["malformed structure"].detail


def test_texts_where_numbers_belong(tmp_path: Path, read: Any) -> None:
    arrays = padded([3, 3])
    for name, role in (("R", "positions"), ("F", "forces")):
        np.savez(tmp_path / "a.npz", **(arrays | {name: arrays[name].astype("U8")}))
        with pytest.raises(RamifyError, match=f"array of {role} has values of type"):
            read("npz", tmp_path / "a.npz")


def test_rows_without_label_or_atoms_are_counted(tmp_path: Path, read: Any) -> None:
    arrays = padded([3, 3, 3, 3])
    arrays["E"][1], arrays["F"][2, 1, 1], arrays["z"][3] = np.nan, np.nan, 0
    np.savez(tmp_path / "a.npz", **arrays)
    found, quarantine = read("npz", tmp_path / "a.npz")
    assert found.row.tolist() == [0]
    assert quarantine.counts == {"label not computed": 2, "malformed structure": 1}


def test_wrong_archives(tmp_path: Path, read: Any) -> None:
    arrays = padded([3, 2])
    np.savez(tmp_path / "a.npz", **(arrays | {"F": arrays["F"][:1]}))
    with pytest.raises(RamifyError, match=r"forces has shape \(1, 3, 3\)"):
        read("npz", tmp_path / "a.npz")
    with pytest.raises(RamifyError, match=r"no array 'forcs'.*did you mean 'F'|no array 'forcs'"):
        read("npz", tmp_path / "a.npz", keys={"numbers": "z", "positions": "R", "energy": "E", "forces": "forcs"})
    np.savez(tmp_path / "a.npz", **(arrays | {"R": np.asfortranarray(arrays["R"])}))
    with pytest.raises(RamifyError, match="column-major"):
        read("npz", tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("z.npy", b"not an array")
    with pytest.raises(RamifyError):
        read("npz", tmp_path / "b.npz", keys={"numbers": "z", "positions": "z", "energy": "z"})


def test_real_molecule_226(shared: Path, read: Any) -> None:
    found, quarantine = read("npz", shared / "data/qm7x_npz/qm7x_226.npz")
    assert len(found) == 100
    assert quarantine.total == 0
    assert found.group_names == ("C6H12",)
    assert set(found.n_atoms.tolist()) == {18}


def test_real_padded_file(shared: Path, read: Any, slope: Any) -> None:
    found, quarantine = read("npz", shared / "data/qm7x_npz/qm7x_250_small.npz")
    assert len(found) == 2500
    assert quarantine.total == 0
    assert found.numbers.min() == 1
    assert (found.n_atoms.min(), found.n_atoms.max()) == (4, 23)
    assert set(found.numbers.tolist()) == {1, 6, 7, 8, 16, 17}
    largest = np.maximum.reduceat(np.linalg.norm(found.forces, axis=1), found.offsets[:-1])
    assert largest.max() == pytest.approx(22.306, abs=1e-3)
    assert slope(found) == pytest.approx(0.98, abs=0.05)
