"""Outputs of programs: VASP and pw.x."""

from pathlib import Path
from typing import Any

import numpy as np
from ase import units
from ase.data import chemical_symbols
from benchmarks.readers.pool import CELL, pool
from benchmarks.readers.text_files import until


def _numbers(rows: Any, line: str = "   <v>  {} </v>\n") -> str:
    return "".join(line.format(" ".join(f"{x:16.8f}" for x in row)) for row in rows)


def write_vasprun(path: Path, size: float) -> dict[str, Any]:
    """Writes ionic steps of one structure as in VASP's `vasprun.xml`, without eigenvalues."""
    samples = [s for s in pool() if len(s.numbers) == max(len(p.numbers) for p in pool())]
    n = len(samples[0].numbers)
    basis = f'<crystal>\n<varray name="basis" >\n{_numbers(CELL)}</varray>\n</crystal>\n'
    place = [f'<varray name="positions" >\n{_numbers(s.positions / 9.0)}</varray>\n' for s in samples]
    steps = []
    for s, positions in zip(samples, place, strict=True):
        names = ("e_fr_energy", "e_wo_entrp", "e_0_energy")
        energy = "<energy>\n" + "".join(f'<i name="{name}"> {s.energy:16.8f} </i>\n' for name in names) + "</energy>\n"
        labels = "".join(
            f'<varray name="{name}" >\n{_numbers(rows)}</varray>\n'
            for name, rows in (("forces", s.forces), ("stress", s.stress))
        )
        scf = f"<scstep>\n{energy}</scstep>\n" * 12
        steps.append(
            f" <calculation>\n{scf}<structure>\n{basis}{positions}</structure>\n{labels}{energy} </calculation>\n"
        )
    atoms = "".join(f"<rc><c>{chemical_symbols[z]}</c><c>1</c></rc>\n" for z in samples[0].numbers.tolist())
    with path.open("w") as file:
        file.write('<?xml version="1.0" encoding="ISO-8859-1"?>\n<modeling>\n<kpoints>\n</kpoints>\n<parameters>\n')
        file.write(f'</parameters>\n<atominfo>\n<atoms>{n}</atoms>\n<array name="atoms" >\n<set>\n{atoms}</set>\n')
        file.write(f'</array>\n</atominfo>\n<structure name="initialpos" >\n{basis}{place[0]}</structure>\n')
        for _, text in until(size, steps):
            file.write(text)
        file.write("</modeling>\n")
    return {}


def write_outcar(path: Path, size: float) -> dict[str, Any]:
    """Writes ionic steps of one structure as in VASP's OUTCAR."""
    s = max(pool(), key=lambda sample: len(sample.numbers))
    kinds, counts = np.unique(s.numbers, return_counts=True)
    names = "".join(f" POTCAR:    PAW_PBE {chemical_symbols[z]} 05Jan2001\n" for z in kinds.tolist())
    vectors = _numbers(np.hstack([CELL, CELL / 81]), "  {}\n")
    rows = _numbers(np.hstack([s.positions, s.forces]), "  {}\n")
    with path.open("w") as file:
        file.write(
            f" vasp.6.3.2 27Jun22 (build) complex\n{names * 2}   ISPIN  =      1    spin polarized calculation?\n"
        )
        file.write(f"   ions per type =        {' '.join(map(str, counts.tolist()))}\n")
        file.write(
            "   k-points           NKPTS =      1   k-points in BZ     NKDIM =      1   number of bands    NBANDS= 9\n"
        )
        file.write(" k-points in reciprocal lattice and weights: gamma\n   0.0  0.0  0.0       1.000\n")
        step = (
            f"  Iteration      1(   1)  \n E-fermi :   1.2345     XC(G=0):  -8.0     alpha+bet : -6.0\n"
            "  FORCE on cell =-STRESS in cart. coord.  units (eV):\n"
            "  Direction    XX          YY          ZZ          XY          YZ          ZX\n"
            "  in kB   1.0 2.0 3.0 0.1 0.2 0.3\n"
            f"      direct lattice vectors                 reciprocal lattice vectors\n{vectors}\n"
            f" POSITION                                       TOTAL-FORCE (eV/Angst)\n {'-' * 83}\n{rows} {'-' * 83}\n"
            "  FREE ENERGIE OF THE ION-ELECTRON SYSTEM (eV)\n  -----------\n"
            f"  free  energy   TOTEN  = {s.energy:18.8f} eV\n\n"
            f"  energy  without entropy={s.energy:18.8f}  energy(sigma->0) ={s.energy:18.8f}\n"
        )
        for _, text in until(size, [step]):
            file.write(text)
        file.write(" General timing and accounting informations for this job:\n")
    return {}


