"""Compares labels of the crystal corpora with central differences of the energy, computed by the labelling code.

    /usr/bin/python3 tools/minicorpora/check_crystal_forces.py mptrj --out OUT zincblende_Ga-As rocksalt_Na-Cl
    /usr/bin/python3 tools/minicorpora/check_crystal_forces.py alexandria --out OUT rocksalt_Li-Cl

Works on the results of label_crystals.py, with fresh calculators. Prints one line of JSON per material: the force
along the stored force (eV/Å, atoms moved by 0.01 Å) and the isotropic stress (GPa, tension positive, lattice constants
changed by 0.5 %).
"""

import argparse
import json
from pathlib import Path

import numpy as np
from ase import Atoms
from crystals import Crystal
from label_crystals import CORPORA, Corpus, calculator, free_energy, magnetised
from tasks import Arrays, load_result

GPA = 0.0062415091  # eV/Å³
STEP = 0.01  # Å
STRETCH = 0.005
STRUCTURE = 1  # which one of a material: the first of alexandria has no forces by symmetry


def stored(result: Arrays, crystal: Crystal) -> Atoms:
    """The structure that is checked."""
    k = STRUCTURE
    return magnetised(Atoms(result["numbers"], result["positions"][k], cell=result["cell"][k], pbc=True), crystal)


def force_difference(result: Arrays, corpus: Corpus, crystal: Crystal) -> float:
    """Force along the direction of the stored forces, eV/Å; one calculator, so one basis set."""
    kpoints = tuple(int(n) for n in result["kpts"])
    forces = result["forces"][STRUCTURE]
    atoms = stored(result, crystal)
    atoms.calc = calculator(corpus.functional, crystal, kpoints, symmetric=False)
    origin, energy = atoms.positions.copy(), []
    for sign in (1, -1):
        atoms.positions = origin + sign * STEP * forces / np.linalg.norm(forces)
        energy.append(free_energy(atoms))
    return -(energy[0] - energy[1]) / (2 * STEP)


def stress_difference(result: Arrays, corpus: Corpus, crystal: Crystal) -> float:
    """Isotropic stress, eV/Å³."""
    kpoints, energy = tuple(int(n) for n in result["kpts"]), []
    for sign in (1, -1):
        atoms = stored(result, crystal)
        atoms.set_cell(atoms.cell.array * (1 + sign * STRETCH), scale_atoms=True)
        atoms.calc = calculator(corpus.functional, crystal, kpoints, symmetric=False)
        energy.append(free_energy(atoms))
    volume = abs(np.linalg.det(result["cell"][STRUCTURE]))
    return float((energy[0] - energy[1]) / (2 * STRETCH) / 3 / volume)


def main() -> None:
    """Checks the named materials."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("corpus", choices=CORPORA)
    options.add_argument("materials", nargs="+", help="names of finished results, e.g. rocksalt_Na-Cl")
    options.add_argument("--out", type=Path, required=True, help="folder that label_crystals.py was given")
    args = options.parse_args()
    corpus = CORPORA[args.corpus]
    crystals = {crystal.name: crystal for crystal in corpus.crystals}
    for name in args.materials:
        result = load_result(args.out / "work" / args.corpus, name)
        if name not in crystals or result is None:
            options.error(f"{name} is not a finished material of {args.corpus}")
        figures = {
            "finite_difference": round(force_difference(result, corpus, crystals[name]), 6),
            "stored": round(float(np.linalg.norm(result["forces"][STRUCTURE])), 6),
            "stress_finite_difference": round(stress_difference(result, corpus, crystals[name]) / GPA, 3),
            "stress_stored": round(float(np.trace(result["stress"][STRUCTURE])) / 3 / GPA, 3),
        }
        print(json.dumps(dict(corpus=args.corpus, system=name, structure=STRUCTURE, **figures)), flush=True)


if __name__ == "__main__":
    main()
