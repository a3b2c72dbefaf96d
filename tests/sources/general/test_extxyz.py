"""Extended XYZ: where ASE puts labels, units, periodic flags, frames that cannot be used."""

import bz2
import gzip
import lzma
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from ase import Atoms
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import iread, write
from ase.io.extxyz import key_val_str_to_dict
from pydantic import ValidationError

from ramify.errors import RamifyError
from ramify.sources.formats import formats
from ramify.sources.formats.general import extxyz
from ramify.sources.parsing.xyz_frame import parse_comment
from ramify.sources.quarantine import Quarantine

WATER = """3
Properties=species:S:1:pos:R:3:forces:R:3 energy=-10.5 family=a pbc="F F F"
O 0.0 0.0 0.0 0.1 0.0 -0.3
H 0.0 0.0 1.0 0.0 0.2 0.3
H 0.0 1.0 0.0 -0.1 -0.2 0.0
"""
PERIODIC = """1
Lattice="3 0 0 0.5 4 0 0 0 5" Properties=species:S:1:pos:R:3:forces:R:3 energy=-1.0 family=b stress="1 2 3 2 4 5 3 5 6"
Cu 0.0 0.0 0.0 0.0 0.0 0.0
"""


def save(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_frames_as_they_stand(tmp_path: Path, read: Any) -> None:
    found, quarantine = read("extxyz", save(tmp_path / "a.xyz", WATER + PERIODIC))
    assert quarantine.total == 0
    assert found.energy.tolist() == [-10.5, -1.0]
    assert found.numbers.tolist() == [8, 1, 1, 29]
    np.testing.assert_array_equal(found.forces[2], [-0.1, -0.2, 0.0])
    assert found.pbc.tolist() == [[False] * 3, [True] * 3]
    np.testing.assert_array_equal(found.cell[1], [[3, 0, 0], [0.5, 4, 0], [0, 0, 5]])
    np.testing.assert_array_equal(found.stress[1], [[1, 2, 3], [2, 4, 5], [3, 5, 6]])
    assert np.isnan(found.stress[0]).all()
    assert found.group_names == ("H2O", "Cu")
    assert found.name(1) == "a.xyz[1]"


def test_labels_written_by_ase_under_any_name(tmp_path: Path, read: Any) -> None:
    rng = np.random.default_rng(0)
    images = []
    for i in range(600):  # more than one block of frames
        atoms = Atoms("Cu4", rng.normal(0, 2, (4, 3)), cell=np.eye(3) * 6 + rng.normal(0, 0.1, (3, 3)), pbc=[1, 1, 0])
        forces, stress = rng.normal(0, 1, (4, 3)), rng.normal(0, 1, 6)
        atoms.calc = SinglePointCalculator(atoms, energy=-float(i), forces=forces, stress=stress)
        atoms.arrays["dft_forces"], atoms.info["dft_energy"], atoms.info["dft_stress"] = (
            2 * forces,
            -2.0 * i,
            2 * stress,
        )
        images.append(atoms)
    write(tmp_path / "a.xyz", images, format="extxyz")
    found, _ = read("extxyz", tmp_path / "a.xyz")
    np.testing.assert_allclose(found.energy, [a.get_potential_energy() for a in images])
    np.testing.assert_allclose(found.forces, np.concatenate([a.get_forces() for a in images]), atol=1e-8)
    np.testing.assert_allclose(found.stress, [a.get_stress(voigt=False) for a in images], atol=1e-8)
    np.testing.assert_allclose(found.positions, np.concatenate([a.positions for a in images]), atol=1e-8)
    np.testing.assert_allclose(found.cell, [a.cell.array for a in images], atol=1e-8)
    assert found.pbc.tolist() == [[True, True, False]] * 600
    assert found.row.tolist() == list(range(600))
    again, _ = read(
        "extxyz", tmp_path / "a.xyz", energy_key="dft_energy", forces_key="dft_forces", stress_key="dft_stress"
    )
    np.testing.assert_allclose(again.energy, 2 * found.energy)
    np.testing.assert_allclose(again.forces, 2 * found.forces, atol=1e-7)
    np.testing.assert_allclose(again.stress, 2 * found.stress, atol=1e-7)


def test_stress_is_tension_positive(tmp_path: Path, read: Any) -> None:
    """EMT copper, squeezed: dE/dε / V by finite differences, without ASE's stress."""

    def copper(a: float) -> Atoms:
        atoms = Atoms(
            "Cu4", scaled_positions=[[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]], cell=[a] * 3, pbc=True
        )
        atoms.calc = EMT()
        return atoms

    squeezed = copper(3.5)
    squeezed.get_stress()
    write(tmp_path / "cu.xyz", squeezed, format="extxyz")
    found, _ = read("extxyz", tmp_path / "cu.xyz")
    h = 1e-4
    slope = (copper(3.5 + h).get_potential_energy() - copper(3.5 - h).get_potential_energy()) / (2 * h)
    expected = slope * 3.5 / 3 / 3.5**3  # dE/dε / V for equal strain of the three axes, per axis
    assert expected < 0
    assert found.stress[0, 0, 0] == pytest.approx(expected, rel=1e-4)
    found, _ = read("extxyz", tmp_path / "cu.xyz", stress_sign=-1)
    assert found.stress[0, 0, 0] == pytest.approx(-expected, rel=1e-4)


@pytest.mark.parametrize(
    ("units", "energy", "forces", "length"),
    [
        ({}, 1.0, 1.0, 1.0),
        ({"energy": "kcal/mol"}, 0.0433641043, 0.0433641043, 1.0),
        ({"energy": "kJ/mol"}, 0.0103642696, 0.0103642696, 1.0),
        ({"energy": "Hartree", "length": "bohr"}, 27.2113862, 51.4220675, 0.529177211),
        ({"energy": "Hartree", "forces": "Hartree/bohr"}, 27.2113862, 51.4220675, 1.0),
        ({"energy": "kcal/mol", "forces": "kcal/mol/bohr"}, 0.0433641043, 0.0819462809, 1.0),
        ({"energy": "meV", "length": "\u212b"}, 1e-3, 1e-3, 1.0),  # ångström sign instead of A with ring
    ],
)
def test_units(tmp_path: Path, read: Any, units: dict[str, str], energy: float, forces: float, length: float) -> None:
    found, _ = read("extxyz", save(tmp_path / "a.xyz", WATER), units=units)
    assert found.energy[0] == pytest.approx(-10.5 * energy, rel=1e-7)
    assert found.forces[0, 0] == pytest.approx(0.1 * forces, rel=1e-7)
    assert found.positions[1, 2] == pytest.approx(1.0 * length, rel=1e-7)


def test_stress_units_and_energy_per_atom(tmp_path: Path, read: Any) -> None:
    found, _ = read("extxyz", save(tmp_path / "a.xyz", PERIODIC), units={"stress": "kBar"}, stress_sign=-1)
    assert found.stress[0, 2, 2] == pytest.approx(-0.6 * 0.006241509074, rel=1e-7)
    found, _ = read("extxyz", save(tmp_path / "a.xyz", WATER), energy_is_per_atom=True)
    assert found.energy.tolist() == [-31.5]


@pytest.mark.parametrize("units", [{"energy": "ev"}, {"forces": "Hartree"}, {"length": "nm"}, {"time": "fs"}])
def test_unknown_units_are_refused(units: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        formats()["extxyz"].options.model_validate({"path": "x", "units": units})


def test_group_key(tmp_path: Path, read: Any) -> None:
    found, _ = read("extxyz", save(tmp_path / "a.xyz", WATER + PERIODIC + WATER), group_key="family")
    assert [found.group_names[g] for g in found.group] == ["a", "b", "a"]
    with pytest.raises(RamifyError, match=r"'familie' \(`group_key`\).*did you mean 'family'"):
        read("extxyz", tmp_path / "a.xyz", group_key="familie")


def test_energies_only(tmp_path: Path, read: Any) -> None:
    text = "1\nProperties=species:S:1:pos:R:3 energy=-13.6\nH 0 0 0\n"
    found, quarantine = read("extxyz", save(tmp_path / "a.xyz", text + WATER))
    assert quarantine.total == 0
    assert np.isnan(found.forces[0]).all()
    assert np.isfinite(found.forces[1:]).all()
    found, _ = read("extxyz", tmp_path / "a.xyz", forces_key=None)
    assert np.isnan(found.forces).all()


def test_forces_under_another_name_are_not_passed_over(tmp_path: Path, read: Any) -> None:
    renamed = save(tmp_path / "a.xyz", WATER.replace("forces:R", "dft_forces:R").replace("energy=", "dft_energy="))
    with pytest.raises(RamifyError, match=r"no 'energy' \(`energy_key`\), did you mean 'dft_energy'"):
        read("extxyz", renamed)
    with pytest.raises(RamifyError, match=r"no 'forces' \(`forces_key`\), did you mean 'dft_forces'"):
        read("extxyz", renamed, energy_key="dft_energy")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (" -0.3\n", "\n", "malformed structure"),  # a ragged force row
        ("energy=-10.5 ", "", "label not computed"),
        ("energy=-10.5", "energy=nan", "non-finite label"),
        ("0.1 0.0 -0.3", "0.1 nan -0.3", "non-finite label"),
        ("O 0.0", "Qq 0.0", "malformed structure"),
        ('pbc="F F F"', 'pbc="T T T"', "periodic without a cell"),
        ("O 0.0 0.0 0.0", "O 0.0 x 0.0", "malformed structure"),
    ],
)
def test_spoiled_frame_is_left_out_alone(tmp_path: Path, read: Any, old: str, new: str, reason: str) -> None:
    assert old in WATER
    path = save(tmp_path / "a.xyz", WATER + WATER.replace(old, new, 1) + WATER)
    found, quarantine = read("extxyz", path)
    assert found.row.tolist() == [0, 2]
    assert quarantine.counts == {reason: 1}


