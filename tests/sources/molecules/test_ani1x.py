"""ANI-1x release layout and the older ANI-1/COMP6 layout."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ramify.errors import RamifyError
from ramify.sources import chunks
from ramify.sources.formats import formats
from ramify.sources.parsing import hdf5
from ramify.sources.quarantine import Quarantine
from tests.corpora import HELD, stated_energies

HARTREE = 27.211386245988  # eV, CODATA 2018


def write_release(path: Path, rows: int = 7) -> dict[str, np.ndarray]:
    """Two compositions; energies and forces are missing in different rows."""
    rng = np.random.default_rng(3)
    made = {}
    with h5py.File(path, "w") as file:
        for name, numbers in (("C1H4", [6, 1, 1, 1, 1]), ("H2O1", [8, 1, 1])):
            group = file.create_group(name)
            energy = rng.normal(-40, 1, rows)
            forces = rng.normal(0, 0.1, (rows, len(numbers), 3)).astype(np.float32)
            energy[1] = np.nan  # energy alone is missing
            forces[4] = np.nan  # forces alone are missing
            forces[5, -1, 2] = np.nan  # one component is missing
            group["atomic_numbers"] = np.array(numbers, np.uint8)
            group["coordinates"] = rng.normal(0, 1, (rows, len(numbers), 3)).astype(np.float32)
            group["wb97x_dz.energy"], group["wb97x_dz.forces"] = energy, forces
            group["wb97x_tz.energy"] = np.full(rows, np.nan)
            group["wb97x_tz.forces"] = np.full(forces.shape, np.nan, np.float32)
            made[name] = forces
    return made


def test_rows_with_any_missing_label_are_masked(tmp_path: Path, read: Any) -> None:
    forces = write_release(tmp_path / "ani1x.h5")
    found, quarantine = read("ani1x", tmp_path / "ani1x.h5")
    assert quarantine.counts == {"label not computed": 6}
    assert [found.name(i) for i in range(len(found))] == [
        f"ani1x.h5/{name}[{row}]" for name in ("C1H4", "H2O1") for row in (0, 2, 3, 6)
    ]
    assert found.group_names == ("C1H4", "H2O1")
    assert np.isfinite(found.energy).all()
    assert np.isfinite(found.forces).all()
    np.testing.assert_allclose(found.forces[:5], forces["C1H4"][0] * HARTREE, rtol=1e-6)
    assert not found.pbc.any()
    assert np.isnan(found.stress).all()


def test_blocks_cut_where_they_may_give_the_same(tmp_path: Path, read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write_release(tmp_path / "ani1x.h5", rows=40)
    whole, _ = read("ani1x", tmp_path / "ani1x.h5")
    monkeypatch.setattr(hdf5, "CHUNK_ATOMS", 17)
    monkeypatch.setattr(chunks, "CHUNK_ATOMS", 17)
    found = formats()["ani1x"]
    options = found.options(path="x")
    parts = list(found.read(tmp_path / "ani1x.h5", options, Quarantine()))
    assert len(parts) > 15
    assert max(len(p.numbers) for p in parts) <= 17
    again, quarantine = read("ani1x", tmp_path / "ani1x.h5")
    assert quarantine.counts == {"label not computed": 6}
    for column in ("numbers", "positions", "energy", "forces", "row", "n_atoms"):
        np.testing.assert_array_equal(getattr(again, column), getattr(whole, column))


def test_level_that_was_never_computed_leaves_nothing(tmp_path: Path, read: Any) -> None:
    write_release(tmp_path / "ani1x.h5")
    found, quarantine = read("ani1x", tmp_path / "ani1x.h5", level="wb97x_tz")
    assert len(found) == 0
    assert quarantine.counts == {"label not computed": 14}


def test_level_that_the_file_lacks_is_an_error(corpora: Path, read: Any) -> None:
    with pytest.raises(RamifyError, match=r"level: wb97x_tz(.|\n)*set `level: wb97x_dz`"):
        read("ani1x", corpora / "ani1x_mini/ani1x-mini.h5", level="wb97x_tz")


def test_embedded_corpus(corpora: Path, read: Any, slope: Any) -> None:
    found, quarantine = read("ani1x", corpora / "ani1x_mini/ani1x-mini.h5")
    assert len(found) == HELD["ani1x_mini"].structures
    assert quarantine.counts == {"label not computed": 3}
    assert len(found.group_names) == HELD["ani1x_mini"].systems
    assert set(found.numbers.tolist()) == {1, 6, 7, 8}
    per_atom = found.energy / found.n_atoms
    assert (per_atom.min(), per_atom.max()) == pytest.approx(stated_energies("ani1x_mini"), abs=5.1e-4)
    assert slope(found) == pytest.approx(1.0, abs=0.1)


def test_older_layout_is_named(shared: Path, read: Any) -> None:
    comp6 = shared / "data/ani_comp6_s66x8/s66x8_wb97x6-31gd.h5"
    with pytest.raises(RamifyError, match="set `format: ani1`"):
        read("ani1x", comp6)


def test_comp6_gradients_are_read_as_they_stand(shared: Path, read: Any, slope: Any) -> None:
    found, quarantine = read("ani1", shared / "data/ani_comp6_s66x8/s66x8_wb97x6-31gd.h5")
    assert len(found) == 528
    assert quarantine.total == 0
    assert len(found.group_names) == 66
    assert found.name(8) == "s66x8_wb97x6-31gd.h5/s66x8/mol01[0]"
    per_atom = found.energy / found.n_atoms / HARTREE
    assert (round(per_atom.min(), 4), round(np.median(per_atom), 3), round(per_atom.max(), 4)) == (
        -34.5609,
        -20.401,
        -11.6303,
    )
    assert slope(found) == pytest.approx(-1.0, abs=0.1)


def write_older(path: Path, *, high_energy: bool = False, species: list[bytes] | None = None) -> None:
    with h5py.File(path, "w") as file:
        group = file.create_group("gdb11_s01/gdb11_s01-0")
        group["species"] = np.array(species or [b"O", b"H", b"H"])
        group["coordinates"] = np.arange(18, dtype=np.float32).reshape(2, 3, 3)
        group["energies"] = np.array([-76.0, -76.1])
        group["smiles"] = np.array([b"O", b"[", b"H"])
        if high_energy:
            group["coordinatesHE"] = np.arange(27, dtype=np.float32).reshape(3, 3, 3)
            group["energiesHE"] = np.array([-75.0, -75.1, -75.2])


def test_older_layout_without_forces(tmp_path: Path, read: Any) -> None:
    write_older(tmp_path / "ani.h5", high_energy=True)
    found, quarantine = read("ani1", tmp_path / "ani.h5")
    assert found.numbers.tolist() == [8, 1, 1, 8, 1, 1]
    np.testing.assert_allclose(found.energy, [-76.0 * HARTREE, -76.1 * HARTREE], rtol=1e-8)
    assert np.isnan(found.forces).all()
    assert quarantine.counts == {"high-energy conformer (high_energy: false)": 3}
    found, quarantine = read("ani1", tmp_path / "ani.h5", high_energy=True)
    assert len(found) == 5
    assert quarantine.total == 0
    assert found.name(4) == "ani.h5/gdb11_s01/gdb11_s01-0/coordinatesHE[2]"
    assert len(found.group_names) == 1


def test_unknown_species_are_named(tmp_path: Path, read: Any) -> None:
    write_older(tmp_path / "ani.h5", species=[b"O", b"Q", b"H"])
    with pytest.raises(RamifyError, match=r"\['Q'\]"):
        read("ani1", tmp_path / "ani.h5")


def test_arrays_of_different_length_are_refused(tmp_path: Path, read: Any) -> None:
    write_release(tmp_path / "ani1x.h5")
    with h5py.File(tmp_path / "ani1x.h5", "a") as file:
        del file["H2O1/wb97x_dz.energy"]
        file["H2O1/wb97x_dz.energy"] = np.zeros(3)
    with pytest.raises(RamifyError, match=r"H2O1: energy has shape \(3,\)"):
        read("ani1x", tmp_path / "ani1x.h5")
