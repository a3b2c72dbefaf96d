"""ASE databases: SQLite, JSON and LMDB; labels in results or in `data`; nothing is ever written."""

import gzip
import json
import re
import sqlite3
import warnings
import zlib
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.db import connect

from ramify.errors import RamifyError
from ramify.sources.formats.general import ase_db
from ramify.sources.parsing import json_stream
from ramify.sources.recognize import recognize

RNG = np.random.default_rng(1)


def images(count: int = 7) -> list[Atoms]:
    made = []
    for i in range(count):
        n = 2 + i % 3
        atoms = Atoms(
            f"Cu{n}", RNG.normal(0, 2, (n, 3)), cell=np.eye(3) * 5 + RNG.normal(0, 0.1, (3, 3)), pbc=[1, 1, i % 2]
        )
        atoms.calc = SinglePointCalculator(
            atoms, energy=-1.0 - i, forces=RNG.normal(0, 1, (n, 3)), stress=RNG.normal(0, 1, 6)
        )
        atoms.set_constraint(FixAtoms([0]))  # stored forces are those of the calculation all the same
        made.append(atoms)
    return made


@pytest.mark.parametrize("ending", [".db", ".json", ".aselmdb"])
def test_round_trip(tmp_path: Path, read: Any, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    monkeypatch.setattr(ase_db, "ROWS", 3)
    path, made = tmp_path / f"a{ending}", images()
    with connect(str(path)) as database:
        for i, atoms in enumerate(made):
            database.write(atoms, data={"sid": f"s{i % 2}"})
    before = path.read_bytes()
    for _ in range(2):  # LMDB refuses a second opening if the first was not closed
        found, quarantine = read("ase_db", path, group_key="sid")
    assert path.read_bytes() == before
    assert quarantine.total == 0
    assert found.energy.tolist() == [-1.0 - i for i in range(7)]
    np.testing.assert_allclose(found.positions, np.concatenate([a.positions for a in made]), atol=1e-12)
    np.testing.assert_allclose(found.forces, np.concatenate([a.get_forces(apply_constraint=False) for a in made]))
    np.testing.assert_allclose(found.stress, [a.get_stress(voigt=False) for a in made])
    np.testing.assert_allclose(found.cell, [a.cell.array for a in made])
    np.testing.assert_array_equal(found.pbc, [a.pbc for a in made])
    assert [found.group_names[g] for g in found.group] == [f"s{i % 2}" for i in range(7)]
    assert [found.name(i) for i in (0, 6)] == [f"a{ending}[1]", f"a{ending}[7]"]  # ids begin at 1


@pytest.mark.parametrize("ending", [".db", ".json", ".aselmdb"])
def test_holes_in_the_ids(tmp_path: Path, read: Any, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    with connect(str(path)) as database:
        for atoms in images():
            database.write(atoms)
        database.delete([2, 3])
    found, _ = read("ase_db", path)
    assert found.row.tolist() == [1, 4, 5, 6, 7]
    assert found.group_names == ("Cu2", "Cu3", "Cu4")


def test_rows_of_json_are_those_of_ase(tmp_path: Path, read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row by row, plain and compressed, wherever the blocks of the file end."""
    path, rng = tmp_path / "a.json", np.random.default_rng(4)
    with connect(str(path)) as database:
        for i, atoms in enumerate(images()):
            data = {"virial": rng.normal(size=(3, 3)), "list": [1.5, 2.0], "5": {"z": np.array([1 + 2j])}, "text": '}"'}
            database.write(atoms, data=data, kind="a", number=i)
        rows = list(database.select())
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(path.read_bytes()))
    names: set[str] = set()
    for block in (1 << 20, 97):
        monkeypatch.setattr(json_stream, "BLOCK", block)
        for file in (path, tmp_path / "b.json.gz"):
            found = list(ase_db.database_rows(file))
            assert len(found) == len(rows)
            for values, row in zip(found, rows, strict=True):
                results = {name: row[name] for name in ("energy", "forces", "stress")}
                expected = {**{str(name): value for name, value in row.data.items()}, **row.key_value_pairs, **results}
                assert values.keys() >= expected.keys()
                names |= expected.keys()
                for name, value in expected.items():
                    np.testing.assert_equal(values[name], value)
                    assert type(values[name]) is type(value)
    assert {"5", "virial", "list", "text", "kind", "number", "energy"} <= names
    assert recognize(tmp_path / "b.json.gz") == "ase_db"
    assert len(read("ase_db", tmp_path / "b.json.gz", virial_key="virial", stress_key=None)[0]) == 7


def test_rows_of_json_that_cannot_be_read(tmp_path: Path, read: Any) -> None:
    path = tmp_path / "a.json"
    with connect(str(path)) as database:
        for atoms in images(4):
            database.write(atoms)
    content = json.loads(path.read_text())
    content["2"]["positions"]["__ndarray__"][0] = [7, 3]
    del content["3"]["numbers"]
    text = json.dumps(content)
    path.write_text(text[:-1] + f', "1": {json.dumps(content["1"])}}}')
    found, quarantine = read("ase_db", path)
    assert found.row.tolist() == [1, 4]
    assert quarantine.counts == {"malformed structure": 3}
    for cut in range(1, len(text), 61):
        path.write_text(text[:cut])
        with pytest.raises(RamifyError, match=r"(truncated|cannot be read as an ASE database|not JSON)(.|\n)*fix: "):
            read("ase_db", path)
    for other in ('{"1": {"numbers": [1]}, "2": {"a": 1 2}}', '{"a": {}}', "[]"):
        path.write_text(other)
        with pytest.raises(RamifyError, match=r"fix: "):
            read("ase_db", path)
    path.rename(tmp_path / "a.db.gz")
    with pytest.raises(RamifyError, match="no extension of ASE databases"):
        read("ase_db", tmp_path / "a.db.gz")


def test_labels_in_data_and_key_value_pairs(tmp_path: Path, read: Any) -> None:
    path = tmp_path / "a.db"
    with connect(str(path)) as database:
        database.write(
            Atoms("H2", [[0, 0, 0], [0, 0, 0.7]]), kind="dimer", data={"U0": np.array([-2.0]), "F": np.ones((2, 3))}
        )
        database.write(Atoms("H"), kind="atom", data={"U0": np.array([-1.0])})
        database.write(Atoms("H"), kind="atom")
    found, quarantine = read(
        "ase_db", path, energy_key="U0", forces_key="F", group_key="kind", units={"energy": "Hartree"}
    )
    np.testing.assert_allclose(found.energy, [-54.4227725, -27.2113862], rtol=1e-7)
    np.testing.assert_allclose(found.forces[:2], 27.2113862, rtol=1e-7)
    assert np.isnan(found.forces[2]).all()
    assert found.group_names == ("dimer", "atom")
    assert quarantine.counts == {"label not computed": 1}
    with pytest.raises(RamifyError, match=r"no 'energy' \(`energy_key`\); it has F, U0, kind"):
        read("ase_db", path)


def stating(path: Path, properties: dict[str, str], length: str = "Ang") -> Path:
    """A database in SchNetPack's layout, which states its units in the metadata."""
    with connect(str(path)) as database:
        atoms = Atoms("H", cell=[2.0, 3.0, 4.0], pbc=True)
        labels = {"energy": np.array([-1.0]), "forces": np.ones((1, 3)), "stress": np.eye(3)}
        database.write(atoms, data=labels)
        database.metadata = {"_property_unit_dict": properties, "_distance_unit": length}
    return path


def test_stated_units_are_taken_and_not_contradicted(tmp_path: Path, read: Any) -> None:
    path = stating(tmp_path / "a.db", {"energy": "kcal/mol"})
    for units in ({}, {"energy": "kcal/mol"}):
        found, _ = read("ase_db", path, units=units)
        assert found.energy[0] == pytest.approx(-0.0433641043, rel=1e-7)
        assert found.forces[0, 0] == pytest.approx(0.0433641043, rel=1e-7)
    with pytest.raises(RamifyError, match=r"energy is in kcal/mol.*as eV(.|\n)*units: \{energy: kcal/mol\}"):
        read("ase_db", path, units={"energy": "eV"})
    with pytest.raises(RamifyError, match="length is in Ang"):
        read("ase_db", path, units={"length": "bohr"})


@pytest.mark.parametrize(
    ("properties", "length", "forces", "stress", "positions"),
    [
        ({"energy": "eV", "forces": "Ha/Bohr"}, "Ang", 51.4220675, 1.0, 1.0),
        ({"energy": "eV", "forces": "kcal/mol/Ang"}, "Ang", 0.0433641043, 1.0, 1.0),
        ({"forces": "eV/Ang", "stress": "GPa"}, "Ang", 1.0, 0.006241509074, 1.0),
        ({"stress": "kbar"}, "Ang", 1.0, 0.0006241509074, 1.0),
        ({"stress": "eV/Ang/Ang/Ang"}, "Angstrom", 1.0, 1.0, 1.0),
        ({"energy": "Ha", "forces": "Ha/Bohr", "stress": "Ha/Bohr^3"}, "Bohr", 51.4220675, 183.6315, 0.529177211),
    ],
)
def test_every_stated_unit_counts(
    tmp_path: Path,
    read: Any,
    properties: dict[str, str],
    length: str,
    forces: float,
    stress: float,
    positions: float,
) -> None:
    path = stating(tmp_path / "a.db", properties, length)
    found, _ = read("ase_db", path)
    assert found.forces[0, 0] == pytest.approx(forces, rel=1e-6)
    assert found.stress[0, 0, 0] == pytest.approx(stress, rel=1e-6)
    assert found.cell[0, 1, 1] == pytest.approx(3 * positions, rel=1e-6)
    for kind, unit in properties.items():
        other = {"energy": "meV", "forces": "meV/bohr", "stress": "bar"}[kind]
        with pytest.raises(RamifyError, match=re.escape(f"{kind} is in {unit}") + f".*{other}"):
            read("ase_db", path, units={kind: other})


def test_a_stated_unit_that_is_unknown_is_asked_for(tmp_path: Path, read: Any) -> None:
    path = stating(tmp_path / "a.db", {"energy": "furlong"})
    with pytest.raises(RamifyError, match=r"energy in 'furlong'(.|\n)*units: \{energy: \.\.\.\}"):
        read("ase_db", path)
    found, _ = read("ase_db", path, units={"energy": "meV"})
    assert found.energy[0] == pytest.approx(-1e-3)


def test_a_label_that_is_no_number_costs_its_row_alone(tmp_path: Path, read: Any) -> None:
    path = tmp_path / "a.db"
    with connect(str(path)) as database:
        for energy in (-1.0, "None", "E-1.5", True, [1.0, 2.0], None):
            database.write(Atoms("H"), data={"e": energy, "f": np.ones((1, 3))})
        database.write(Atoms("H"), data={"e": -2.0, "f": ["x"]})
    found, quarantine = read("ase_db", path, energy_key="e", forces_key="f")
    assert found.energy.tolist() == [-1.0]
    assert quarantine.counts == {"malformed energy": 4, "label not computed": 1, "malformed forces": 1}
    assert "'None' is not a number" in quarantine.first["malformed energy"].detail


def test_lmdb_rows_written_by_hand(tmp_path: Path, read: Any) -> None:
    """Rows as they lie in the files of OMat24 and OMol25: JSON under zlib, arrays packed as `__ndarray__`."""

    def packed(array: np.ndarray) -> dict[str, Any]:
        return {"__ndarray__": [list(array.shape), str(array.dtype), array.reshape(-1).tolist()]}

    rng = np.random.default_rng(0)
    positions, forces = rng.normal(0, 2, (2, 2, 3)).astype(np.float32)
    row = {"numbers": packed(np.array([8, 1])), "positions": packed(positions), "cell": packed(np.eye(3) * 9)}
    row |= {"pbc": packed(np.array([True] * 3)), "ctime": 1.0, "mtime": 1.0, "user": None, "unique_id": "a"}
    row |= {"calculator": "unknown", "calculator_parameters": {}, "energy": -3.5, "forces": packed(forces)}
    row |= {"stress": packed(np.arange(6.0)), "data": {"sid": "s1", "labels": packed(np.zeros(2))}}
    with lmdb.open(str(tmp_path / "a.aselmdb"), subdir=False) as environment, environment.begin(write=True) as rows:
        broken = row | {"positions": packed(positions[:1, :2])}
        for key, value in {"1": row, "2": broken, "nextid": 3, "deleted_ids": []}.items():
            rows.put(key.encode(), zlib.compress(json.dumps(value).encode()))
    found, quarantine = read("ase_db", tmp_path / "a.aselmdb", group_key="sid")
    np.testing.assert_array_equal(found.positions, positions)
    np.testing.assert_array_equal(found.forces, forces)
    np.testing.assert_array_equal(found.stress[0], [[0, 5, 4], [5, 1, 3], [4, 3, 2]])
    assert found.group_names == ("s1",)
    assert quarantine.counts == {"malformed structure": 1}


def test_no_file_is_made_or_changed(tmp_path: Path, read: Any) -> None:
    with pytest.raises(RamifyError, match="does not exist"):
        read("ase_db", tmp_path / "none.db")
    with sqlite3.connect(tmp_path / "other.db") as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    connection.close()
    before = (tmp_path / "other.db").read_bytes()
    with pytest.raises(RamifyError, match="no table 'systems'"):
        read("ase_db", tmp_path / "other.db")
    assert (tmp_path / "other.db").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["other.db"]


@pytest.mark.parametrize("ending", [".db", ".json", ".aselmdb", ".lmdb"])
def test_damaged_files(tmp_path: Path, read: Any, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    if ending == ".lmdb":
        path.write_bytes(b"x")
    else:
        with connect(str(path)) as database:
            for atoms in images(60):
                database.write(atoms)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(
            RamifyError, match=r"cannot be read as an ASE database|extension of ASE databases|truncated"
        ):
            read("ase_db", path)


def test_carbene(shared: Path, read: Any, slope: Any) -> None:
    found, quarantine = read("ase_db", shared / "data/spin_carbene/ase_carbene_2200.db")
    assert len(found) == 2200
    assert quarantine.total == 0
    per_atom = found.energy / 3
    expected = (-3.5536, -3.3112, -3.0880)
    assert (per_atom.min(), np.median(per_atom), per_atom.max()) == pytest.approx(expected, abs=1e-4)
    largest = np.linalg.norm(found.forces, axis=1).reshape(-1, 3).max(axis=1)
    assert largest.max() == pytest.approx(4.465, abs=1e-3)
    assert slope(found) == pytest.approx(1.0, abs=0.05)