def test_blank_lines_between_frames_end_nothing(tmp_path: Path, read: Any) -> None:
    found, _ = read("extxyz", save(tmp_path / "a.xyz", WATER + "\n\n" + WATER + "\n"))
    assert len(found) == 2


def test_cut_short_and_misaligned(tmp_path: Path, read: Any) -> None:
    lines = (WATER + WATER).splitlines(keepends=True)
    for kept in range(6, 10):
        with pytest.raises(RamifyError, match=f"frame 1 announces 3 atoms and has {max(0, kept - 7)}"):
            read("extxyz", save(tmp_path / "a.xyz", "".join(lines[:kept])))
    with pytest.raises(RamifyError, match="frame 1 should begin with its number of atoms"):
        read("extxyz", save(tmp_path / "a.xyz", WATER + lines[4] + WATER))
    with pytest.raises(RamifyError, match="no structure"):
        read("extxyz", save(tmp_path / "a.xyz", ""))


def test_a_file_that_ends_within_its_last_row(tmp_path: Path, read: Any) -> None:
    """Cut at any byte of the last row: an error, or, where nothing is missing but the line break, the whole file."""
    text = WATER + PERIODIC + WATER
    start = len(text) - len("H 0.0 1.0 0.0 -0.1 -0.2 0.0\n")
    for size in range(start, len(text)):
        path = save(tmp_path / "a.xyz", text[:size])
        if size == len(text) - 1:
            assert len(read("extxyz", path)[0]) == 3
        else:
            with pytest.raises(RamifyError, match=r"truncated: .*frame 2"):
                read("extxyz", path)


