"""ani1x_mini: wB97X/6-31G(d) conformers of C, H, N, O molecules in the HDF5 layout of the ANI-1x release.

    python tools/minicorpora/make_ani1x_mini.py --out OUT --workers 2

Groups of the file are compositions; isomers share one.
"""

import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from ase.data import chemical_symbols
from molecules import WB97X, Array, from_smiles, is_sane, label, normal_modes, thermal
from tasks import Arrays, load_result, parser, run_tasks, seed_of

CONFORMERS_SMALL, CONFORMERS = 16, 10  # the first SMALL molecules get more
SMALL = 21
MAX_FORCE = 1.0  # Hartree/Å, on any component: the few more strained geometries are dropped
UNLABELLED_GROUPS = (5, 15, 25)  # get one row of NaN each, as the release has them
SMILES = """C N O CC C=C C#C CN CO C=O C#N NN OO N=N C=N NO [C-]#[O+] N#N
CCC CC=C CC#C C1CC1 C=C=C C1=CC1 CCN CNC CCO COC CC=O C=CO C1CO1 CC#N [C-]#[N+]C OC=O NC=O OCO O=C=O
CC=N C=CN C1CN1 C=NC NCN NCO CNN CON N#CN C=NO C=C=O CNO NC=N O=NO NN=O N=C=O C=[N+]=[N-]
CC(=O)C CCC=O CC(=O)O COC=O OCC=O CC(N)=O CNC=O NCC=O NC(N)=O CCCO COCC CC(O)C CCCN CC(C)N CN(C)C CCNC
CCCC CC(C)C C1CCC1 C=CC=C C=CC=O O=CC=O C=CC#N C1CCO1 CCC#N CC=NO C=C(O)C NCCO OCCO"""


@dataclass(frozen=True)
class Molecule:
    """One task: `conformers` labelled geometries of `smiles`."""

    key: str
    smiles: str
    conformers: int


MOLECULES = [
    Molecule(f"{i:03d}", s, CONFORMERS_SMALL if i < SMALL else CONFORMERS) for i, s in enumerate(SMILES.split())
]


def label_molecule(task: Molecule) -> Arrays:
    """Labelled conformers of one molecule and one unlabelled spare; Å, Hartree, Hartree/Å."""
    rng = np.random.default_rng(seed_of("ani1x", task.smiles))
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
        group.create_dataset(name, data=column, compression="gzip", shuffle=True)
    return len(energy)


def assemble(work: Path, path: Path) -> None:
    """Writes the file at `path` from the finished tasks in `work`."""
    groups: dict[str, list[Arrays]] = defaultdict(list)
    used, rows = [], 0
    for task in MOLECULES:
        result = load_result(work, task.key)
        if result is not None:
            used.append(task.smiles)
            groups[composition(result["numbers"])].append(in_file_order(result))
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        made_by, level = "tools/minicorpora/make_ani1x_mini.py", f"RKS-{WB97X.name}, density fitting"
        file.attrs["provenance"] = json.dumps({"made_by": made_by, "level": level, "code": "PySCF", "smiles": used})
        for k, (name, isomers) in enumerate(sorted(groups.items())):
            rows += write_group(file.create_group(name), isomers, k in UNLABELLED_GROUPS)
    print(f"{path}: {len(groups)} groups, {len(used)} molecules, {rows} rows")


def main() -> None:
    """Labels the missing tasks and writes the file."""
    args = parser(__doc__).parse_args()
    work = args.out / "work" / "ani1x"
    if not args.assemble_only:
        run_tasks(label_molecule, MOLECULES[: args.limit], work, args.workers)
    assemble(work, args.out / "ani1x_mini" / "ani1x-mini.h5")


if __name__ == "__main__":
    main()
