"""Compares stored forces of the molecular corpora with central differences of the energy, computed by the labelling
code.

    python tools/minicorpora/check_molecule_forces.py [--root FOLDER] [--structures 3]

Prints one line of JSON per structure: the force along a random direction (eV/Å) from energies 2 x 0.002 Å apart, the
stored one, and the energy (eV) recomputed at the stored geometry next to the stored one.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from ase.units import Hartree
from check_files import CORPORA, ROOT
from molecules import PBE0, WB97X, label

THEORY = {"ani1x_mini": WB97X, "qm7x_mini": PBE0, "transition1x_mini": WB97X}
STEP = 0.002  # Å
MAX_ATOMS = 9  # larger molecules take long


def check(corpus: str, root: Path, structures: int, max_atoms: int) -> None:
    """Checks randomly chosen structures of one corpus, of different systems."""
    rng = np.random.default_rng(3)
    name, read = CORPORA[corpus]
    systems = [s for s in read(root / corpus / name) if len(s.numbers) <= max_atoms]
    for i in rng.choice(len(systems), min(structures, len(systems)), replace=False):
        system = systems[i]
        k = int(rng.integers(len(system.energy)))
        direction = rng.standard_normal(system.positions[k].shape)
        direction /= np.linalg.norm(direction)
        energy, ahead, behind = (
            label(system.numbers, system.positions[k] + shift * direction, THEORY[corpus], None)[0] * Hartree
            for shift in (0.0, STEP, -STEP)
        )
        figures = {
            "finite_difference": round(-(ahead - behind) / (2 * STEP), 6),
            "stored": round(float((system.forces[k] * direction).sum()), 6),
            "energy": round(energy, 6),
            "energy_stored": round(float(system.energy[k]), 6),
        }
        print(json.dumps(dict(corpus=corpus, system=system.name, structure=k, **figures)), flush=True)


def main() -> None:
    """Checks the three corpora, or one."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--root", type=Path, default=ROOT, help="folder with one folder per corpus")
    options.add_argument("--corpus", choices=THEORY, action="append", help="only this one (may be repeated)")
    options.add_argument("--structures", type=int, default=3, help="per corpus")
    options.add_argument("--max-atoms", type=int, default=MAX_ATOMS)
    args = options.parse_args()
    for corpus in args.corpus or THEORY:
        check(corpus, args.root, args.structures, args.max_atoms)


if __name__ == "__main__":
    main()
