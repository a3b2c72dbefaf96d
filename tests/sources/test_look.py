"""`ramify look`: every format is recognised from the file, and the suggested recipe reads the file."""

import json
import zlib
from pathlib import Path
from typing import Any

import h5py
import lmdb
import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from ase.io import write

from ramify.errors import RamifyError
from ramify.prepare.prepare import prepare_dataset
from ramify.recipe import parse_recipe
from ramify.sources.formats import formats
from ramify.sources.look import look
from ramify.sources.recognize import recognize
from tests.sources.general import test_ase_files, test_deepmd
from tests.sources.materials import test_espresso, test_json_more, test_oc20
from tests.sources.molecules import test_hdf5_more, test_qcml

XYZ = """2
Properties=species:S:1:pos:R:3:dft_forces:R:3 dft_energy={} virial="1 0 0 0 1 0 0 0 1" Lattice="9 0 0 0 9 0 0 0 9"
O 0.0 0.0 0.0 0.1 0.0 0.0
H 0.0 0.0 1.0 -0.1 0.0 0.0
"""


def ase_rows(path: Path) -> None:
    with connect(str(path)) as database:
        database.write(Atoms("H2", [[0, 0, 0], [0, 0, 1]]), data={"ref_energy": -1.0, "ref_forces": np.zeros((2, 3))})


def npz(path: Path) -> None:
    np.savez(path, z=[8, 1], R=np.zeros((3, 2, 3)), E=np.zeros(3), F=np.ones((3, 2, 3)), e_unit="eV", r_unit="Ang")


def lmdb_rows(path: Path) -> None:
    row = {"numbers": [1], "positions": [[0, 0, 0]], "cell": np.eye(3).tolist(), "pbc": [False] * 3, "energy": -1.0}
    row |= {"ctime": 1.0, "mtime": 1.0, "user": None, "unique_id": "a", "calculator": "x", "calculator_parameters": {}}
    with lmdb.open(str(path), subdir=False) as environment, environment.begin(write=True) as rows:
        for key, value in {"1": row, "nextid": 2, "deleted_ids": []}.items():
            rows.put(key.encode(), zlib.compress(json.dumps(value).encode()))


def written(folder: Path, name: str, crystal: Any) -> Path:
    """A file of format `name`."""
    path = folder / {
        "ase_db": "a.db",
        "ase_traj": "a.traj",
        "deepmd": "system",
        "npz": "a.npz",
        "oc20": "0.extxyz.xz",
        "vasp": "vasprun.xml",
        "extxyz": "a.xyz",
    }.get(name, "a.data")
    makers: dict[str, Any] = {
        "ani2x": lambda: test_hdf5_more.write_ani2x(path),
        "spice": lambda: test_hdf5_more.write_spice(path),
        "ase_traj": lambda: test_ase_files.write_traj(path),
        "vasp": lambda: path.write_text(test_ase_files.vasprun()[0]),
        "espresso": lambda: path.write_text(test_espresso.relaxation(3)),
        "deepmd": lambda: test_deepmd.system(path),
        "matpes": lambda: path.write_text(json.dumps(test_json_more.matpes(crystal))),
        "fitsnap": lambda: path.write_text(test_json_more.fitsnap()),
        "jarvis": lambda: path.write_text(json.dumps(test_json_more.records([-3.7, -14.9, -29.7], [1, 4, 8]))),
        "oc20": lambda: test_oc20.write(folder),
        "qcml": lambda: test_qcml.write(path, test_qcml.molecules()),
        "extxyz": lambda: path.write_text("".join(XYZ.format(-1.0 - i) for i in range(3))),
        "ase_db": lambda: ase_rows(path),
        "npz": lambda: npz(path),
    }
    makers[name]()
    return path


NAMES = (
    *("ani2x", "spice", "ase_traj", "vasp", "espresso", "deepmd", "matpes", "fitsnap"),
    *("jarvis", "oc20", "qcml", "extxyz", "ase_db", "npz"),
)


