"""QM7-X: pairs of labels that are never mixed, duplicates, archives that were not unpacked."""

import io
import lzma
import tarfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ramify.errors import RamifyError
from tests.corpora import HELD, stated_energies


def write(path: Path, *, keys: tuple[str, ...] = ("ePBE0+MBD", "totFOR", "ePBE0", "pbe0FOR")) -> None:
    """Two molecules: 1 with two equilibria, 2 with one; every label has a value of its own."""
    value = {"ePBE0+MBD": -1000.0, "totFOR": 0.1, "ePBE0": -2000.0, "pbe0FOR": 0.2}
    with h5py.File(path, "w") as file:
        for k, stem in enumerate(("Geom-m1-i1-c1", "Geom-m1-i1-c2", "Geom-m2-i1-c1")):
            for d, kind in enumerate(("opt", "d1", "d12")):
                group = file.create_group(f"{stem.split('-')[1][1:]}/{stem}-{kind}")
                group["atNUM"] = np.array([8, 1, 1])
                group["atXYZ"] = np.full((3, 3), float(k)) + np.arange(3)[:, None] + 0.01 * d
                for key in keys:
                    shape = (1,) if key.startswith("e") else (3, 3)
                    group[key] = np.full(shape, value[key] + k + 0.01 * d)


def test_labels_come_in_pairs(tmp_path: Path, read: Any) -> None:
    write(tmp_path / "1000.hdf5")
    found, quarantine = read("qm7x", tmp_path / "1000.hdf5")
    assert len(found) == 9
    assert quarantine.total == 0
    assert found.energy[0] == pytest.approx(-999.99)  # d1 comes before opt
    assert found.forces[0, 0] == pytest.approx(0.11)
    found, _ = read("qm7x", tmp_path / "1000.hdf5", labels="pbe0")
    assert found.energy[0] == pytest.approx(-1999.99)
    assert found.forces[0, 0] == pytest.approx(0.21)


def test_wrong_pairing_cannot_be_had(tmp_path: Path, read: Any) -> None:
    write(tmp_path / "1000.hdf5", keys=("ePBE0+MBD", "pbe0FOR"))
    for labels in ("pbe0+mbd", "pbe0"):
        with pytest.raises(RamifyError, match="it has atNUM, atXYZ, ePBE0"):
            read("qm7x", tmp_path / "1000.hdf5", labels=labels)


def test_missing_pair_names_the_one_that_is_there(corpora: Path, read: Any) -> None:
    with pytest.raises(RamifyError, match=r"no ePBE0\+MBD and totFOR(.|\n)*set `labels: pbe0`"):
        read("qm7x", corpora / "qm7x_mini/1000.hdf5")


def test_names_lead_back_to_the_conformer_and_the_group_is_the_molecule(tmp_path: Path, read: Any) -> None:
    write(tmp_path / "1000.hdf5")
    found, _ = read("qm7x", tmp_path / "1000.hdf5")
    names = [found.name(i) for i in range(3)]
    assert names == [f"1000.hdf5/1/Geom-m1-i1-c1[{k}]" for k in (1, 12, 0)]  # 0 is -opt
    assert [found.group_names[g] for g in found.group] == ["1"] * 6 + ["2"] * 3


def test_listed_duplicates_drop_with_their_displaced_copies(tmp_path: Path, read: Any) -> None:
    write(tmp_path / "1000.hdf5")
    (tmp_path / "DupMols.dat").write_text("Geom-m1-i1-c2-opt\nGeom-m9-i1-c1-opt\n")
    found, quarantine = read("qm7x", tmp_path / "1000.hdf5")
    assert len(found) == 6
    assert quarantine.counts == {"listed in DupMols.dat": 3}
    assert not any("c2" in name for name in found.origin_names)


def test_duplicates_by_path(tmp_path: Path, read: Any) -> None:
    write(tmp_path / "1000.hdf5")
    listed = tmp_path / "elsewhere.txt"
    listed.write_text("Geom-m2-i1-c1\n")
    found, quarantine = read("qm7x", tmp_path / "1000.hdf5", duplicates=str(listed))
    assert found.group_names == ("1",)
    assert quarantine.total == 3
    with pytest.raises(RamifyError, match="does not exist"):
        read("qm7x", tmp_path / "1000.hdf5", duplicates=str(tmp_path / "none.dat"))
    listed.write_text("nothing of the kind")
    with pytest.raises(RamifyError, match="lists no conformer"):
        read("qm7x", tmp_path / "1000.hdf5", duplicates=str(listed))


def test_a_conformer_without_labels_is_counted(tmp_path: Path, read: Any) -> None:
    write(tmp_path / "1000.hdf5")
    with h5py.File(tmp_path / "1000.hdf5", "a") as file:
        del file["2/Geom-m2-i1-c1-d12/totFOR"]
        del file["2/Geom-m2-i1-c1-d1/totFOR"]
        file["2/Geom-m2-i1-c1-d1/totFOR"] = np.full((3, 3), np.nan)
    found, quarantine = read("qm7x", tmp_path / "1000.hdf5")
    assert len(found) == 7
    assert quarantine.counts == {"label not computed": 1, "non-finite label": 1}


def test_archives_name_their_unpacking(tmp_path: Path, read: Any) -> None:
    write(tmp_path / "1000.hdf5")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        tar.add(tmp_path / "1000.hdf5", arcname="1000.hdf5")
    (tmp_path / "1000.xz").write_bytes(lzma.compress(packed.getvalue()))
    with pytest.raises(RamifyError, match=r"compressed archive(.|\n)*tar xJf .*1000\.xz"):
        read("qm7x", tmp_path / "1000.xz")
    (tmp_path / "1000").write_bytes(packed.getvalue())
    with h5py.File(tmp_path / "1000") as opened:  # the trap: HDF5 opens the bare tar
        assert "1" in opened
    with pytest.raises(RamifyError, match=r"tar archive(.|\n)*tar xf"):
        read("qm7x", tmp_path / "1000")


def test_embedded_corpus(corpora: Path, read: Any, slope: Any) -> None:
    found, quarantine = read("qm7x", corpora / "qm7x_mini/1000.hdf5", labels="pbe0")
    assert len(found) == HELD["qm7x_mini"].structures
    assert quarantine.total == 0
    assert len(found.group_names) == HELD["qm7x_mini"].systems
    assert set(found.numbers.tolist()) == {1, 6, 7, 8, 16, 17}
    per_atom = found.energy / found.n_atoms
    assert (per_atom.min(), per_atom.max()) == pytest.approx(stated_energies("qm7x_mini"), abs=5.1e-4)
    assert slope(found) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(("key", "value"), [("ePBE0+MBD", np.zeros(0)), ("totFOR", np.full((3, 3), b"x"))])
def test_arrays_that_hold_something_else(tmp_path: Path, read: Any, key: str, value: np.ndarray) -> None:
    write(tmp_path / "1000.hdf5")
    with h5py.File(tmp_path / "1000.hdf5", "a") as file:
        del file["2/Geom-m2-i1-c1-d1"][key]
        file["2/Geom-m2-i1-c1-d1"][key] = value
    with pytest.raises(RamifyError, match="damaged or incomplete"):
        read("qm7x", tmp_path / "1000.hdf5")
