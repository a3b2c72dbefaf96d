"""transition1x_mini: wB97X/6-31G(d) structures along reaction paths in the HDF5 layout of Transition1x.

    python tools/minicorpora/make_transition1x_mini.py --out OUT --workers 2

Each reaction: end points relaxed with DFT; 8 IDPP images between them; 8 images of an early stage of a GFN2-xTB band; 8
of its converged path; 8 of each of up to 3 band iterations with DFT. That makes 10 + 8 k structures. The reactions
after the first 9 are not refined with DFT: end points, 2 IDPP images and 2 of the converged path. A second round
(`--second-round`) adds 3 and 3 images between the same end points to those of an earlier file.
"""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from ase import Atoms
from ase.calculators.calculator import CalculationFailed, Calculator, all_changes
from ase.mep import NEB
from ase.optimize import BFGS, FIRE
from ase.units import Hartree
from molecules import (
    SECOND_ROUND,
    WB97X,
    Array,
    chosen,
    embed,
    label,
    missing,
    molecule_parser,
    names_in,
    new_file,
    with_one_round,
    xtb,
)
from rdkit import Chem
from tasks import Arrays, load_result, run_tasks

FILE = "transition1x_mini/Transition1x-mini.h5"
IMAGES, IMAGES_OF_A_PATH, IMAGES_OF_A_SECOND_PATH = 8, 2, 3  # between the end points
DFT_ITERATIONS = 3
REFINED = 9  # the first reactions of the list: their bands are moved with DFT
XTB_STAGES = (8, 150)  # optimiser steps of the early stage and of the rest
FRAGMENT_DISTANCE = 2.6  # Å, smallest distance between separate fragments before they relax
PARTS = ("train", "val", "test")
KEY = "wB97x_6-31G(d)."
COLUMNS = {"positions": "positions", KEY + "energy": "energy", KEY + "forces": "forces"}
"""Columns of a reaction in the file, and their names in a result."""
# reactant and product as fully mapped SMILES; "mirror" is the umbrella inversion of the reactant
REACTIONS = [
    ("[H:3][C:1]#[N:2]", "[H:3][N+:2]#[C-:1]"),
    ("[H:3][C:1](=[O:2])[H:4]", "[H:3][C:1][O:2][H:4]"),
    ("[H:2][N:1]([H:3])[H:4]", "mirror"),
    ("[H:3]/[N:1]=[N:2]/[H:4]", "[H:3]/[N:1]=[N:2]\\[H:4]"),
    ("[H:4][C:1](=[O:2])[O:3][H:5]", "[O:2]=[C:1]=[O:3].[H:4][H:5]"),
    ("[H:4][C:1]([H:5])([H:6])[N+:2]#[C-:3]", "[H:4][C:1]([H:5])([H:6])[C:3]#[N:2]"),
    ("[H:4][O:1][N:2]=[O:3]", "[O:1]=[N:2][O:3][H:4]"),
    ("[H:4][C:1](=[O:2])[N:3]([H:5])[H:6]", "[H:4][C:1]([O:2][H:5])=[N:3][H:6]"),
    ("[H:4][N:1]=[C:2]=[O:3]", "[N:1]#[C:2][O:3][H:4]"),
    ("[H:4][C:1]([H:5])=[C:2]([H:6])[O:3][H:7]", "[H:4][C:1]([H:5])([H:7])[C:2]([H:6])=[O:3]"),
    ("[H:3][C:1]([H:4])=[N:2][H:5]", "[H:3][C:1][N:2]([H:4])[H:5]"),
    ("[H:4][C:1](=[O:2])[O:3][H:5]", "[C-:1]#[O+:2].[H:4][O:3][H:5]"),
    ("[H:3][C:1]([H:4])([H:5])[O:2][H:6]", "[H:3][C:1]([H:4])=[O:2].[H:5][H:6]"),
    ("[H:4][C:1]([H:5])([H:6])[C:2]#[C:3][H:7]", "[H:4][C:1]([H:5])=[C:2]=[C:3]([H:6])[H:7]"),
    ("[H:4][C:1]1([H:5])[C:2]([H:6])([H:7])[O:3]1", "[H:4][C:1]([H:5])([H:6])[C:2]([H:7])=[O:3]"),
    ("[H:4][C:1]([H:5])([H:6])[C:2]([H:7])=[O:3]", "[H:4][C:1]([H:5])([H:6])[H:7].[C-:2]#[O+:3]"),
]
PATHS = Path(__file__).with_name("lists") / "transition1x.txt"
"""More reactions, one `reactant>>product` a line."""
SPLIT = {
    "val": ("CHNO", "H2N2", "C2H4O2", "CH3N3", "C2H2O2", "CH6N2"),
    "test": ("C2H3N", "C2H4N2", "C2H4O", "C3H4O", "CH4N2"),
}
"""Parts by formula, so that no molecule is in two of them; the other formulas are train."""