def test_numbers_of_any_length_may_end_the_file(tmp_path: Path, read: Any) -> None:
    text = "3\n energy=1\nH 0 0 0.25\nH 0 0 1.5\nH 0 0 3"
    found, _ = read("extxyz", save(tmp_path / "a.xyz", text))
    assert found.positions[2].tolist() == [0, 0, 3]


def test_byte_order_mark(tmp_path: Path, read: Any) -> None:
    (tmp_path / "a.xyz").write_text(WATER + PERIODIC, encoding="utf-8-sig")
    found, quarantine = read("extxyz", tmp_path / "a.xyz")
    assert (len(found), quarantine.total) == (2, 0)


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz", "zst"])
def test_compressed(tmp_path: Path, read: Any, ending: str) -> None:
    compress: Any = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstandard.compress}[ending]
    text = b"\xef\xbb\xbf" + (WATER + PERIODIC).encode() * 3000
    (tmp_path / "whole").write_bytes(text)
    whole, _ = read("extxyz", tmp_path / "whole")
    packed = compress(text[: len(text) // 2]) + compress(text[len(text) // 2 :])  # two streams in one file
    path = tmp_path / f"a.xyz.{ending}"
    path.write_bytes(packed)
    found, quarantine = read("extxyz", path)
    assert quarantine.total == 0
    np.testing.assert_array_equal(found.positions, whole.positions)
    np.testing.assert_array_equal(found.energy, whole.energy)
    one = compress(text)
    for size in (len(one) // 3, len(one) // 2, len(one) - 1):
        path.write_bytes(one[:size])
        with pytest.raises(RamifyError, match="truncated"):
            read("extxyz", path)
    path.write_bytes(one[:20] + bytes(20) + one[40:])
    with pytest.raises(RamifyError, match=r"\n  fix: "):
        read("extxyz", path)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ('pbc="T T F"', [1, 1, 0]),
        ('pbc="[T, T, F]"', [1, 1, 0]),
        ("pbc=[T, F, F]", [1, 0, 0]),
        ('pbc="1 0 1"', [1, 0, 1]),
        ('pbc="True False true"', [1, 0, 1]),
        ("pbc={T T F}", [1, 1, 0]),
        ("pbc=F", [0, 0, 0]),
        ("", [1, 1, 1]),
    ],
)
def test_periodic_axes_in_every_spelling(tmp_path: Path, read: Any, written: str, expected: list[int]) -> None:
    found, quarantine = read("extxyz", save(tmp_path / "a.xyz", PERIODIC.replace("energy", f"{written} energy")))
    assert quarantine.total == 0
    assert found.pbc[0].tolist() == [bool(flag) for flag in expected]


@pytest.mark.parametrize("written", ['pbc="T T"', "pbc=maybe", 'pbc="T T 2"', 'pbc="0.5 1 1"', "pbc=T,T,T,F"])
def test_periodic_axes_that_say_nothing_are_not_guessed(tmp_path: Path, read: Any, written: str) -> None:
    path = save(tmp_path / "a.xyz", PERIODIC + PERIODIC.replace("energy", f"{written} energy"))
    found, quarantine = read("extxyz", path)
    assert len(found) == 1
    assert quarantine.counts == {"malformed structure": 1}
    assert "pbc" in quarantine.first["malformed structure"].detail


@pytest.mark.parametrize("written", ["None", "-1.5D+01", "null", "--", '"1 2"', "T", "1.0.0", "1,5"])
def test_an_energy_that_is_no_number_costs_its_frame_alone(tmp_path: Path, read: Any, written: str) -> None:
    path = save(tmp_path / "a.xyz", WATER + WATER.replace("energy=-10.5", f"energy={written}") + WATER)
    found, quarantine = read("extxyz", path)
    assert found.row.tolist() == [0, 2]
    assert quarantine.counts == {"malformed energy": 1}
    assert quarantine.first["malformed energy"].record == "a.xyz[1]"


def test_stress_of_six_numbers_is_in_voigt_order(tmp_path: Path, read: Any) -> None:
    for name in ("stress", "dft_stress"):
        path = save(tmp_path / "a.xyz", PERIODIC.replace('stress="1 2 3 2 4 5 3 5 6"', f'{name}="1 4 6 5 3 2"'))
        found, _ = read("extxyz", path, stress_key=name)
        np.testing.assert_array_equal(found.stress[0], [[1, 2, 3], [2, 4, 5], [3, 5, 6]])
    path = save(tmp_path / "a.xyz", PERIODIC.replace('"1 2 3 2 4 5 3 5 6"', '"1 2 3 4"') + PERIODIC)
    found, quarantine = read("extxyz", path)
    assert len(found) == 1
    assert quarantine.counts == {"malformed stress": 1}


def test_nested_brackets(tmp_path: Path, read: Any) -> None:
    text = PERIODIC.replace('stress="1 2 3 2 4 5 3 5 6"', "stress=[[1, 2, 3], [2, 4, 5], [3, 5, 6]]")
    text = text.replace('Lattice="3 0 0 0.5 4 0 0 0 5"', "Lattice=[[3, 0, 0], [0.5, 4, 0], [0, 0, 5]]")
    found, quarantine = read("extxyz", save(tmp_path / "a.xyz", text))
    assert quarantine.total == 0
    np.testing.assert_array_equal(found.stress[0], [[1, 2, 3], [2, 4, 5], [3, 5, 6]])
    np.testing.assert_array_equal(found.cell[0], [[3, 0, 0], [0.5, 4, 0], [0, 0, 5]])


def test_stress_of_a_virial(tmp_path: Path, read: Any) -> None:
    """EMT copper: the virial -dE/dε by finite differences of a strain, without ASE's stress."""
    cell = np.array([[3.4, 0, 0], [0, 3.6, 0], [0, 0, 3.5]])
    scaled = [[0, 0, 0], [0, 0.5, 0.52], [0.5, 0, 0.5], [0.51, 0.5, 0]]

    def energy(strain: np.ndarray) -> float:
        atoms = Atoms("Cu4", scaled_positions=scaled, cell=cell @ (np.eye(3) + strain), pbc=True)
        atoms.calc = EMT()
        return float(atoms.get_potential_energy())

    h, virial = 1e-4, np.zeros((3, 3))
    for i, j in np.ndindex(3, 3):
        strain = np.zeros((3, 3))
        strain[i, j] += h / 2
        strain[j, i] += h / 2
        virial[i, j] = -(energy(strain) - energy(-strain)) / (2 * h)
    atoms = Atoms("Cu4", scaled_positions=scaled, cell=cell, pbc=True)
    atoms.calc = EMT()
    expected, forces = atoms.get_stress(voigt=False), atoms.get_forces()
    assert np.trace(expected) < 0  # squeezed: compression is negative
    atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=forces)
    atoms.info["virial"] = virial
    write(tmp_path / "a.xyz", atoms, format="extxyz")
    found, _ = read("extxyz", tmp_path / "a.xyz", virial_key="virial")
    np.testing.assert_allclose(found.stress[0], expected, atol=1e-5)
    with pytest.raises(
        RamifyError, match=r"it has a virial, 'virial'(.|\n)*`virial_key: virial`(.|\n)*`stress_key: null`"
    ):
        read("extxyz", tmp_path / "a.xyz")
    found, _ = read("extxyz", tmp_path / "a.xyz", stress_key=None)
    assert np.isnan(found.stress).all()
    with pytest.raises(ValidationError, match="virial_key: virial"):
        read("extxyz", tmp_path / "a.xyz", stress_key="virial")
    with pytest.raises(RamifyError, match=r"no 'virials' \(`virial_key`\), did you mean 'virial'"):
        read("extxyz", tmp_path / "a.xyz", virial_key="virials")


