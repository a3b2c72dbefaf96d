"""Output of pw.x, in the layout that Quantum ESPRESSO 7 prints (www.quantum-espresso.org/Doc/pw_user_guide)."""

import bz2
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.io import iread

from ramify.errors import RamifyError
from ramify.sources.parsing.programs import espresso_steps
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
    (tmp_path / "pw.out").write_text(text[: text.index("ATOMIC_POSITIONS")])
    with pytest.raises(RamifyError, match=r"(?s)truncated: it has no 'JOB DONE'.*unfinished: read"):
        read("espresso", tmp_path / "pw.out")
    found, _ = read("espresso", tmp_path / "pw.out", unfinished="read")
    np.testing.assert_allclose(found.energy, energies[:1] * RYDBERG, rtol=CODATA_2006)
    (tmp_path / "other.out").write_text("Program GAMESS\n")
    with pytest.raises(RamifyError, match=r"not an output of pw\.x"):
        read("espresso", tmp_path / "other.out")


VARIABLE = """CELL_PARAMETERS (alat= 10.00000000)
   0.980000000   0.0{k}0000000   0.000000000
   0.100000000   1.010000000   0.000000000
   0.000000000   0.000000000   1.1{k}0000000

ATOMIC_POSITIONS (crystal)
Si            0.0{k}00000000        0.0000000000        0.0000000000    0   0   0
Si            0.2500000000        0.26{k}0000000        0.2700000000
"""
DYNAMICS = """     Entering Dynamics:    iteration =     {k}
                           time      =    0.0010 pico-seconds

ATOMIC_POSITIONS (alat)
Si            0.0{k}00000000        0.0000000000        0.0000000000
Si            0.2500000000        0.26{k}0000000        0.2700000000

     kinetic energy (Ekin) =           0.00012345 Ry
"""
BANDS = """     End of self-consistent calculation

          k = 0.0000 0.0000 0.0000 (   113 PWs)   bands (ev):

    -5.8701   6.2540   6.2540   6.2540

     the Fermi energy is     6.5000 ev

"""


def results(k: int, *, accuracy: str = "8.1E-07", energy: str = "!    total energy") -> str:
    """The results of a step, with another energy and other forces for each `k`."""
    f = np.round(np.arange(1, 7) * 0.001 * (k + 1), 8)
    step = STEP.format(energy=-21.5 - 0.01 * k, internal=-21.0, f=f).replace("!    total energy", energy)
    kpoints = "     Number of k-points >= 100: set verbosity='high' to print the bands.\n"
    step = step.replace("     End of self-consistent calculation\n\n" + kpoints + "\n", BANDS)
    return step.replace(
        " Ry\n     smearing", f" Ry\n     estimated scf accuracy    <  {accuracy:>15} Ry\n     smearing"
    )


def head(*, electrons: float = 8.0, axes: str = "   0.100000   1.000000") -> str:
    """The beginning of a run, with the facts of its electrons, and k points after it."""
    facts = (
        "\n     ATOMIC_POSITIONS: units set to alat\n"
        f"\n     number of electrons       =        {electrons:.2f}\n     convergence threshold     =      1.0E-06\n"
    )
    species = (
        "     atomic species   valence    mass     pseudopotential\n        Si             4.00    28.08600     Si\n"
    )
    started = "     Starting magnetic structure\n     atomic species   magnetization\n        Si           0.200\n\n"
    text = START.replace("\n     celldm", facts + "     celldm", 1).replace("   0.100000   1.000000", axes)
    text = text.replace("     site n.", f"{species}\n{started}     site n.")
    kpoints = "     number of k points=     1\n                       cart. coord. in units 2pi/alat\n"
    return text + kpoints + "        k(    1) = (   0.0000000   0.0000000   0.0000000), wk =   2.0000000\n\n"


def relaxation(steps: int) -> str:
    """A relaxation of the cell, whose last geometry is calculated again, after the beginning of the run once more."""
    text = head() + results(0)
    for k in range(1, steps):
        text += VARIABLE.format(k=k) + "\n" + results(k)
    final = f"Begin final coordinates\n     new unit-cell volume =    1100.0 a.u.^3\n\n{VARIABLE.format(k=steps)}"
    again = head(axes="   0.100000   1.010000").partition("\n")[2].partition("\n")[2]  # without the first line
    again = again.replace("1.0E-06", "1.0E-09").replace("number of k points=     1", "number of k points=     2")
    return text + final + "End final coordinates\n\n" + again + results(steps) + END


