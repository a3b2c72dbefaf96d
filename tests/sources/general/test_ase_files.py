"""Files that ASE reads frame by frame: trajectories, and VASP's own output."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.io import Trajectory, iread

from ramify.errors import RamifyError
from ramify.sources.parsing.programs import vasp_steps
from ramify.sources.recognize import recognize

KBAR = -6.241509074e-4  # eV/Å³, VASP's sign turned round


def write_traj(path: Path, count: int = 12) -> list[Atoms]:
    rng, made = np.random.default_rng(0), []
    with Trajectory(path, "w") as file:
        for i in range(count):
            atoms = Atoms("Cu2O", rng.normal(0, 2, (3, 3)), cell=np.eye(3) * (9 + i), pbc=[1, 1, i % 2])
            labels = {"energy": -1.0 - i, "forces": rng.normal(0, 1, (3, 3)), "stress": rng.normal(0, 1, 6)}
            atoms.calc = SinglePointCalculator(atoms, **labels)
            atoms.set_constraint(FixAtoms([0]))
            atoms.info["run"] = f"r{i % 3}"
            file.write(atoms)
            made.append(atoms)
    return made


def test_trajectory(tmp_path: Path, read: Any) -> None:
    made = write_traj(tmp_path / "a.traj")
    found, quarantine = read("ase_traj", tmp_path / "a.traj", group_key="run")
    assert quarantine.total == 0
    assert found.energy.tolist() == [-1.0 - i for i in range(12)]
    np.testing.assert_array_equal(found.positions, np.concatenate([a.positions for a in made]))
    raw = np.concatenate([a.get_forces(apply_constraint=False) for a in made])
    np.testing.assert_array_equal(found.forces, raw)  # a constraint is no label
    np.testing.assert_allclose(found.stress, [a.get_stress(voigt=False, apply_constraint=False) for a in made])
    np.testing.assert_array_equal(found.pbc, [a.pbc for a in made])
    assert [found.group_names[g] for g in found.group[:4]] == ["r0", "r1", "r2", "r0"]
    assert found.name(3) == "a.traj[3]"
    by_file, _ = read("ase_traj", tmp_path / "a.traj", group_key="file")
    assert by_file.group_names == (f"{tmp_path.name}/a.traj",)
    with pytest.raises(RamifyError, match=r"no 'E' \(`energy_key`\)"):
        read("ase_traj", tmp_path / "a.traj", energy_key="E")


def test_damaged_trajectories_give_messages(tmp_path: Path, read: Any, reads_or_says_why: Any) -> None:
    path = tmp_path / "a.traj"
    write_traj(path)
    content, rng = path.read_bytes(), np.random.default_rng(0)
    for size in [0, 5, *rng.integers(1, len(content), 30).tolist()]:
        path.write_bytes(content[:size])
        with pytest.raises(RamifyError, match=r"\n  fix: "):
            read("ase_traj", path)
    for at in rng.integers(0, len(content), 60).tolist():
        changed = bytearray(content)
        changed[at] ^= 0xFF
        path.write_bytes(changed)
        reads_or_says_why("ase_traj", path)


def vasprun(steps: int = 3) -> tuple[str, list[dict[str, Any]]]:
    """A file in the layout of VASP's vasprun.xml (vasp.at/wiki/Vasprun.xml), as far as it is read, and its numbers."""
    rng, made, calculations = np.random.default_rng(1), [], ""

    def rows(name: str, array: np.ndarray) -> str:
        lines = "".join(f"<v>{' '.join(f'{x:.8f}' for x in row)}</v>\n" for row in array)
        return f'<varray name="{name}">\n{lines}</varray>\n'

    for i in range(steps):
        step = {
            "scaled": np.round(rng.random((2, 3)), 8),
            "forces": np.round(rng.normal(0, 1, (2, 3)), 8),
            "stress": np.diag([10.0, 20.0, 30.0]) + i,
            "free": -8.0 - i,
            "zero": -7.9 - i,
        }
        made.append(step)
        basis = "".join(f"<v>{v}</v>\n" for v in ("4.0 0.0 0.0", "0.0 5.0 0.0", "0.0 0.0 6.0"))
        calculations += (
            "<calculation>\n<scstep>\n<energy>\n"
            f'<i name="e_fr_energy">{step["free"]}</i>\n<i name="e_wo_entrp">{step["zero"] + 0.1}</i>\n'
            f'<i name="e_0_energy">{step["zero"]}</i>\n</energy>\n</scstep>\n'
            f'<structure>\n<crystal>\n<varray name="basis">\n{basis}</varray>\n</crystal>\n'
            f"{rows('positions', step['scaled'])}</structure>\n"
            f"{rows('forces', step['forces'])}{rows('stress', step['stress'])}"
            f'<energy>\n<i name="e_fr_energy">{step["free"]}</i>\n<i name="e_wo_entrp">{step["zero"] + 0.1}</i>\n'
            f'<i name="e_0_energy">{step["zero"]}</i>\n</energy>\n</calculation>\n'
        )
    basis = "".join(f"<v>{v}</v>\n" for v in ("4.0 0.0 0.0", "0.0 5.0 0.0", "0.0 0.0 6.0"))
    head = (
        '<?xml version="1.0" encoding="ISO-8859-1"?>\n<modeling>\n<generator><i name="program" type="string">vasp</i>'
        "</generator>\n<kpoints>\n</kpoints>\n<parameters>\n</parameters>\n<atominfo>\n<atoms>2</atoms>\n"
        '<array name="atoms">\n<set>\n<rc><c>Na</c><c>1</c></rc>\n<rc><c>Cl</c><c>2</c></rc>\n</set>\n</array>\n'
        f'</atominfo>\n<structure name="initialpos">\n<crystal>\n<varray name="basis">\n{basis}</varray>\n</crystal>\n'
        f"{rows('positions', made[0]['scaled'])}</structure>\n"
    )
    return head + calculations + "</modeling>\n", made