def test_stress_and_virial_must_agree(tmp_path: Path, read: Any) -> None:
    virial = "-60 -120 -180 -120 -240 -300 -180 -300 -360"  # -V σ, V = 60 Å³
    right = PERIODIC.replace("energy", f'virial="{virial}" energy')
    wrong = PERIODIC.replace("energy", f'virial="{virial.replace("-", "")}" energy')
    path = save(tmp_path / "a.xyz", right + wrong)
    found, quarantine = read("extxyz", path, virial_key="virial")
    np.testing.assert_array_equal(found.stress, [[[1, 2, 3], [2, 4, 5], [3, 5, 6]]])
    assert quarantine.counts == {"stress and virial contradict each other": 1}
    found, quarantine = read("extxyz", path)  # a stress everywhere: the virial adds nothing
    assert (len(found), quarantine.remarks) == (2, {})
    mixed = save(tmp_path / "b.xyz", PERIODIC + PERIODIC.replace("stress=", "virial="))
    _, quarantine = read("extxyz", mixed)
    assert quarantine.remarks == {"stress or virial under another key, not read": 1}
    molecule = WATER.replace("energy", f'virial="{virial}" energy')
    found, quarantine = read("extxyz", save(tmp_path / "c.xyz", molecule + right), virial_key="virial")
    assert np.isnan(found.stress[0]).all()
    assert quarantine.remarks == {"stress without a cell, left out": 1}