@pytest.mark.parametrize("name", NAMES)
def test_formats_are_told_from_files_and_recipes_read_them(tmp_path: Path, read: Any, crystal: Any, name: str) -> None:
    path = written(tmp_path, name, crystal)
    found = look(path)
    assert found.format == name
    assert found.structures > 0
    assert found.whole
    (entry,) = yaml.safe_load(found.recipe)["datasets"].values()
    keys = {key: value for key, value in entry.items() if key not in ("format", "path")}
    whole, _ = read(entry["format"], Path(entry["path"]), **keys)
    assert len(whole) == found.structures
    assert found.labels["energy"] == found.structures
    assert json.loads(json.dumps(found.as_data()))["format"] == name
    assert found.keys
    for line in found.recipe, *found.doubts:
        assert line.strip()


def test_keys_of_outputs_and_trajectories(tmp_path: Path, crystal: Any) -> None:
    """The charge of a calculation and the values of its frames are among the keys, and in the recipe."""
    path = tmp_path / "pw.out"
    path.write_text(test_espresso.head(electrons=7.0) + test_espresso.results(0) + test_espresso.END)
    found = look(path)
    assert {"energy", "forces", "stress", "charge"} <= found.keys.keys()
    assert found.keys["forces"] == "float64 (2, 3)"
    assert yaml.safe_load(found.recipe)["datasets"]["pw"]["charge_key"] == "charge"
    assert found.states == {"charge +1, spin not stated": 1}
    assert look(written(tmp_path, "ase_traj", crystal)).keys["run"] == "str r0"
    assert look(written(tmp_path, "vasp", crystal)).keys["free_energy"].startswith("float64 -8")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("ani1x_mini/ani1x-mini.h5", "ani1x"),
        ("qm7x_mini/1000.hdf5", "qm7x"),
        ("transition1x_mini/Transition1x-mini.h5", "transition1x"),
        ("mptrj_mini/MPtrj_mini.json", "mptrj"),
        ("alexandria_mini/alexandria_mini_000.json.bz2", "alexandria"),
    ],
)
def test_embedded_datasets_are_told(corpora: Path, file: str, name: str) -> None:
    assert recognize(corpora / file) == name


def test_real_files_are_told(shared: Path) -> None:
    for file, name in {
        "mlearn_pbe_vasp/Mo/training.json": "mlearn",
        "mlearn_pbe_vasp/Cu_alignn_id_prop.json": "jarvis",
        "qm7x_npz/qm7x_226.npz": "npz",
        "spin_carbene/ase_carbene_2200.db": "ase_db",
        "ani_comp6_s66x8/s66x8_wb97x6-31gd.h5": "ani1",
        "gst_vasp/validate.xyz": "extxyz",
    }.items():
        assert recognize(shared / "data" / file) == name


def test_what_is_found_in_a_file_with_names_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a.xyz"
    path.write_text("".join(XYZ.format(-1.0 - i) for i in range(3)) + XYZ.format("None"))
    found = look(path)
    assert found.keys["dft_energy"].startswith("float64 -1.0")
    assert found.keys["dft_forces"] == "float64 (2, 3)"
    assert found.keys["virial"].endswith("(3, 3)")
    (entry,) = yaml.safe_load(found.recipe)["datasets"].values()
    assert (entry["energy_key"], entry["forces_key"], entry["virial_key"]) == ("dft_energy", "dft_forces", "virial")
    assert found.labels == {"energy": 3, "forces": 3, "stress": 3}
    assert found.elements == ["H", "O"]
    assert found.energy_per_atom == (-1.5, -0.5)
    assert found.max_force == pytest.approx(0.1)
    assert found.left_out == {"malformed energy": 1}
    said = "\n".join(found.doubts)
    for fact in ("states no units", "1 group(s)", "a.xyz[3]"):
        assert fact in said


def test_the_recipe_of_a_trajectory_can_be_prepared(tmp_path: Path) -> None:
    """One molecule is one group, which a split by groups cannot divide."""
    frames = []
    for step in range(40):
        stretch = 0.005 * step - 0.1
        frames.append(Atoms("OH", [[0, 0, 0], [0, 0, 1 + stretch]]))
        forces = 20 * stretch * np.array([[0, 0, 1], [0, 0, -1]])
        frames[-1].calc = SinglePointCalculator(frames[-1], energy=10 * stretch**2 - 5, forces=forces)
    write(tmp_path / "a.xyz", frames)
    found = look(tmp_path / "a.xyz")
    assert any("1 group(s), too few to divide" in doubt for doubt in found.doubts)
    options = parse_recipe(yaml.safe_load(found.recipe), "test").datasets["a"]
    manifest = prepare_dataset("a", options, tmp_path / "stores", base=tmp_path)
    assert [manifest.splits[name].structures for name in ("train", "val", "test")] == [32, 4, 4]