@pytest.mark.parametrize("packed", [False, True])
def test_vasprun(tmp_path: Path, read: Any, packed: bool) -> None:
    text, made = vasprun()
    (tmp_path / "run7").mkdir()
    path = tmp_path / "run7" / ("vasprun.xml.gz" if packed else "vasprun.xml")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    found, quarantine = read("vasp", path)
    assert quarantine.total == 0
    assert found.energy.tolist() == [step["free"] for step in made]
    np.testing.assert_allclose(found.forces, np.concatenate([step["forces"] for step in made]), atol=1e-8)
    np.testing.assert_allclose(found.stress, [step["stress"] * KBAR for step in made], rtol=1e-6)
    positions = np.concatenate([step["scaled"] * [4.0, 5.0, 6.0] for step in made])
    np.testing.assert_allclose(found.positions, positions, atol=1e-7)
    assert found.numbers.tolist() == [11, 17] * 3
    assert found.pbc.all()
    assert found.name(1) == f"run7/{path.name}[1]"
    found, _ = read("vasp", path, energy_key="energy")
    assert found.energy.tolist() == [step["zero"] for step in made]


def test_pieces_of_vasprun(tmp_path: Path, read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """ASE reads a file as a whole: it is given one piece of a few steps after the other, wherever the file ends."""
    monkeypatch.setattr(vasp_steps, "PIECE", 2500)
    text, made = vasprun(7)
    path = save(tmp_path / "vasprun.xml", text)
    counts = [steps for _, steps in vasp_steps.xml_pieces(path)]
    assert sum(counts) == 7
    assert 1 < len(counts) < 7
    found, quarantine = read("vasp", path)
    assert quarantine.total == 0
    whole = list(iread(str(path), index=":", format="vasp-xml"))
    assert found.energy.tolist() == [step["free"] for step in made]
    np.testing.assert_array_equal(found.forces, np.concatenate([a.get_forces() for a in whole]))
    np.testing.assert_array_equal(found.positions, np.concatenate([a.positions for a in whole]))
    starts = [k for k in range(len(text)) if text.startswith("<calculation>", k)]
    for complete, start in enumerate(starts):
        for after in (0, 5, 300):
            if not complete:
                continue
            save(path, text[: start + after])
            found, quarantine = read("vasp", path, unfinished="read")
            assert found.energy.tolist() == [step["free"] for step in made[:complete]]
            assert quarantine.total == 0
    save(path, text.replace('<i name="e_fr_energy">-11.0</i>', '<i name="e_fr_energy">-11.0</x>'))
    with pytest.raises(
        RamifyError, match=r"damaged|truncated"
    ):  # in the middle: the steps after it are not passed over
        read("vasp", path)


def test_vasprun_that_ends_too_early(tmp_path: Path, read: Any) -> None:
    text, made = vasprun()
    path, rng = tmp_path / "vasprun.xml", np.random.default_rng(0)
    assert len(list(iread(str(save(path, text)), index=":", format="vasp-xml"))) == len(made)
    for size in rng.integers(200, len(text) - len("</modeling>\n"), 12).tolist():
        with pytest.raises(RamifyError, match="truncated"):
            read("vasp", save(path, text[:size]))
    stopped = text[: text.rindex("<calculation>") + 200]
    found, _ = read("vasp", save(path, stopped), unfinished="read")
    assert found.energy.tolist() == [step["free"] for step in made[:-1]]
    with pytest.raises(RamifyError, match=r"neither vasprun\.xml nor OUTCAR"):
        read("vasp", save(path, "<html></html>"))


def outcar(steps: int = 3) -> tuple[str, list[dict[str, Any]]]:
    """A file in the layout of VASP's OUTCAR (vasp.at/wiki/OUTCAR), as far as it is read, and its numbers."""
    rng, made = np.random.default_rng(2), []
    text = (
        " vasp.6.3.2 27Jun22 (build) complex\n"
        " POTCAR:    PAW_PBE Na_pv 19Sep2006\n POTCAR:    PAW_PBE Cl 06Sep2000\n"
        " POTCAR:    PAW_PBE Na_pv 19Sep2006\n POTCAR:    PAW_PBE Cl 06Sep2000\n"
        "   k-points           NKPTS =      1   k-points in BZ     NKDIM =      1   number of bands    NBANDS=     12\n"
        "   ions per type =               1   1\n"
        "   ISPIN  =      1    spin polarized calculation?\n"
        " k-points in reciprocal lattice and weights: gamma\n   0.00000000  0.00000000  0.00000000       1.000\n"
    )
    cell = np.array([[4.0, 0.0, 0.0], [0.5, 5.0, 0.0], [0.0, 0.25, 6.0]])
    for i in range(steps):
        step = {
            "positions": np.round(rng.random((2, 3)) @ cell, 5),
            "forces": np.round(rng.normal(0, 1, (2, 3)), 6),
            "kb": np.array([10.0, 20.0, 30.0, 1.0, 2.0, 3.0]) + i,  # XX YY ZZ XY YZ ZX
            "free": -8.0 - i,
            "zero": -7.9 - i,
        }
        made.append(step)
        rows = "".join(
            "".join(f"{x:13.5f}" for x in p) + "    " + "".join(f"{f:14.6f}" for f in g) + "\n"
            for p, g in zip(step["positions"], step["forces"], strict=True)
        )
        vectors = "".join("  " + "".join(f"{x:13.9f}" for x in v) + "     0.1 0.1 0.1\n" for v in cell)
        text += (
            f"--------------------------------------- Iteration      {i + 1}(   1)  ------------------------------\n"
            " E-fermi :   1.2345     XC(G=0):  -8.0000     alpha+bet : -6.0000\n"
            "  FORCE on cell =-STRESS in cart. coord.  units (eV):\n"
            "  Direction    XX          YY          ZZ          XY          YZ          ZX\n"
            f"  in kB  {' '.join(f'{x:11.5f}' for x in step['kb'])}\n"
            "      direct lattice vectors                 reciprocal lattice vectors\n" + vectors + "\n"
            " POSITION                                       TOTAL-FORCE (eV/Angst)\n"
            f" {'-' * 83}\n{rows} {'-' * 83}\n"
            "  FREE ENERGIE OF THE ION-ELECTRON SYSTEM (eV)\n"
            "  ---------------------------------------------------\n"
            f"  free  energy   TOTEN  = {step['free']:18.8f} eV\n\n"
            f"  energy  without entropy={step['zero'] + 0.1:18.8f}  energy(sigma->0) ={step['zero']:18.8f}\n"
        )
    return text + "\n General timing and accounting informations for this job:\n", made


@pytest.mark.parametrize("packed", [False, True])
def test_outcar(tmp_path: Path, read: Any, packed: bool) -> None:
    """The order of its stress is XX YY ZZ XY YZ ZX, which is neither Voigt's nor that of vasprun.xml."""
    text, made = outcar()
    (tmp_path / "run8").mkdir()
    path = tmp_path / "run8" / ("OUTCAR.gz" if packed else "OUTCAR")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    found, quarantine = read("vasp", path)
    assert quarantine.total == 0
    assert found.energy.tolist() == [step["free"] for step in made]
    np.testing.assert_allclose(found.forces, np.concatenate([step["forces"] for step in made]), atol=1e-8)
    np.testing.assert_allclose(found.positions, np.concatenate([step["positions"] for step in made]), atol=1e-7)
    for stress, step in zip(found.stress, made, strict=True):
        xx, yy, zz, xy, yz, zx = step["kb"] * KBAR
        np.testing.assert_allclose(stress, [[xx, xy, zx], [xy, yy, yz], [zx, yz, zz]], rtol=1e-6)
    np.testing.assert_allclose(found.cell[0], [[4, 0, 0], [0.5, 5, 0], [0, 0.25, 6]])
    assert found.numbers.tolist() == [11, 17] * 3
    assert found.pbc.all()
    assert found.name(1) == f"run8/{path.name}[1]"
    assert recognize(path) == "vasp"
    found, _ = read("vasp", path, energy_key="energy")
    assert found.energy.tolist() == [step["zero"] for step in made]


def test_outcar_that_ends_too_early(tmp_path: Path, read: Any) -> None:
    text, made = outcar()
    path = tmp_path / "OUTCAR"
    starts = [k for k in range(len(text)) if text.startswith(" POSITION  ", k)]
    end = text.index(" General timing")
    for size in (*starts, end, *np.random.default_rng(0).integers(200, end, 8).tolist()):
        with pytest.raises(RamifyError, match="truncated"):
            read("vasp", save(path, text[:size]))
    for size in range(starts[-1], end, 7):  # the last step is read whole, or not at all
        try:
            found, _ = read("vasp", save(path, text[:size]), unfinished="read")
        except RamifyError:
            continue
        whole = len(found)
        assert found.energy.tolist() == [step["free"] for step in made[:whole]]
        forces = np.concatenate([step["forces"] for step in made[:whole]])
        np.testing.assert_allclose(found.forces, forces, atol=1e-8)


def save(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