def write_espresso(path: Path, size: float) -> dict[str, Any]:
    """Writes molecular dynamics of one structure as in the output of pw.x, with eigenvalues at four k points."""
    samples = [s for s in pool() if len(s.numbers) == max(len(p.numbers) for p in pool())]
    names, n = [chemical_symbols[z] for z in samples[0].numbers.tolist()], len(samples[0].numbers)
    alat = 9.0 / units.Bohr
    sites = "".join(
        f"{k:10d}           {name:2}  tau({k:4d}) = ({''.join(f'{x / 9:12.7f}' for x in r)}  )\n"
        for k, (name, r) in enumerate(zip(names, samples[0].positions, strict=True), 1)
    )
    axes = "".join(f"               a({k}) = ( {''.join(f'{k == i:11.6f}' for i in (1, 2, 3))} )\n" for k in (1, 2, 3))
    bands = "".join(
        f"          k = 0.{k}000 0.0000 0.0000 ( 8000 PWs)   bands (ev):\n\n"
        + ("  " + "  -5.8701" * 8 + "\n") * (n // 4)
        + "\n"
        for k in range(4)
    )
    steps = []
    for s in samples:
        place = "".join(f"{name:2}   {_row(r)}\n" for name, r in zip(names, s.positions, strict=True))
        forces = "".join(f"     atom {k:4d} type  1   force = {_row(f)}\n" for k, f in enumerate(s.forces, 1))
        stress = "".join(f"{_row(row)}   {_row(1000 * row)}\n" for row in s.stress)
        scf = "".join(
            f"     iteration #{k:3d}     ecut=    50.00 Ry     beta= 0.70\n     Davidson diagonalization with overlap\n"
            f"     ethr =  1.00E-06,  avg # of iterations =  2.0\n\n"
            f"     total energy              = {s.energy:16.8f} Ry\n"
            f"     estimated scf accuracy    <       0.00001000 Ry\n\n"
            for k in range(1, 13)
        )
        steps.append(
            f"ATOMIC_POSITIONS (angstrom)\n{place}\n{scf}     End of self-consistent calculation\n\n{bands}"
            f"!    total energy              = {s.energy:16.8f} Ry\n"
            "     estimated scf accuracy    <          5.0E-09 Ry\n\n"
            f"     Forces acting on atoms (cartesian axes, Ry/au):\n\n{forces}\n"
            f"          total   stress  (Ry/bohr**3)                   (kbar)     P=        1.00\n{stress}\n"
        )
    with path.open("w") as file:
        file.write(
            "\n     Program PWSCF v.7.4 starts on 30Dec2024 at 16:10:39\n\n"
            f"     number of atoms/cell      = {n:12d}\n     number of atomic types    = {len(set(names)):12d}\n"
            f"     celldm(1)= {alat:10.6f}  celldm(2)=   0.000000  celldm(3)=   0.000000\n\n"
            f"     crystal axes: (cart. coord. in units of alat)\n{axes}\n"
            f"     site n.     atom                  positions (alat units)\n{sites}\n     number of k points=     4\n"
            "                       cart. coord. in units 2pi/alat\n"
        )
        file.writelines(
            f"        k({k:5d}) = (   0.{k}000000   0.0000000   0.0000000), wk =   0.5000000\n" for k in range(4)
        )
        file.write("\n")
        for _, text in until(size, steps):
            file.write(text)
        file.write("   JOB DONE.\n")
    return {}


def _row(numbers: Any) -> str:
    return " ".join(f"{x:16.8f}" for x in numbers)
