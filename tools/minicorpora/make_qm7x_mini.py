"""qm7x_mini: PBE0/def2-SVP minima and displaced geometries in the HDF5 layout of QM7-X.

    python tools/minicorpora/make_qm7x_mini.py --out OUT --workers 2

A group is a molecule; its sub-groups are Geom-m<M>-i1-c1-opt (GFN2-xTB minimum) and ...-d<k> (1500 K normal modes). A
second round (`--second-round`) adds displaced geometries to molecules of an earlier file.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from ase.units import Hartree
from molecules import (
    PBE0,
    SECOND_ROUND,
    chosen,
    from_smiles,
    is_sane,
    label,
    missing,
    molecule_parser,
    names_in,
    new_file,
    normal_modes,
    thermal,
    with_one_round,
)
from tasks import Arrays, load_result, run_tasks, seed_of

FILE = "qm7x_mini/1000.hdf5"
DISPLACED = {1: 11, 31: 4}  # geometries of the molecules from this number on: fewer of the larger ones
MAX_STRAIN = 0.09  # Hartree per atom, 2.4 eV: geometries of the second round are less above the minimum
MORE = (31, 8)  # the second round: of the molecules from this number on, so many geometries
SMILES = """C N O S Cl CC CO CN CS CCl C=O C=S C#N C=C C#C OCl NN
CCO CCN CCS CCCl CSC COC CC=O CC#N ClCCl CS=O O=S=O O=C=S SC=O NC=S OCS ClC=C N#CCl CC=S C1CS1 ClC=O
CC(=O)C CC(=O)O CC(=S)N CS(=O)C C=CC#N NC(N)=S NCC=O ClCCO CC(=O)Cl C1CCO1 N#CC#N OCC=O
NO C=N CC=N NCCl C=C=S NCS NC=O N=C=O SCS CON OCCl S=C=S O=C=O CCC SCCl N=CN CNN C=CC O=NO C#CC O=CO N=C=S N=C=N N=CCl
NOCCl C=CNC NNCCl N=CNO CC#CC CN=C=N NC(Cl)Cl CCCCl CCC#N N=C=NN N#CC=O ClC=CCl SC=CS NCCO C=NNC C=C(C)S N=C=CS CC=CCl
O=C(Cl)Cl N=C(S)S COC#N O=C(S)S ONCS C=C(S)Cl OC(=S)Cl CNCS O=CCS NC(S)Cl NC(=S)Cl SCCS O=C(O)O C#CCS C#CCO C#CC=O
N=C(N)Cl CN=CCl O=C(O)S N=C(Cl)Cl N=CNN NC(O)=S CC(N)Cl OCCO SC(S)Cl SC(Cl)Cl N=C(O)Cl SCCCl C#CC#N NN=C=O ClC(Cl)Cl
N=C(O)O NNCS ClCCCl OC(Cl)Cl NN=C=S N#CC=N C#CC=C N#CCCl S=C=C=S NC(S)S C#CC#C SC(S)S C#CCCl O=C(O)Cl COC(=N)O S=CNCS
ClC=CCCl N=C(N)CCl CN(N)C=O COC(=S)S C=NC(=N)Cl O=CC(S)Cl N=C=NC=O OC(Cl)CCl O=CCCO C=C(S)NN C=C(Cl)OC c1css1
SC(S)(Cl)Cl N#COC#N C#CCC=C C=CC(=O)S O=C=NCS N#CC=CCl C=CN=C=S N#CCCCl COC(=O)O CNOCCl CNOC=S C=CC(S)S C=CC(=N)O
N=COCCl O=COCCl C=NC(Cl)Cl SC=C(S)S C#CC(=N)N NN=C(N)O O=CC(=O)O N=C=CC=O N=C(S)NO ONC(S)S N#CCNO SC=C(Cl)Cl
CC(S)(Cl)Cl NN=C(N)Cl N#CC(S)Cl OC(Cl)CS CNC=C=N N#CCCS CCC(Cl)Cl C#CC(=O)O C=C(C)C=O N=C=NCS N=CC(=N)N CC(S)(S)S
N=C(S)NN O=CN=CCl O=C(S)NO"""


@dataclass(frozen=True)
class Molecule:
    """One task: the molecule that the file calls `number`; the second round has no minimum."""

    number: int
    smiles: str
    displaced: int
    second: bool = False

    @property
    def key(self) -> str:
        """Name of the result file."""
        return f"{self.number:03d}-2" if self.second else f"{self.number:03d}"

    @property
    def seed(self) -> int:
        """Of the displacements."""
        return seed_of("qm7x", self.smiles, *([2] if self.second else []))


MOLECULES = [
    Molecule(i, s, DISPLACED[max(first for first in DISPLACED if first <= i)]) for i, s in enumerate(SMILES.split(), 1)
]
SECOND = [Molecule(m.number, m.smiles, MORE[1], second=True) for m in MOLECULES if m.number >= MORE[0]]


def label_molecule(task: Molecule) -> Arrays:
    """The displaced geometries, before them the minimum in the first round; Å, Hartree, Hartree/Å."""
    rng = np.random.default_rng(task.seed)
    minimum = from_smiles(task.smiles)
    modes, numbers = normal_modes(minimum), minimum.numbers
    positions = [] if task.second else [minimum.positions - minimum.positions.mean(0)]
    while len(positions) < task.displaced + (not task.second):
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
    """Writes the geometries of one task after those that the molecule has, in eV and eV/Å; returns their number."""
    geometries = zip(result["positions"], result["energy"], result["forces"], strict=True)
    held = len(file.require_group(str(molecule)))
    for k, (positions, energy, forces) in enumerate(geometries, held):
        group = file.create_group(f"{molecule}/Geom-m{molecule}-i1-c1-" + (f"d{k}" if k else "opt"))
        group["atNUM"] = result["numbers"].astype("i8")
        group["atXYZ"] = positions
        group["ePBE0"] = np.array([energy * Hartree])
        group["pbe0FOR"] = forces * Hartree
    return len(result["energy"])


def without_strained(file: h5py.File, molecule: int, result: Arrays) -> Arrays:
    """The geometries that are not too far above the minimum of the molecule, which `file` holds."""
    minimum = file[f"{molecule}/Geom-m{molecule}-i1-c1-opt/ePBE0"][0] / Hartree
    keep = result["energy"] - minimum < MAX_STRAIN * len(result["numbers"])
    return result | {name: result[name][keep] for name in ("positions", "energy", "forces")}


def copy_molecules(earlier: Path, file: h5py.File) -> int:
    """Copies all molecules of an earlier file; returns the number of their geometries."""
    with h5py.File(earlier) as old:
        for molecule, geometries in old.items():
            for geometry, columns in geometries.items():
                for column, values in columns.items():  # `old.copy` would keep their larger headers
                    file[f"{molecule}/{geometry}/{column}"] = values[...]
        return sum(len(group) for group in old.values())


def assemble(work: Path, path: Path, earlier: Path | None) -> None:
    """Writes the file at `path` from an earlier one and the finished tasks in `work`."""
    used, used_twice = names_in(earlier, "smiles"), names_in(earlier, SECOND_ROUND)
    with new_file(path) as file:
        structures = copy_molecules(earlier, file) if earlier else 0
        tasks = [(task, used) for task in missing(MOLECULES, earlier, "smiles")]
        tasks += [(task, used_twice) for task in with_one_round(SECOND, earlier, "smiles")]
        for task, names in tasks:
            result = load_result(work, task.key)
            if result is not None:
                kept = without_strained(file, task.number, result) if task.second else result
                structures += write_molecule(file, task.number, kept)
                names.append(task.smiles)
        made_by, level = "tools/minicorpora/make_qm7x_mini.py", f"RKS-{PBE0.name}, density fitting"
        source = {"made_by": made_by, "level": level, "code": "PySCF", "smiles": used, SECOND_ROUND: used_twice}
        file.attrs["provenance"] = json.dumps(source)
    print(f"{path}: {len(used)} molecules, {structures} structures")


def main() -> None:
    """Labels the missing tasks and writes the file."""
    args = molecule_parser(__doc__).parse_args()
    earlier = args.earlier and args.earlier / FILE
    work = args.out / "work" / "qm7x"
    if not args.assemble_only:
        run_tasks(label_molecule, chosen(args, MOLECULES, SECOND, earlier, "smiles"), work, args.workers)
    assemble(work, args.out / FILE, earlier)


if __name__ == "__main__":
    main()
