"""qm7x_mini: PBE0/def2-SVP minima and displaced geometries in the HDF5 layout of QM7-X.

    python tools/minicorpora/make_qm7x_mini.py --out OUT --workers 2

A group is a molecule; its sub-groups are Geom-m<M>-i1-c1-opt (GFN2-xTB minimum) and ...-d<k> (1500 K normal modes).
"""

import json
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from ase.units import Hartree
from molecules import PBE0, from_smiles, is_sane, label, normal_modes, thermal
from tasks import Arrays, load_result, parser, run_tasks, seed_of

DISPLACED = 11
SMILES = """C N O S Cl CC CO CN CS CCl C=O C=S C#N C=C C#C OCl NN
CCO CCN CCS CCCl CSC COC CC=O CC#N ClCCl CS=O O=S=O O=C=S SC=O NC=S OCS ClC=C N#CCl CC=S C1CS1 ClC=O
CC(=O)C CC(=O)O CC(=S)N CS(=O)C C=CC#N NC(N)=S NCC=O ClCCO CC(=O)Cl C1CCO1 N#CC#N OCC=O"""


@dataclass(frozen=True)
class Molecule:
    """One task: the molecule that the file calls `number`."""

    number: int
    smiles: str

    @property
    def key(self) -> str:
        """Name of the result file."""
        return f"{self.number:03d}"


MOLECULES = [Molecule(i, s) for i, s in enumerate(SMILES.split(), 1)]


def label_molecule(task: Molecule) -> Arrays:
    """The minimum and its displaced geometries; Å, Hartree, Hartree/Å."""
    rng = np.random.default_rng(seed_of("qm7x", task.smiles))
    minimum = from_smiles(task.smiles)
    modes, numbers = normal_modes(minimum), minimum.numbers
    positions = [minimum.positions - minimum.positions.mean(0)]
    while len(positions) < DISPLACED + 1:
        moved = thermal(minimum, modes, 1500.0, rng)
        if is_sane(numbers, moved):
            positions.append(moved)
    energy, forces, density = [], [], None
    for moved in positions:
        e, f, density = label(numbers, moved, PBE0, density)
        energy.append(e)
        forces.append(f)
    return {"numbers": numbers, "positions": positions, "energy": energy, "forces": forces}


def write_molecule(file: h5py.File, molecule: int, result: Arrays) -> int:
    """Writes all geometries of one molecule, in eV and eV/Å; returns their number."""
    geometries = zip(result["positions"], result["energy"], result["forces"], strict=True)
    for k, (positions, energy, forces) in enumerate(geometries):
        group = file.create_group(f"{molecule}/Geom-m{molecule}-i1-c1-" + (f"d{k}" if k else "opt"))
        group["atNUM"] = result["numbers"].astype("i8")
        group["atXYZ"] = positions
        group["ePBE0"] = np.array([energy * Hartree])
        group["pbe0FOR"] = forces * Hartree
    return len(result["energy"])


def assemble(work: Path, path: Path) -> None:
    """Writes the file at `path` from the finished tasks in `work`."""
    used, structures = [], 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for task in MOLECULES:
            result = load_result(work, task.key)
            if result is not None:
                structures += write_molecule(file, task.number, result)
                used.append(task.smiles)
        made_by, level = "tools/minicorpora/make_qm7x_mini.py", f"RKS-{PBE0.name}, density fitting"
        file.attrs["provenance"] = json.dumps({"made_by": made_by, "level": level, "code": "PySCF", "smiles": used})
    print(f"{path}: {len(used)} molecules, {structures} structures")


def main() -> None:
    """Labels the missing tasks and writes the file."""
    args = parser(__doc__).parse_args()
    work = args.out / "work" / "qm7x"
    if not args.assemble_only:
        run_tasks(label_molecule, MOLECULES[: args.limit], work, args.workers)
    assemble(work, args.out / "qm7x_mini" / "1000.hdf5")


if __name__ == "__main__":
    main()
