"""Padded numpy archives: padding atoms, pairs of labels, shared atomic numbers, blocks."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramify.errors import RamifyError
from ramify.sources.formats import npz


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
    with pytest.raises(RamifyError, match="no gradient of it"):
        read("npz", tmp_path / "a.npz", keys=keys)
    np.savez(tmp_path / "b.npz", **named, ePBE0=arrays["E"] - 1, totFOR=arrays["F"] * 2)
    with pytest.raises(RamifyError, match="several sets of labels"):
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
    found, _ = read("npz", tmp_path / "a.npz")
    assert found.group_names == ("CH2",)


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
