"""Generates `benchmarks/data/ions.extxyz`: 20 small molecules, neutral and as cations, at rattled geometries.

UHF/def2-SVP with density fitting, by PySCF (Sun et al., J. Chem. Phys. 153, 024109 (2020), doi:10.1063/5.0006074).
Energies in eV, forces in eV/Å, `charge` in e, `spin` as multiplicity 2S+1. Needs `pip install pyscf==2.14.0`; ten
minutes on one core. An interrupted program continues where it stopped.

    python tools/ions.py
"""

import argparse
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.io import iread, write
from ase.units import Bohr, Hartree

MOLECULES = [
    "H2O",
    "NH3",
    "CH4",
    "C2H2",
    "C2H4",
    "C2H6",
    "HCN",
    "CO",
    "CO2",
    "N2",
    "H2CO",
    "CH3OH",
    "HF",
    "H2O2",
    "N2H4",
    "CH3F",
    "HCOOH",
    "N2O",
    "F2O",
    "SH2",
]
"""Names in `ase.build.molecule`; CH3F, which is not there, is built from methane."""
GEOMETRIES = 8
"""Of each molecule, the first one without displacements."""
RATTLE = 0.06
"""Å, standard deviation of the displacement of a coordinate."""
STATES = ((0, 1), (1, 2))
"""Charge and multiplicity of each structure; all molecules are closed-shell."""


def geometry(name: str, index: int) -> Atoms:
    """Geometry `index` of a molecule."""
    if name == "CH3F":
        atoms = molecule("CH4")
        atoms.symbols[1] = "F"
        atoms.set_distance(0, 1, 1.38, fix=0)
    else:
        atoms = molecule(name)
    if index:
        atoms.rattle(RATTLE, seed=1000 * MOLECULES.index(name) + index)
    return atoms


def labelled(atoms: Atoms, charge: int, spin: int) -> Atoms | None:
    """The structure with energy and forces of a state; None if the calculation does not converge."""
    from pyscf import gto, scf

    cell = gto.M(
        atom=[(s, p) for s, p in zip(atoms.get_chemical_symbols(), atoms.positions, strict=True)],
        basis="def2-svp",
        charge=charge,
        spin=spin - 1,
        verbose=0,
    )
    method = scf.UHF(cell).density_fit()
    method.conv_tol = 1e-9
    energy = method.kernel()
    if not method.converged:
        method = method.newton()
        energy = method.kernel()
    if not method.converged:
        return None
    forces = -method.nuc_grad_method().kernel() * Hartree / Bohr
    found = Atoms(atoms.numbers, atoms.positions)
    found.info = {"molecule": atoms.info["molecule"], "charge": charge, "spin": spin, "energy": energy * Hartree}
    found.arrays["forces"] = np.asarray(forces)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/data/ions.extxyz"))
    out = parser.parse_args().out
    out.parent.mkdir(parents=True, exist_ok=True)
    done = (
        {(a.info["molecule"], a.info["geometry"], a.info["charge"]) for a in iread(str(out))} if out.exists() else set()
    )
    for name in MOLECULES:
        for index in range(GEOMETRIES):
            for charge, spin in STATES:
                if (name, index, charge) in done:
                    continue
                atoms = geometry(name, index)
                atoms.info["molecule"] = name
                found = labelled(atoms, charge, spin)
                if found is None:
                    print(f"{name} {index} charge {charge}: not converged, left out")
                    continue
                found.info["geometry"] = index
                write(out, found, format="extxyz", append=True)


if __name__ == "__main__":
    main()