def test_stress_under_another_name_is_not_passed_over(tmp_path: Path, read: Any) -> None:
    path = save(tmp_path / "a.xyz", WATER + PERIODIC.replace("stress=", "dft_stress="))
    with pytest.raises(RamifyError, match=r"no 'stress' \(`stress_key`\), did you mean 'dft_stress'"):
        read("extxyz", path)
    with pytest.raises(RamifyError, match=r"no 'stres' \(`stress_key`\)"):
        read("extxyz", save(tmp_path / "b.xyz", WATER), stress_key="stres")
    found, _ = read("extxyz", tmp_path / "b.xyz")  # a file without stresses
    assert np.isnan(found.stress).all()


@pytest.mark.parametrize(
    ("unit", "factor"),
    [
        ("bar", 6.241509074e-7),
        ("kBar", 6.241509074e-4),
        ("GPa", 6.241509074e-3),
        ("eV/Å³", 1.0),
        ("eV/A^3", 1.0),
        ("Hartree/bohr³", 183.6315),
    ],
)
def test_units_of_stress(tmp_path: Path, read: Any, unit: str, factor: float) -> None:
    found, _ = read("extxyz", save(tmp_path / "a.xyz", PERIODIC), units={"stress": unit})
    assert found.stress[0, 2, 2] == pytest.approx(6 * factor, rel=1e-6)


