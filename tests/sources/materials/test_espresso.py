"""Output of pw.x, in the layout that Quantum ESPRESSO 7 prints (www.quantum-espresso.org/Doc/pw_user_guide)."""

import bz2
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ramify.errors import RamifyError
from ramify.sources.recognize import recognize

RYDBERG, BOHR = 13.605693123, 0.529177210903  # eV, Å: CODATA 2018
CODATA_2006 = 2e-7
"""Relative difference to the constants with which ASE reads these files."""

START = """
     Program PWSCF v.7.4 starts on 30Dec2024 at 16:10:39

     number of atoms/cell      =            2
     number of atomic types    =            1
     celldm(1)=  10.000000  celldm(2)=   0.000000  celldm(3)=   0.000000

     crystal axes: (cart. coord. in units of alat)
               a(1) = (   1.000000   0.000000   0.000000 )
               a(2) = (   0.100000   1.000000   0.000000 )
               a(3) = (   0.000000   0.000000   1.200000 )

     site n.     atom                  positions (alat units)
         1        Si     tau(   1) = (   0.0000000   0.0000000   0.0000000  )
         2        Si     tau(   2) = (   0.2500000   0.2600000   0.2700000  )

"""
STEP = """     End of self-consistent calculation

     Number of k-points >= 100: set verbosity='high' to print the bands.

!    total energy              = {energy:16.8f} Ry
     smearing contrib. (-TS)   =      -0.00100000 Ry
     internal energy E=F+TS    = {internal:16.8f} Ry

     Forces acting on atoms (cartesian axes, Ry/au):

     atom    1 type  1   force = {f[0]:14.8f}{f[1]:14.8f}{f[2]:14.8f}
     atom    2 type  1   force = {f[3]:14.8f}{f[4]:14.8f}{f[5]:14.8f}

          total   stress  (Ry/bohr**3)                   (kbar)     P=        1.00
   0.00100000   0.00020000   0.00030000          147.11       29.42       44.13
   0.00020000   0.00200000   0.00040000           29.42      294.21       58.84
   0.00030000   0.00040000  -0.00300000           44.13       58.84     -441.32

"""
MOVED = """CELL_PARAMETERS (angstrom)
   5.400000000   0.000000000   0.000000000
   0.000000000   5.500000000   0.000000000
   0.000000000   0.000000000   6.600000000

ATOMIC_POSITIONS (angstrom)
Si       0.000000000   0.000000000   0.000000000
Si       1.410000000   1.420000000   1.430000000

"""
END = "   JOB DONE.\n"


def output() -> tuple[str, np.ndarray, np.ndarray]:
    """Two steps of a relaxation of the cell; their energies (Ry) and forces (Ry/bohr)."""
    energies = np.array([-21.58743321, -21.60123456])
    forces = np.arange(1, 13).reshape(2, 6) * 0.00123457
    steps = [STEP.format(energy=e, internal=e + 0.001, f=f) for e, f in zip(energies, forces, strict=True)]
    return START + steps[0] + MOVED + steps[1] + END, energies, forces.reshape(-1, 3)


def test_steps(tmp_path: Path, read: Any) -> None:
    text, energies, forces = output()
    (tmp_path / "pw.out.bz2").write_bytes(bz2.compress(text.encode()))
    assert recognize(tmp_path / "pw.out.bz2") == "espresso"
    found, quarantine = read("espresso", tmp_path / "pw.out.bz2", group_key="file")
    assert quarantine.total == 0
    np.testing.assert_allclose(found.energy, energies * RYDBERG, rtol=CODATA_2006)  # not the internal energy
    np.testing.assert_allclose(found.forces, np.round(forces, 8) * RYDBERG / BOHR, rtol=2 * CODATA_2006)
    stress = np.array([[1, 0.2, 0.3], [0.2, 2, 0.4], [0.3, 0.4, -3]]) * 1e-3
    np.testing.assert_allclose(found.stress, np.array([-stress * RYDBERG / BOHR**3] * 2), rtol=2 * CODATA_2006)
    np.testing.assert_allclose(found.positions[1], np.array([2.5, 2.6, 2.7]) * BOHR, rtol=CODATA_2006)
    assert found.positions[3].tolist() == [1.41, 1.42, 1.43]
    np.testing.assert_allclose(found.cell[0], np.array([[10, 0, 0], [1, 10, 0], [0, 0, 12]]) * BOHR, rtol=CODATA_2006)
    np.testing.assert_allclose(found.cell[1], np.diag([5.4, 5.5, 6.6]), atol=1e-8)
    assert found.pbc.all()
    assert found.name(1) == f"{tmp_path.name}/pw.out.bz2[1]"


def test_unfinished_and_other_files(tmp_path: Path, read: Any) -> None:
    text, energies, _ = output()
    (tmp_path / "pw.out").write_text(text[: text.index("ATOMIC_POSITIONS") - 200])
    with pytest.raises(RamifyError, match=r"(?s)truncated: it has no 'JOB DONE'.*unfinished: read"):
        read("espresso", tmp_path / "pw.out")
    found, _ = read("espresso", tmp_path / "pw.out", unfinished="read")
    np.testing.assert_allclose(found.energy, energies[:1] * RYDBERG, rtol=CODATA_2006)
    (tmp_path / "other.out").write_text("Program GAMESS\n")
    with pytest.raises(RamifyError, match=r"not an output of pw\.x"):
        read("espresso", tmp_path / "other.out")


CP2K = """ DBCSR| CPU Multiplication driver                                           XSMM
 DBCSR| Multrec recursion limit                                              512

  **** **** ******  **  PROGRAM STARTED AT               2022-07-05 23:37:43.696

 CP2K| version string:                                          CP2K version 9.1
"""
"""The beginning of an output of CP2K 9.1."""


@pytest.mark.parametrize("name", ["espresso", "vasp"])
def test_output_of_cp2k(tmp_path: Path, read: Any, name: str) -> None:
    """ASE reads no forces of it; dpdata converts it to folders of DeePMD (docs.deepmodeling.com/projects/dpdata)."""
    (tmp_path / "cp2k.out").write_text(CP2K)
    for attempt in (lambda: recognize(tmp_path / "cp2k.out"), lambda: read(name, tmp_path / "cp2k.out")):
        with pytest.raises(RamifyError, match=r"(?s)output of CP2K.*no forces.*format: deepmd.*cp2k/aimd_output"):
            attempt()