def dynamics(steps: int) -> str:
    """Molecular dynamics: positions in units of alat, the cell of the beginning; the last geometry has no results."""
    text = head() + results(0)
    for k in range(1, steps):
        text += DYNAMICS.format(k=k) + results(k)
    return text + DYNAMICS.format(k=steps) + END


@pytest.mark.parametrize("most", [1, 3, 50])
def test_every_step_is_that_of_ase(tmp_path: Path, read: Any, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """ASE reads the whole file, the reader some steps of one run; of two runs in one file, too."""
    monkeypatch.setattr(espresso_steps, "STEPS", most)
    runs = [relaxation(5), dynamics(6), output()[0], dynamics(2)]
    # ASE takes this message for positions, and refuses eigenvalues where the last run printed has other k points
    readable = [run.replace("ATOMIC_POSITIONS: units", "ATOMIC positions") for run in runs]
    readable = [run.replace("number of k points=     2", "number of  k points=    2") for run in readable]
    path = tmp_path / "pw.out"
    path.write_text("".join(readable))
    whole = list(iread(str(path), index=":", format="espresso-out"))
    path.write_text("".join(runs))
    found, quarantine = read("espresso", path)
    with path.open("rb") as stream:
        assert max(len(held) for _, held in espresso_steps.pieces(espresso_steps.Steps(stream))) == min(most, 6)
    assert len(whole) == 6 + 6 + 2 + 2
    assert quarantine.total == 0
    assert found.row.tolist() == list(range(16))
    np.testing.assert_array_equal(found.energy, [a.get_potential_energy() for a in whole])
    np.testing.assert_array_equal(found.forces, np.concatenate([a.get_forces() for a in whole]))
    np.testing.assert_array_equal(found.stress, [a.get_stress(voigt=False) for a in whole])
    np.testing.assert_array_equal(found.positions, np.concatenate([a.positions for a in whole]))
    np.testing.assert_array_equal(found.cell, [a.cell.array for a in whole])
    np.testing.assert_allclose(found.cell[5], np.array([[9.8, 0.5, 0], [1, 10.1, 0], [0, 0, 11.5]]) * BOHR, rtol=1e-6)


def test_every_cut_leaves_complete_steps(tmp_path: Path, read: Any) -> None:
    text, path = relaxation(3), tmp_path / "pw.out"
    path.write_text(text)
    whole, _ = read("espresso", path)
    for cut in range(1500, len(text) - len(END), 41):
        path.write_text(text[:cut])
        try:
            found, _ = read("espresso", path, unfinished="read")
        except RamifyError:
            assert cut < text.index("Forces acting on atoms")
            continue
        with pytest.raises(RamifyError, match="truncated"):
            read("espresso", path)
        n = len(found)
        np.testing.assert_array_equal(found.energy, whole.energy[:n])
        known = ~np.isnan(found.forces)  # a calculation may be stopped before the forces of its last step
        np.testing.assert_array_equal(found.forces[known], whole.forces[: 2 * n][known])
        assert known[: 2 * n - 2].all()
        np.testing.assert_array_equal(found.positions, whole.positions[: 2 * n])
        np.testing.assert_array_equal(found.cell, whole.cell[:n])


def test_energy_of_hybrid_functionals(tmp_path: Path, read: Any) -> None:
    """`!` is that of an inner loop, the first of which is without exact exchange; ASE reads it (electrons.f90)."""
    inner = (
        "!    total energy              =     -15.80000000 Ry\n     estimated scf accuracy    <       0.10000000 Ry\n\n"
    )
    loops = f"{inner}     convergence has been achieved in   5 iterations\n\n{inner.replace('15.8', '15.9')}"
    outer = "!!   total energy"
    path = tmp_path / "pw.out"
    path.write_text(head() + loops + results(0, energy=outer) + MOVED + loops + results(1, energy=outer) + END)
    found, quarantine = read("espresso", path)
    np.testing.assert_allclose(found.energy, np.array([-21.5, -21.51]) * RYDBERG, rtol=CODATA_2006)
    assert quarantine.total == 0
    failed = "     EXX convergence NOT achieved after 100 iterations: stopping\n\n"
    path.write_text(head() + loops + failed + MOVED + results(1, energy=outer) + END)
    found, quarantine = read("espresso", path)
    assert found.row.tolist() == [1]
    assert quarantine.counts == {"electronic steps not converged": 1}


def test_energies_of_single_electronic_steps(tmp_path: Path, read: Any) -> None:
    """With `iprint` pw.x prints `!` in electronic steps before the last one, too (electrons.f90)."""
    path = tmp_path / "pw.out"
    early = results(7).partition("     smearing")[0]
    path.write_text(head() + early + results(0) + MOVED + early + results(1) + END)
    found, _ = read("espresso", path)
    np.testing.assert_allclose(found.energy, np.array([-21.5, -21.51]) * RYDBERG, rtol=CODATA_2006)


@pytest.mark.parametrize("stated", [True, False])
def test_steps_that_did_not_converge(tmp_path: Path, read: Any, stated: bool) -> None:
    """Without `scf_must_converge` newer versions state convergence after the last electronic step (electrons.f90)."""
    path = tmp_path / "pw.out"
    if stated:
        wrong = BANDS + "     convergence NOT achieved after 100 iterations: stopping\n\n"
        wrong += results(1)[results(1).index("     Forces acting") :]
    else:
        wrong = results(1, accuracy="0.00021000")
    path.write_text(head() + results(0) + MOVED + wrong + MOVED + results(2) + END)
    found, quarantine = read("espresso", path)
    assert found.row.tolist() == [0, 2]
    assert quarantine.counts == {"electronic steps not converged": 1}
    detail = quarantine.first["electronic steps not converged"].detail
    assert ("100 iterations" if stated else "0.00021 Ry") in detail
    found, quarantine = read("espresso", path, unconverged="read")
    assert found.row.tolist() == ([0, 2] if stated else [0, 1, 2])
    assert quarantine.counts == ({"label not computed": 1} if stated else {})


def test_charge_and_spin(tmp_path: Path, read: Any) -> None:
    """Two atoms of four valence electrons, the electrons of the run, the magnetization of the last electronic step."""
    path = tmp_path / "pw.out"
    magnetic = "     total magnetization       =    {} Bohr mag/cell\n     absolute magnetization    =     2.30 Bohr\n"
    for electrons, charge, moments, spin in (
        (8.0, 0, (1.3, 2.0), 3),
        (7.0, 1, (0.5, -1.02), 2),
        (9.0, -1, (3, 3.05), 4),
    ):
        text = magnetic.format(f"{moments[0]:.2f}") + results(0).replace(
            "     Forces acting", magnetic.format(f"{moments[1]:.2f}") + "\n     Forces acting"
        )
        path.write_text(head(electrons=electrons) + text + END)
        found, quarantine = read("espresso", path, charge_key="charge", spin_key="magmom")
        assert (found.charge[0], found.spin[0]) == (charge, spin)
        found, quarantine = read("espresso", path)
        assert np.isnan(found.charge[0])
        assert len(quarantine.remarks) == (charge != 0)
    text = head() + results(0).replace(
        "Ry\n     smearing", "Ry\n     pot.stat. contrib. (-muN) =   0.1 Ry\n     smearing"
    )
    path.write_text(text + MOVED + results(1) + END)
    found, quarantine = read("espresso", path)
    assert found.row.tolist() == [1]
    assert list(quarantine.counts) == ["grand potential (FCP, GC-SCF) instead of an energy"]


def test_rows_and_numbers_that_could_not_be_written(tmp_path: Path, read: Any) -> None:
    path, good = tmp_path / "pw.out", results(1)
    row = good.index("     atom    2")
    shorter = good[:row] + good[good.index("\n", row) + 1 :]
    for changed, reason in (
        (shorter, "malformed structure"),
        (good.replace("    0.00200000", " *************", 1), "non-finite label"),
    ):
        path.write_text(head() + results(0) + MOVED + changed + MOVED + results(2) + END)
        found, quarantine = read("espresso", path)
        assert found.row.tolist() == [0, 2]
        assert quarantine.counts == {reason: 1}
    without = VARIABLE.format(k=1).replace("   0.100000000   1.010000000   0.000000000\n", "")
    path.write_text(head() + results(0) + without + results(1) + END)
    assert read("espresso", path)[1].counts == {"malformed structure": 1}
    with pytest.raises(ValueError, match="stress_sign"):  # that of pw.x is converted already
        read("espresso", path, stress_sign=-1)


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