def test_units_that_the_comment_states(tmp_path: Path, read: Any) -> None:
    text = WATER.replace("energy=", 'energy_unit=kcal/mol forces_units="kcal/mol/Ang" energy=')
    found, _ = read("extxyz", save(tmp_path / "a.xyz", text))
    assert found.energy[0] == pytest.approx(-10.5 * 0.0433641043, rel=1e-7)
    assert found.forces[0, 0] == pytest.approx(0.1 * 0.0433641043, rel=1e-7)
    with pytest.raises(RamifyError, match="energy is in kcal/mol, the recipe reads it as eV"):
        read("extxyz", tmp_path / "a.xyz", units={"energy": "eV"})


def test_a_file_of_which_nothing_can_be_read_says_why(tmp_path: Path, read: Any) -> None:
    path = save(tmp_path / "a.xyz", WATER.replace("H ", "H1 ") * 40)
    with pytest.raises(RamifyError, match=r"40 malformed structure \(first: a\.xyz\[0\]: \['H1'\]"):
        read("extxyz", path)


def test_a_missing_group_costs_its_frame_alone(tmp_path: Path, read: Any) -> None:
    path = save(tmp_path / "a.xyz", WATER + WATER.replace("family=a ", "") + PERIODIC)
    found, quarantine = read("extxyz", path, group_key="family")
    assert found.row.tolist() == [0, 2]
    assert quarantine.counts == {"group not stated": 1}