@dataclass(frozen=True)
class Reaction:
    """One task: reaction `number` of the list; `refined` moves its band with DFT; `second` has no end points."""

    number: int
    reactant: str
    product: str
    refined: bool = False
    second: bool = False

    @property
    def smiles(self) -> str:
        """The name of the reaction in the provenance of the file."""
        return f"{self.reactant}>>{self.product}"

    @property
    def name(self) -> str:
        """The name of the reaction in its formula."""
        return f"rxn{self.number:04d}"

    @property
    def images(self) -> int:
        """Number of images between the end points."""
        if self.second:
            return IMAGES_OF_A_SECOND_PATH
        return IMAGES if self.refined else IMAGES_OF_A_PATH

    @property
    def key(self) -> str:
        """Name of the result file."""
        return f"{self.number:02d}-2" if self.second else f"{self.number:02d}"


ENDS = [*REACTIONS, *(tuple(line.split(">>")) for line in PATHS.read_text().splitlines())]
TASKS = [Reaction(i, reactant, product, refined=i < REFINED) for i, (reactant, product) in enumerate(ENDS)]
SECOND = [Reaction(t.number, t.reactant, t.product, second=True) for t in TASKS if not t.refined]


class DFT(Calculator):
    """The labelling level of theory for ASE, in eV; starts each density from the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.implemented_properties = ["energy", "forces"]
        self.density: Array | None = None

    def calculate(self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = all_changes) -> None:
        """Energy (eV) and forces (eV/Å), as ASE calls for them."""
        super().calculate(atoms, properties, system_changes)
        energy, forces, self.density = label(atoms.numbers, atoms.positions, WB97X, self.density)
        self.results = {"energy": energy * Hartree, "forces": forces * Hartree}


class Labelled:
    """Collects labelled structures; eV, eV/Å, Å."""

    def __init__(self) -> None:
        self.positions: list[Array] = []
        self.energy: list[float] = []
        self.forces: list[Array] = []

    def add(self, atoms: Atoms) -> None:
        """Labels `atoms` with its calculator and keeps the result."""
        self.positions.append(atoms.positions.copy())
        self.energy.append(atoms.get_potential_energy())
        self.forces.append(atoms.get_forces())

    def add_images(self, end: Atoms, images: list[Array], calculators: list[DFT]) -> None:
        """Labels the positions of all `images` between the end points of a band."""
        for positions, calculator in zip(images, calculators, strict=True):
            self.add(Atoms(end.numbers, positions, calculator=calculator))


def from_mapped(smiles: str) -> Atoms:
    """Atoms in the order of their map numbers at a GFN2-xTB minimum; fragments start apart from one another."""
    options = Chem.SmilesParserParams()
    options.removeHs = False
    atoms_by_number: dict[int, tuple[str, Array]] = {}
    for fragment in smiles.split("."):
        molecule = Chem.MolFromSmiles(fragment, options)
        molecule.UpdatePropertyCache(strict=False)
        positions = embed(molecule, seed=7)
        if atoms_by_number:
            positions = pushed_away(positions, np.array([p for _, p in atoms_by_number.values()]))
        for atom, p in zip(molecule.GetAtoms(), positions, strict=True):
            atoms_by_number[atom.GetAtomMapNum()] = (atom.GetSymbol(), p)
    ordered = [atoms_by_number[i] for i in sorted(atoms_by_number)]
    atoms = Atoms([s for s, _ in ordered], [p for _, p in ordered])
    atoms.calc = xtb()
    BFGS(atoms, logfile=None).run(fmax=0.02, steps=200)
    return Atoms(atoms.numbers, atoms.positions)


def pushed_away(positions: Array, others: Array) -> Array:
    """`positions` centred on `others`, then shifted until no atom is within FRAGMENT_DISTANCE of them."""
    positions = positions - positions.mean(0) + others.mean(0)
    while np.linalg.norm(positions[:, None] - others[None], axis=-1).min() < FRAGMENT_DISTANCE:
        positions = positions + np.array([0.02, 0.03, 0.1])
    return positions


def mirrored(reactant: Atoms) -> Atoms:
    """Umbrella inversion: hydrogens reflected through the plane of atom 0 that is parallel to theirs."""
    positions = reactant.positions - reactant.positions[0]
    normal = np.linalg.svd(positions[1:] - positions[1:].mean(0))[2][-1]
    return Atoms(reactant.numbers, positions - 2 * np.outer(positions @ normal, normal))


def aligned(positions: Array, reference: Array) -> Array:
    """`positions` centred and rotated onto `reference` (Kabsch)."""
    positions, reference = positions - positions.mean(0), reference - reference.mean(0)
    u, _, vt = np.linalg.svd(positions.T @ reference)
    rotation: Array = u @ np.diag([1, 1, np.sign(np.linalg.det(u @ vt))]) @ vt
    return positions @ rotation


def end_points(task: Reaction) -> tuple[Atoms, Atoms]:
    """Reactant and product, rotated onto the reactant; those of a refined reaction relax a little with DFT."""
    reactant = from_mapped(task.reactant)
    product = mirrored(reactant) if task.product == "mirror" else from_mapped(task.product)
    for atoms in (reactant, product):
        atoms.calc = DFT()
        if task.refined:
            BFGS(atoms, logfile=None).run(fmax=0.05, steps=12)
            atoms.calc.reset()
    product.positions = aligned(product.positions, reactant.positions)
    reactant.positions -= reactant.positions.mean(0)
    return reactant, product


def xtb_band(images: list[Atoms]) -> list[list[Array]]:
    """Moves the band with GFN2-xTB; the positions of the moving images after each stage."""
    for image in images:
        image.calc = xtb()
    stages = []
    for steps in XTB_STAGES:
        with suppress(CalculationFailed):  # no convergence on a strained image: keep the current path
            FIRE(NEB(images, k=1.0, method="improvedtangent"), logfile=None).run(fmax=0.05, steps=steps)
        stages.append([image.positions.copy() for image in images[1:-1]])
    return stages


def label_reaction(task: Reaction) -> Arrays:
    """Labelled structures of one reaction, the index `ts` of its highest last image, and the last force on the band."""
    reactant, product = end_points(task)
    images = [reactant.copy() for _ in range(task.images + 1)] + [product.copy()]
    straight = "linear" if task.product == "mirror" else "idpp"
    NEB(images, method="improvedtangent").interpolate(straight)
    interpolated = [image.positions.copy() for image in images[1:-1]]
    early, converged = xtb_band(images)

    kept = Labelled()
    calculators = [DFT() for _ in range(task.images)]
    if not task.second:
        kept.add(reactant)
    kept.add_images(reactant, interpolated, calculators)
    if not task.second:
        kept.add(product)
    if task.refined:
        kept.add_images(reactant, early, calculators)
        largest_force = refine([reactant, *images[1:-1], product], calculators, kept)
    else:
        kept.add_images(reactant, converged, calculators)
        largest_force = np.nan
    top = len(kept.energy) - task.images + int(np.argmax(kept.energy[-task.images :]))
    return {
        "numbers": reactant.numbers,
        "positions": kept.positions,
        "energy": kept.energy,
        "forces": kept.forces,
        "ts": top,
        "neb_force": largest_force,
    }


def refine(images: list[Atoms], calculators: list[DFT], kept: Labelled) -> float:
    """Moves the converged GFN2-xTB band with DFT and keeps the images of each iteration; the last force on it, eV/Å."""
    for image, calculator in zip(images[1:-1], calculators, strict=True):
        image.calc = calculator
    band: Any = NEB(images, k=1.0, method="improvedtangent")
    optimizer = BFGS(band, logfile=None, alpha=100, maxstep=0.04)
    for iteration in range(DFT_ITERATIONS + 1):  # iteration 0 is the converged xTB path
        if iteration:
            optimizer.run(fmax=0.01, steps=1)
            if np.allclose(images[5].positions, kept.positions[-4]):
                break  # converged: there is nothing new to keep
        for image in images[1:-1]:
            kept.add(image)
    return float(np.abs(band.get_forces()).max())


def fill(group: h5py.Group, result: Arrays, rows: slice) -> None:
    """Writes `rows` of a result in the columns of the layout."""
    group["atomic_numbers"] = result["numbers"].astype("i8")
    for column, name in COLUMNS.items():
        group[column] = result[name][rows]


def copy_reaction(old: h5py.Group, group: h5py.Group, second: Arrays | None) -> None:
    """Copies a reaction, and writes the structures of its second round after those of the first."""
    for name, found in old.items():
        if isinstance(found, h5py.Group):
            copy_reaction(found, group.create_group(name), None)
        elif second is not None and name in COLUMNS:
            group[name] = np.concatenate([found[...], second[COLUMNS[name]]])
        else:
            group[name] = found[...]  # `old.copy` would keep its larger header


def write_reaction(file: h5py.File, task: Reaction, result: Arrays) -> None:
    """Writes one reaction to `data` and links it into its part of the split."""
    formula = Atoms(result["numbers"]).get_chemical_formula()
    name = f"{formula}/{task.name}"
    group = file.create_group("data/" + name)
    fill(group, result, slice(None))
    top = int(result["ts"])
    for kind, k in (("reactant", 0), ("product", task.images + 1), ("transition_state", top)):
        fill(group.create_group(kind), result, slice(k, k + 1))
    link(file, name)
    energy = result["energy"]
    print(
        f"{name}: {len(energy)} structures, barrier {energy[top] - energy[0]:.2f} eV,",
        f"reaction {energy[task.images + 1] - energy[0]:.2f} eV",
    )


def link(file: h5py.File, name: str) -> None:
    """Links reaction `name`, formula/number, into its part of the split: a hard link, the same reaction stored once."""
    formula = name.split("/")[0]
    part = next((part for part, formulas in SPLIT.items() if formula in formulas), "train")
    file[part].require_group(formula)
    file[f"{part}/{name}"] = file[f"data/{name}"]


def copy_reactions(earlier: Path, file: h5py.File, second: dict[str, Arrays]) -> int:
    """Copies all reactions of an earlier file with results of their second round; returns the number of structures."""
    structures = 0
    with h5py.File(earlier) as old:
        for formula, reactions in old["data"].items():
            for number, reaction in reactions.items():
                copied = file.create_group(f"data/{formula}/{number}")
                copy_reaction(reaction, copied, second.get(number))
                link(file, f"{formula}/{number}")
                structures += len(copied["positions"])
    return structures


def assemble(work: Path, path: Path, earlier: Path | None) -> None:
    """Writes the file at `path` from an earlier one and the finished tasks in `work`."""
    used, used_twice = names_in(earlier, "reactions"), names_in(earlier, SECOND_ROUND)
    second = {task: load_result(work, task.key) for task in with_one_round(SECOND, earlier, "reactions")}
    done = {task: result for task, result in second.items() if result is not None}
    used_twice += [task.smiles for task in done]
    with new_file(path) as file:
        for top in ("data", *PARTS):
            file.create_group(top)
        more = {task.name: result for task, result in done.items()}
        structures = copy_reactions(earlier, file, more) if earlier else 0
        for task in missing(TASKS, earlier, "reactions"):
            result = load_result(work, task.key)
            if result is not None:
                write_reaction(file, task, result)
                structures += len(result["energy"])
                used.append(task.smiles)
        made_by, level = "tools/minicorpora/make_transition1x_mini.py", f"RKS-{WB97X.name}, density fitting"
        source = {"made_by": made_by, "level": level, "code": "PySCF", "reactions": used, SECOND_ROUND: used_twice}
        file.attrs["provenance"] = json.dumps(source)
    print(f"{path}: {len(used)} reactions, {structures} structures")


def main() -> None:
    """Labels the missing tasks and writes the file."""
    args = molecule_parser(__doc__).parse_args()
    earlier = args.earlier and args.earlier / FILE
    work = args.out / "work" / "t1x"
    if not args.assemble_only:
        run_tasks(label_reaction, chosen(args, TASKS, SECOND, earlier, "reactions"), work, args.workers)
    assemble(work, args.out / FILE, earlier)


if __name__ == "__main__":
    main()