def test_a_database_in_lmdb(tmp_path: Path) -> None:
    lmdb_rows(tmp_path / "a.aselmdb")
    for _ in range(2):  # it is closed each time
        found = look(tmp_path / "a.aselmdb")
        assert (found.format, found.structures) == ("ase_db", 1)


def test_units_of_the_metadata_of_a_database_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    ase_rows(path)
    assert any("states no units" in doubt for doubt in look(path).doubts)
    with connect(str(path)) as database:
        database.metadata = {"_property_unit_dict": {"energy": "eV", "forces": "Ha/Bohr"}, "_distance_unit": "Ang"}
    found = look(path)
    assert found.keys["unit of forces"] == "Ha/Bohr"
    assert not any("states no units" in doubt for doubt in found.doubts)


def test_units_and_spins_by_their_scale(tmp_path: Path, read: Any) -> None:
    """Energies of all-electron atoms in kcal/mol, and numbers of unpaired electrons: the recipe to paste reads them."""
    images = []
    for k in range(30):
        atoms = Atoms("CH2", [[0, 0, 0], [0.9, 0.6, 0], [-0.9, 0.6 + 0.01 * k, 0]])
        energy = -39.1 * 627.5094740631 + k  # of CH2 in kcal/mol
        atoms.info = {"charge": 0, "spin": 2 * (k % 2)}
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=np.zeros((3, 3)))
        images.append(atoms)
    write(tmp_path / "a.xyz", images, format="extxyz")
    found = look(tmp_path / "a.xyz")
    (entry,) = yaml.safe_load(found.recipe)["datasets"].values()
    assert entry["units"] == {"energy": "kcal/mol"}
    assert entry["spin_is"] == "unpaired"
    assert found.energy_per_atom is not None
    assert found.energy_per_atom[0] == pytest.approx(-39.1 * 27.211386 / 3, rel=1e-6)
    assert found.states == {"charge 0, multiplicity 1": 15, "charge 0, multiplicity 3": 15}
    said = "\n".join(found.doubts)
    for fact in ("unpaired electrons", "in kcal/mol, not in eV", "forces of exact zeros"):
        assert fact in said
    assert "states no units" not in said
    for energy, images_of in ((-39.1 * 27.211386, images), (-18.0, images)):  # right, or of a plane-wave code
        for atoms in images_of:
            atoms.calc.results["energy"] = energy
        write(tmp_path / "b.xyz", images_of, format="extxyz")
        assert "units" not in yaml.safe_load(look(tmp_path / "b.xyz").recipe)["datasets"]["b"]


def test_texts_are_shown(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", z=[1], R=np.zeros((2, 1, 3)), E=np.zeros(2), e_unit="kcal/mol", theory=["PBE"])
    found = look(tmp_path / "a.npz")
    assert found.keys["theory"] == "str PBE"
    assert found.units == "e_unit: kcal/mol"
    with h5py.File(tmp_path / "a.h5", "w") as file:
        group = file.create_group("m")
        group["species"], group["coordinates"] = np.array([b"H", b"H"]), np.zeros((1, 2, 3), np.float32)
        group["energies"], group["lot"] = np.array([-1.1]), np.array([b"wb97x"])
    assert look(tmp_path / "a.h5").keys["lot"] == "str wb97x"
    assert look(tmp_path / "a.h5").theory.startswith("ωB97X")


def test_what_is_no_dataset(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(RamifyError, match="no known format: it begins with b'hello'"):
        look(tmp_path / "a.txt")
    with lmdb.open(str(tmp_path / "a.lmdb"), subdir=False) as environment, environment.begin(write=True) as rows:
        rows.put(b"0", b"a pickle")
    with pytest.raises(RamifyError, match=r"LMDB file.*\n.*`\.aselmdb`.*pickles"):
        look(tmp_path / "a.lmdb")
    with pytest.raises(RamifyError, match="does not exist"):
        look(tmp_path / "none")
    with pytest.raises(RamifyError, match="is a folder"):
        look(tmp_path)
    with pytest.raises(RamifyError, match=r"--format xyz: accepted are .*extxyz"):
        look(tmp_path / "a.txt", "xyz")
    assert set(NAMES) <= set(formats())