def test_atomic_numbers_that_are_no_element(tmp_path: Path, read: Any) -> None:
    text = "1\nProperties=Z:I:1:pos:R:3 energy=-1.0\n{} 0 0 0\n"
    path = save(tmp_path / "a.xyz", "".join(text.format(z) for z in (1, -1, 300, 0, 119, 118)))
    found, quarantine = read("extxyz", path)
    assert found.numbers.tolist() == [1, 118]
    assert quarantine.counts == {"malformed structure": 4}


COMMENTS = [
    'Lattice="1 2 3 4 5 6 7 8 9" a=1 b=2.5 c="1 2 3" d=T e="T F" f=text g="two words" h={1 2} i',
    "energy=-1.5e-3 name='single quoted' n=1_x k=nan",
    'j="_JSON [1.5, 2.5]" q="with \\" quote" empty=""',
]


@pytest.mark.parametrize("comment", COMMENTS)
def test_comments_as_ase_reads_them(comment: str) -> None:
    expected, found = key_val_str_to_dict(comment), parse_comment(comment)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if key == "Lattice":
            np.testing.assert_array_equal(found[key], value.T)
        else:
            np.testing.assert_array_equal(found[key], value)


@pytest.mark.parametrize(
    "file", ["gst_vasp/validate.xyz", "mad_pbesol_qe/mad_val_small_1000.xyz", "acac_pbe_d3/train_300K.xyz"]
)
def test_real_frames_as_ase_reads_them(shared: Path, file: str) -> None:
    images = iread(shared / "data" / file, index=":60", format="extxyz")
    for (_, ours), theirs in zip(extxyz.read_frames(shared / "data" / file, Quarantine()), images, strict=False):
        assert ours == theirs  # numbers, positions, cell, pbc
        assert ours.info.keys() == theirs.info.keys()
        assert ours.arrays.keys() == theirs.arrays.keys()
        for name, value in theirs.calc.results.items():
            np.testing.assert_array_equal(ours.calc.results[name], value)


@pytest.mark.parametrize(
    ("file", "count", "atoms", "energies", "keys"),
    [
        ("bpa3_wb97x/train_300K.xyz", 500, 27, (-654.1042, None, None), {}),
        ("acac_pbe_d3/train_300K.xyz", 500, 15, (None, None, None), {}),
        ("ethanol_methanol_pbe/train_eth_meth.xyz", 1300, 9, (-523.7562, -467.7444, -467.6465), {}),
        ("gst_vasp/validate.xyz", 200, 81, (-4.1712, -4.0682, -3.7763), {}),
        ("hea25_vasp/hea_samples_bulk.xyz", 100, 36, (-12.8804, -7.1185, -2.1694), {}),
        ("mad_pbesol_qe/mad_val_small_1000.xyz", 1000, 20, (-10.7073, -5.5073, 0.4071), {}),
        (
            "md17_ethanol_kcal/ethanol_sampledata.xyz",
            2000,
            9,
            (-468.3595, -468.3137, -468.2269),
            {"energy": "kcal/mol"},
        ),
    ],
)
def test_real_files(
    shared: Path, read: Any, file: str, count: int, atoms: int, energies: tuple[Any, ...], keys: dict[str, str]
) -> None:
    found, quarantine = read("extxyz", shared / "data" / file, units=keys)
    assert len(found) == count
    assert quarantine.total == 0
    assert np.median(found.n_atoms) == atoms
    per_atom = found.energy / found.n_atoms
    for got, expected in zip((per_atom.min(), np.median(per_atom), per_atom.max()), energies, strict=True):
        assert expected is None or math.isclose(got, expected, abs_tol=1e-4)
    assert np.isfinite(found.forces).all()
    assert found.pbc.all() == (file.split("/")[0] in ("gst_vasp", "hea25_vasp", "mad_pbesol_qe"))
    assert found.pbc.any() == found.pbc.all()
    assert np.isfinite(found.stress).all() == found.pbc.all()


def test_benchmark_groups(shared: Path, read: Any) -> None:
    found, _ = read("extxyz", shared / "benchmark/five/mad/train.extxyz", group_key="group")
    assert len(found) == 709
    assert len(found.numbers) == 19908
    assert len(found.group_names) == 692
