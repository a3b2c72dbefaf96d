"""ani1x_mini: wB97X/6-31G(d) conformers of C, H, N, O molecules in the HDF5 layout of the ANI-1x release.

    python tools/minicorpora/make_ani1x_mini.py --out OUT --workers 2

Groups of the file are compositions; isomers share one. A second round (`--second-round`) adds conformers to molecules
of an earlier file.
"""

import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from ase.data import chemical_symbols
from molecules import (
    SECOND_ROUND,
    WB97X,
    Array,
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

FILE = "ani1x_mini/ani1x-mini.h5"
CONFORMERS = {0: 16, 21: 10, 50: 6}  # of the molecules from this place of the list on: fewer of the larger ones
MORE = (50, 8)  # the second round: from this place of the list on, so many conformers
MAX_FORCE = 1.0  # Hartree/Å, on any component: the few more strained geometries are dropped
MAX_STRAIN = 0.4  # Hartree above the lowest geometry of the molecule in its round, 10.9 eV: so are these
UNLABELLED_GROUPS = (5, 15, 25)  # get one row of NaN each, as the release has them
SMILES = """C N O CC C=C C#C CN CO C=O C#N NN OO N=N C=N NO [C-]#[O+] N#N
CCC CC=C CC#C C1CC1 C=C=C C1=CC1 CCN CNC CCO COC CC=O C=CO C1CO1 CC#N [C-]#[N+]C OC=O NC=O OCO O=C=O
CC=N C=CN C1CN1 C=NC NCN NCO CNN CON N#CN C=NO C=C=O CNO NC=N O=NO NN=O N=C=O C=[N+]=[N-]
CC(=O)C CCC=O CC(=O)O COC=O OCC=O CC(N)=O CNC=O NCC=O NC(N)=O CCCO COCC CC(O)C CCCN CC(C)N CN(C)C CCNC
CCCC CC(C)C C1CCC1 C=CC=C C=CC=O O=CC=O C=CC#N C1CCO1 CCC#N CC=NO C=C(O)C NCCO OCCO
N#CO C=NN N#CCO N#CCN N=CNO N=CCN C#CC=O C=NNC CC(C)=N C#CCC CON=O C=CC=N C=CNC N=C=NN COC#N N=CNN CN=C=N N#CC=O
NN=C=O NC(=O)O N#CC=N C#CCO CCNO N#CON NC=NN C#CC#N C#CC=C C#CC#C N#CC#N C#CC=N O=C(O)O NC(=O)C=O N=C=CCN C#CC(=N)O
N=CC(=N)N CC(=N)C=N NN=C(O)O COC=NN CC(=O)NN COCC#N O=C=NC=O C#CCN=C COCC=O CC=NC=O C=CN=C=O C=COC=O N=C(N)ON C=NN=CO
N=CC=NN N=CN=C=O C=C(C)C=O C=CC(=O)O C=C=NC=N N#COC=O CNOC=O N#CC(=N)O CC#CC#N C=NC(=O)O O=CC(=O)O C=NNC=O C=C=NN=C
NCC(=O)O NOC(N)=O NN=C=NN NN=C(N)O O=COC=O C=CCC#N C=CCC=O CCOC=O O=C(O)NO NN=CNN N#COC#N C#CCC=O N=C(N)NN
c1n[nH][nH]1 C#CC=CC N#CC=C=N N#CC(=N)N C=NN=C=N C#CCC#N C#CC#CC O=C(O)CO CC#CC=O C=CC#CC N#CON=O C#CC(=O)O N#CCC#N
C#CCC#C COC(=O)O NOC(=O)O"""


@dataclass(frozen=True)
class Molecule:
    """One task: `conformers` labelled geometries of `smiles`."""

    key: str
    smiles: str
    conformers: int
    seed: int


MOLECULES = [
    Molecule(f"{i:03d}", s, CONFORMERS[max(first for first in CONFORMERS if first <= i)], seed_of("ani1x", s))
    for i, s in enumerate(SMILES.split())
]
SECOND = [Molecule(f"{m.key}-2", m.smiles, MORE[1], seed_of("ani1x", m.smiles, 2)) for m in MOLECULES[MORE[0] :]]


def label_molecule(task: Molecule) -> Arrays:
    """Labelled conformers of one molecule and one unlabelled spare; Å, Hartree, Hartree/Å."""
    rng = np.random.default_rng(task.seed)
    minimum = from_smiles(task.smiles)
    modes, numbers = normal_modes(minimum), minimum.numbers
    positions: list[Array] = []
    energy, forces, density = [], [], None
    while len(positions) < task.conformers + 1:
        if len(positions) % 3 < 2:  # two of three: normal modes
            moved = thermal(minimum, modes, rng.uniform(100, 1500), rng, rattle=0.01)
        else:  # one of three: rattle alone
            moved = thermal(minimum, modes, 1.0, rng, rattle=rng.uniform(0.02, 0.15))
        if not is_sane(numbers, moved):
            continue
        moved = moved.astype("f4").astype("f8")  # label exactly the positions in the file
        if len(positions) < task.conformers:
            e, f, density = label(numbers, moved, WB97X, density)
            energy.append(e)
            forces.append(f)
        positions.append(moved)
    return {"numbers": numbers, "positions": positions[:-1], "energy": energy, "forces": forces, "spare": positions[-1]}


def in_file_order(result: Arrays) -> Arrays:
    """`result` without strained geometries, atoms by decreasing atomic number: the same order for all isomers."""
    keep = np.abs(result["forces"]).max((1, 2)) < MAX_FORCE
    keep &= result["energy"] - result["energy"].min() < MAX_STRAIN
    order = np.argsort(-result["numbers"], kind="stable")
    return {
        "numbers": result["numbers"][order],
        "positions": result["positions"][keep][:, order],
        "energy": result["energy"][keep],
        "forces": result["forces"][keep][:, order],
        "spare": result["spare"][order],
    }


def composition(numbers: np.ndarray) -> str:
    """The name of a group, e.g. `C2H6O1`."""
    counts = Counter(chemical_symbols[z] for z in numbers)
    return "".join(f"{symbol}{counts[symbol]}" for symbol in sorted(counts))


def write_group(group: h5py.Group, isomers: list[Arrays], with_unlabelled: bool) -> int:
    """Writes one composition, with an unlabelled last row if asked to; returns the number of rows."""
    positions, energy, forces = (np.concatenate([r[k] for r in isomers]) for k in ("positions", "energy", "forces"))
    if with_unlabelled:
        positions = np.concatenate([positions, isomers[0]["spare"][None]])
        energy = np.append(energy, np.nan)
        forces = np.concatenate([forces, np.full_like(forces[:1], np.nan)])
    columns = {
        "atomic_numbers": isomers[0]["numbers"].astype("u1"),
        "coordinates": positions.astype("f4"),
        "wb97x_dz.energy": energy.astype("f8"),
        "wb97x_dz.forces": forces.astype("f4"),
        "ccsd(t)_cbs.energy": np.full(len(energy), np.nan),
    }
    for name, column in columns.items():
        group.create_dataset(name, data=column, chunks=column.shape, compression="gzip", shuffle=True)
    return len(energy)


def earlier_group(group: h5py.Group) -> Arrays:
    """The rows of a composition in an earlier file, unlabelled ones too."""
    return {
        "numbers": group["atomic_numbers"][...],
        "positions": group["coordinates"][...],
        "energy": group["wb97x_dz.energy"][...],
        "forces": group["wb97x_dz.forces"][...],
    }


def assemble(work: Path, path: Path, earlier: Path | None) -> None:
    """Writes the file at `path` from an earlier one and the finished tasks in `work`."""
    groups: dict[str, list[Arrays]] = defaultdict(list)
    used, used_twice, rows = names_in(earlier, "smiles"), names_in(earlier, SECOND_ROUND), 0
    if earlier is not None:
        with h5py.File(earlier) as file:
            groups.update({name: [earlier_group(group)] for name, group in file.items()})
    tasks = [(task, used) for task in missing(MOLECULES, earlier, "smiles")]
    tasks += [(task, used_twice) for task in with_one_round(SECOND, earlier, "smiles")]
    for task, names in tasks:
        result = load_result(work, task.key)
        if result is not None:
            names.append(task.smiles)
            groups[composition(result["numbers"])].append(in_file_order(result))
    with new_file(path) as file:
        made_by, level = "tools/minicorpora/make_ani1x_mini.py", f"RKS-{WB97X.name}, density fitting"
        source = {"made_by": made_by, "level": level, "code": "PySCF", "smiles": used, SECOND_ROUND: used_twice}
        file.attrs["provenance"] = json.dumps(source)
        for k, (name, isomers) in enumerate(sorted(groups.items())):
            rows += write_group(file.create_group(name), isomers, earlier is None and k in UNLABELLED_GROUPS)
    print(f"{path}: {len(groups)} groups, {len(used)} molecules, {rows} rows")


def main() -> None:
    """Labels the missing tasks and writes the file."""
    args = molecule_parser(__doc__).parse_args()
    earlier = args.earlier and args.earlier / FILE
    work = args.out / "work" / "ani1x"
    if not args.assemble_only:
        run_tasks(label_molecule, chosen(args, MOLECULES, SECOND, earlier, "smiles"), work, args.workers)
    assemble(work, args.out / FILE, earlier)


if __name__ == "__main__":
    main()
