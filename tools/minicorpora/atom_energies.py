"""Energies of isolated atoms at the two molecular levels of theory (unrestricted, same functional, basis and grid).

    python tools/minicorpora/atom_energies.py --out tools/minicorpora

Writes OUT/atom_energies.json: {level: {element: {hartree, eV}}}.
"""

import argparse
import json
from pathlib import Path

from ase.data import atomic_numbers
from ase.units import Hartree
from molecules import PBE0, WB97X, atom_energy

UNPAIRED = {"H": 1, "C": 2, "N": 3, "O": 2, "S": 2, "Cl": 1}  # electrons of the ground state
ELEMENTS = {WB97X: ("H", "C", "N", "O"), PBE0: ("H", "C", "N", "O", "S", "Cl")}


def main() -> None:
    """Computes and writes all energies."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", type=Path, required=True)
    out = arguments.parse_args().out
    table: dict[str, dict[str, dict[str, float]]] = {}
    for theory, elements in ELEMENTS.items():
        table[theory.name] = {}
        for element in elements:
            hartree = atom_energy(atomic_numbers[element], UNPAIRED[element], theory)
            table[theory.name][element] = {"hartree": round(hartree, 8), "eV": round(hartree * Hartree, 6)}
            print(theory.name, element, table[theory.name][element], flush=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / "atom_energies.json").write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
