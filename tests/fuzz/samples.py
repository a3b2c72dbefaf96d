"""A small good file of every format, for the fuzz tests to damage."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zstandard
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from ase.io import write

from ramify.minicorpora import FILES
from tests.sources.general.test_ase_files import outcar as outcar_text
from tests.sources.general.test_ase_files import vasprun as vasprun_text
from tests.sources.general.test_ase_files import write_traj
from tests.sources.general.test_deepmd import system
from tests.sources.general.test_deepmd_lmdb import frames, write_lmdb
from tests.sources.general.test_parquet import crystals, write_parquet
from tests.sources.materials.test_espresso import relaxation as espresso_text
from tests.sources.materials.test_json_more import fitsnap as fitsnap_text
from tests.sources.materials.test_json_more import matpes as matpes_records
from tests.sources.materials.test_json_more import records as jarvis_records
from tests.sources.materials.test_oc20 import write as write_oc20
from tests.sources.molecules.test_hdf5_more import write_ani2x, write_spice
from tests.sources.molecules.test_qcml import molecules
from tests.sources.molecules.test_qcml import write as write_qcml


def images() -> list[Atoms]:
    """Four labelled crystals."""
    rng = np.random.default_rng(1)
    made = []
    for k in range(4):
        atoms = Atoms("CuO", rng.normal(0, 2, (2, 3)), cell=np.eye(3) * 4, pbc=[True, True, k % 2 == 0])
        stress = rng.normal(0, 0.1, 6)
        atoms.calc = SinglePointCalculator(atoms, energy=-1.0 - k, forces=rng.normal(0, 1, (2, 3)), stress=stress)
        made.append(atoms)
    return made


def extxyz(path: Path) -> None:
    """Frames with energy, forces and stress."""
    write(path, images(), format="extxyz")


def database(path: Path) -> None:
    """An ASE database: SQLite, JSON or LMDB, by its ending."""
    with connect(str(path)) as opened:
        for k, atoms in enumerate(images()):
            opened.write(atoms, data={"sid": f"s{k}"})


def npz(path: Path) -> None:
    """Padded molecules."""
    np.savez(path, **arrays())  # type: ignore[arg-type]


def arrays() -> dict[str, np.ndarray]:
    """Arrays of the format `npz`."""
    rng = np.random.default_rng(2)
    z = np.array([[8, 1, 1], [1, 1, 0], [6, 8, 0]])
    return {"z": z, "R": rng.normal(0, 1, (3, 3, 3)), "F": rng.normal(0, 1, (3, 3, 3)), "E": rng.normal(-5, 1, (3, 1))}


def mptrj(path: Path) -> None:
    """The first two materials of the embedded extract."""
    path.write_text(json.dumps(dict(islice(json.loads(FILES["mptrj_mini"].read_text()).items(), 2))))


def alexandria(path: Path) -> None:
    """The first two entries of the embedded extract."""
    content = json.loads(bz2.decompress(FILES["alexandria_mini"].read_bytes()))
    path.write_text(json.dumps(content | {"entries": content["entries"][:2]}))


def mlearn(path: Path) -> None:
    """Two records in the original form."""
    site = {"species": [{"element": "Si", "occu": 1}], "abc": [0, 0, 0], "xyz": [0.0, 0.0, 0.0], "label": "Si"}
    structure = {"lattice": {"matrix": (4.0 * np.eye(3)).tolist()}, "sites": [site], "charge": 0.0}
    outputs = {"energy": -5.0, "forces": [[0.1, 0.0, 0.0]], "virial_stress": [1.0] * 6}
    record = {"structure": structure, "outputs": outputs, "element": "Si", "group": "Elastic", "description": "Si"}
    path.write_text(json.dumps([record, record | {"group": "AIMD"}]))


def _first_groups(source: str, path: Path, count: int) -> None:
    """The first groups of an embedded HDF5 file."""
    with h5py.File(FILES[source]) as old, h5py.File(path, "w") as new:
        for name in islice(old, count):
            old.copy(name, new)


def ani1x(path: Path) -> None:
    """The first formula of the embedded extract."""
    _first_groups("ani1x_mini", path, 1)


def qm7x(path: Path) -> None:
    """One molecule of the embedded extract with three conformers."""
    with h5py.File(FILES["qm7x_mini"]) as old, h5py.File(path, "w") as new:
        molecule = next(iter(old))
        for conformer in islice(old[molecule], 3):
            old.copy(f"{molecule}/{conformer}", new.require_group(molecule))


def transition1x(path: Path) -> None:
    """The embedded extract."""
    path.write_bytes(FILES["transition1x_mini"].read_bytes())


def ani1(path: Path) -> None:
    """Two molecules in the older layout."""
    rng = np.random.default_rng(3)
    with h5py.File(path, "w") as file:
        for k in range(2):
            group = file.create_group(f"gdb11_s01/gdb11_s01-{k}")
            group["species"] = np.array([b"O", b"H", b"H"])
            group["coordinates"] = rng.normal(0, 1, (4, 3, 3)).astype(np.float32)
            group["energies"] = rng.normal(-76, 0.1, 4)
            group["forces"] = rng.normal(0, 0.1, (4, 3, 3))


def crystal(species: list[str], xyz: list[list[float]], matrix: list[list[float]]) -> dict[str, Any]:
    """A structure as pymatgen writes it."""
    inverse = np.linalg.inv(matrix)
    sites = [
        {"species": [{"element": s, "occu": 1}], "xyz": r, "abc": (np.array(r) @ inverse).tolist(), "label": s}
        for s, r in zip(species, xyz, strict=True)
    ]
    return {"@class": "Structure", "lattice": {"matrix": matrix}, "sites": sites}


def matpes(path: Path) -> None:
    """Three records of MatPES."""
    path.write_text(json.dumps(matpes_records(crystal, 3)))


def fitsnap(path: Path) -> None:
    """One configuration of FitSNAP, without the comment before it."""
    path.write_text(fitsnap_text(header=False))


def jarvis(path: Path) -> None:
    """Three records of JARVIS, of like energies per atom."""
    path.write_text(json.dumps(jarvis_records([-3.7, -14.9, -29.7], [1, 4, 8])))


def oc20(path: Path) -> None:
    """Frames of OC20 with the text that is read with them."""
    made = write_oc20(path.parent, packed=False)
    made.with_suffix(".txt").rename(path.with_suffix(".txt"))
    made.rename(path)


def deepmd(path: Path) -> None:
    """A system of DeePMD, by its `type.raw`."""
    system(path.parent)


def qcml(path: Path) -> None:
    """Molecules of QCML."""
    write_qcml(path, molecules(3))


def vasprun(path: Path) -> None:
    """Two ionic steps of VASP."""
    path.write_text(vasprun_text(2)[0])


def outcar(path: Path) -> None:
    """Two ionic steps of VASP."""
    path.write_text(outcar_text(2)[0])


def packed(pack: Callable[[bytes], bytes], make: Callable[[Path], None]) -> Callable[[Path], None]:
    """A function that writes a compressed file."""

    def write_packed(path: Path) -> None:
        plain = path.with_suffix("")  # ASE packs by the ending
        make(plain)
        path.write_bytes(pack(plain.read_bytes()))

    return write_packed


def espresso(path: Path) -> None:
    """A relaxation of the cell by pw.x."""
    path.write_text(espresso_text(2))


def trajectory(path: Path) -> None:
    """Frames of ASE."""
    write_traj(path, 3)


def ani2x(path: Path) -> None:
    """Two numbers of atoms of ANI-2x."""
    write_ani2x(path)


def spice(path: Path) -> None:
    """Two molecules of SPICE."""
    write_spice(path, 2)


def deepmd_lmdb(path: Path) -> None:
    """Frames of DeePMD-kit in LMDB."""
    (write_lmdb(path.parent / f"{path.stem}.lmdb", frames()) / "data.mdb").rename(path)


def parquet(path: Path) -> None:
    """Rows of ColabFit."""
    write_parquet(path, crystals())


JSON: dict[str, tuple[str, Callable[[Path], None], dict[str, Any]]] = {
    "mptrj": (".json", mptrj, {}),
    "alexandria": (".json", alexandria, {}),
    "mlearn": (".json", mlearn, {}),
    "ase_db": (".json", database, {}),
    "matpes": (".json", matpes, {}),
    "fitsnap": (".json", fitsnap, {}),
    "jarvis": (".json", jarvis, {}),
}
"""By format: ending, who writes a good file, keys of the recipe."""
BYTES = JSON | {
    "extxyz": (".extxyz", extxyz, {}),
    "npz": (".npz", npz, {"units": {"energy": "eV", "forces": "eV/Å", "length": "Å"}}),
    "ase_db.db": (".db", database, {}),
    "ase_traj": (".traj", trajectory, {}),
    "deepmd": ("/type.raw", deepmd, {}),
    "oc20": (".extxyz", oc20, {}),
    "qcml": (".tfrecord", qcml, {"length": "bohr"}),
    "vasp": (".xml", vasprun, {}),
    "vasp.OUTCAR": (".OUTCAR", outcar, {"unfinished": "read"}),
    "extxyz.gz": (".xyz.gz", packed(gzip.compress, extxyz), {}),
    "extxyz.xz": (".xyz.xz", packed(lzma.compress, extxyz), {}),
    "extxyz.bz2": (".xyz.bz2", packed(bz2.compress, extxyz), {}),
    "extxyz.zst": (".xyz.zst", packed(zstandard.compress, extxyz), {}),
    "espresso": (".out", espresso, {"unfinished": "read"}),
}
HDF5: dict[str, tuple[str, Callable[[Path], None], dict[str, Any]]] = {
    "ani1": (".h5", ani1, {}),
    "ani1x": (".h5", ani1x, {}),
    "ani2x": (".h5", ani2x, {}),
    "spice": (".h5", spice, {}),
    "qm7x": (".hdf5", qm7x, {"labels": "pbe0"}),
    "transition1x": (".h5", transition1x, {}),
}
LIBRARIES: dict[str, tuple[str, Callable[[Path], None], dict[str, Any]]] = {
    "ase_db.aselmdb": (".aselmdb", database, {}),
    "deepmd_lmdb": (".mdb", deepmd_lmdb, {}),
    "parquet": (".parquet", parquet, {}),
}
"""Formats besides HDF5 whose bytes are read by libraries in C."""
