"""E(PBEsol) - E(PBE) of the spherical, scalar-relativistic, all-electron atoms (GPAW AllElectron).

    /usr/bin/python3 tools/minicorpora/atom_shift.py --out tools/minicorpora

GPAW energies are relative to the PBE atoms of the PAW data sets, also in a PBEsol run. Subtracting this constant per
element makes the energies of alexandria_mini relative to PBEsol atoms; forces do not change. Writes
OUT/pbesol_atom_shift.json: {unit, shift_eV: {element: eV per atom}}.
"""

import argparse
import json
from pathlib import Path

from crystals import ALEXANDRIA
from gpaw.atom.all_electron import AllElectron

HARTREE = 27.211386245988  # eV, CODATA 2018


def atom_energy(element: str, functional: str) -> float:
    """Total energy of the atom, eV."""
    atom = AllElectron(element, functional, scalarrel=True, txt=None)
    atom.run()
    return float(atom.ETotal * HARTREE)


def main() -> None:
    """Computes and writes the shift of every element of the list."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", type=Path, required=True)
    out = arguments.parse_args().out
    shift = {}
    for element in sorted({e for crystal in ALEXANDRIA for e in crystal.elements}):
        shift[element] = round(atom_energy(element, "PBEsol") - atom_energy(element, "PBE"), 8)
        print(element, shift[element], flush=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / "pbesol_atom_shift.json").write_text(json.dumps({"unit": "eV per atom", "shift_eV": shift}, indent=1))


if __name__ == "__main__":
    main()
