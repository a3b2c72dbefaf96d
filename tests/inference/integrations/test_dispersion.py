"""Dispersion as a correction: numbers of the library, derivatives, levels of theory that it fits, and where it acts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.io import read, write
from ase.stress import full_3x3_to_voigt_6_stress
from typer.testing import CliRunner

from ramify.cli.entry import app
from ramify.errors import RamifyError
from ramify.inference.integrations.ase import Calculator
from ramify.inference.integrations.mliap import write_mliap
from ramify.inference.jobs.predict_file import predict_file
from ramify.inference.model import Model, load
from ramify.model.physics.dispersion import Dispersion
from ramify.structures import Structures

pytest.importorskip("dftd3")

PBE = {"functional": "pbe", "damping": "bj"}


def images() -> list[Atoms]:
    """A molecule, a rattled crystal in a skewed cell, and a slab without a third cell vector."""
    crystal, slab = bulk("NaCl", "rocksalt", a=5.6), fcc111("Cu", (1, 1, 2))
    crystal.rattle(0.1, seed=0)
    slab.pbc, slab.cell[2] = (True, True, False), 0.0
    return [molecule("CH3CH2OH"), crystal, slab]


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        (PBE, {"method": "pbe", "damping": "d3bj"}),
        (PBE | {"damping": "zero"}, {"method": "pbe", "damping": "d3zero"}),
        ({"functional": "b3lyp", "damping": "mbj"}, {"method": "b3lyp", "damping": "d3mbj"}),
    ],
)
def test_numbers_of_the_library(keys: Mapping[str, Any], named: Mapping[str, Any]) -> None:
    """Its own calculator for ASE converts units itself. It has no partial periodicity without all cell vectors."""
    from dftd3.ase import DFTD3

    found = Dispersion.of(keys).energies(Structures.from_ase(images()))
    assert np.isnan(found[2]).all(axis=(1, 2)).tolist() == [True, False, False]
    first = 0
    for k, atoms in enumerate(images()):
        expected = atoms.copy()
        expected.cell = atoms.cell.complete()
        expected.calc = DFTD3(**named)
        assert found[0][k] == pytest.approx(expected.get_potential_energy(), abs=1e-9)
        forces = found[1][first : first + len(atoms)]
        np.testing.assert_allclose(forces, expected.get_forces(), atol=1e-9)
        assert atoms.pbc.any() == np.isfinite(found[2][k]).all()
        if atoms.pbc.any():
            np.testing.assert_allclose(full_3x3_to_voigt_6_stress(found[2][k]), expected.get_stress(), atol=1e-9)
        first += len(atoms)


def test_numbers_of_others() -> None:
    """PBE-D3(BJ) in eV: of water at https://dftd3.readthedocs.io, and of ethanol and benzene by tad-dftd3 0.7.0,
    an implementation in PyTorch, whose forces agreed to 1e-10 eV/Å."""
    atoms = [molecule(name) for name in ("H2O", "CH3CH2OH", "C6H6")]
    energy, _, _ = Dispersion.of(PBE).energies(Structures.from_ase(atoms))
    np.testing.assert_allclose(energy, [-0.00978192020, -0.11587460707, -0.29815767719], atol=2e-8)


def test_three_bodies_repel_a_little() -> None:
    """The term of Axilrod, Teller and Muto is positive for nearly equilateral triangles, and much the smaller one."""
    atoms = Structures.from_ase([Atoms("Ar3", [[0, 0, 0], [3.8, 0, 0], [1.9, 3.3, 0]])])
    (two,), (three,) = (Dispersion.of(PBE | {"three_body": more}).energies(atoms)[0] for more in (False, True))
    assert 0 < three - two < 0.1 * abs(two)


def test_derivatives_of_the_sum(stiff: Model, runs: Path) -> None:
    """Forces and stress of a branch with its correction against finite differences of the energies, by ASE. The library
    ends periodic sums at 60 Bohr, where energies jump by some 1e-8 eV, so that those of a crystal are less exact."""
    model = load(runs / "conservative", precision="fp64", dispersion=PBE | {"ignore_theory": True})
    model.network.load_state_dict(stiff.network.state_dict())
    atoms = molecule("CH3CH2OH")
    atoms.calc = Calculator(model, "qm7x")
    assert np.abs(atoms.get_forces() - stiff.predict(atoms, "qm7x").forces).max() > 1e-3
    np.testing.assert_allclose(atoms.get_forces(), calculate_numerical_forces(atoms, eps=1e-4), atol=1e-6)
    atoms = bulk("NaCl", "rocksalt", a=5.0)
    atoms.rattle(0.1, seed=0)
    atoms.calc = Calculator(model, "mptrj")
    plain = stiff.predict(atoms, "mptrj")
    assert atoms.get_potential_energy() < plain.energy - 0.1
    assert np.abs(atoms.get_stress(voigt=False) - plain.stress).max() > 5e-3
    np.testing.assert_allclose(atoms.get_stress(), calculate_numerical_stress(atoms, eps=1e-4), atol=2e-4)
    batched = model.predict([atoms, atoms], "mptrj")
    assert batched[1].energy == pytest.approx(atoms.get_potential_energy(), abs=1e-9)


def test_a_committee_adds_it_once(conservative: Model, direct: Model, runs: Path, tmp_path: Path) -> None:
    from shutil import copytree

    copytree(runs / "conservative", tmp_path / "other")
    model = load([runs / "conservative"], dispersion=PBE)
    atoms = bulk("NaCl", "rocksalt", a=5.6)
    (added,), _, _ = Dispersion.of(PBE).energies(Structures.from_ase([atoms]))
    plain = conservative.predict(atoms, "mptrj").energy
    assert model.predict(atoms, "mptrj").energy == pytest.approx(plain + added, abs=1e-6)


@pytest.mark.parametrize(
    ("theory", "functional", "why"),
    [
        ("ωB97M-D3(BJ)/def2-TZVPPD, Psi4", "wb97m", r"contains dispersion \(D3\)"),
        ("PBE0+MBD, FHI-aims", "pbe0", r"contains dispersion \(MBD\)"),
        ("ωB97M-V/def2-TZVPD", "wb97m", r"contains dispersion \(V\)"),
        ("OptB88vdW, VASP PAW", "pbe", r"contains dispersion \(vdW\)"),
        ("PBE-D4", "pbe", r"contains dispersion \(D4\)"),
        ("B97-3c", "b97", r"contains dispersion \(3c\)"),
        ("PBE0, FHI-aims", "pbe", r"'PBE0, FHI-aims', but the correction is that of the functional 'pbe'"),
        ("", "pbe", r"not stated"),
    ],
)
def test_labels_that_it_does_not_fit(theory: str, functional: str, why: str) -> None:
    keys = {"functional": "pbe", "damping": "bj"}
    dispersion = Dispersion.of(keys)
    object.__setattr__(dispersion, "options", dispersion.options.model_copy(update={"functional": functional}))
    with pytest.raises(RamifyError, match=rf"dataset 'a' .*{why}.*\n.*ignore_theory"):
        dispersion.must_fit("a", theory)
    Dispersion.of(keys | {"ignore_theory": True}).must_fit("a", theory)


@pytest.mark.parametrize(
    ("theory", "functional"),
    [
        ("PBE and PBE+U, VASP PAW, Materials Project settings (MPRelaxSet)", "pbe"),
        ("ωB97X/6-31G(d), ORCA 5.0.2", "wb97x"),
        ("CAM-B3LYP/aug-cc-pV(D+d)Z", "cam-b3lyp"),
        ("RPBE, VASP PAW, Open Catalyst settings", "rpbe"),
    ],
)
def test_labels_that_it_fits(theory: str, functional: str) -> None:
    Dispersion.of({"functional": functional, "damping": "zero"}).must_fit("a", theory)


def test_branches_are_checked_one_by_one(runs: Path) -> None:
    model = load(runs / "conservative", dispersion=PBE)
    assert model.predictor("mptrj").dispersion is not None
    with pytest.raises(RamifyError, match=r"dataset 'qm7x' is 'PBE0\+MBD.*counted twice"):
        Calculator(model, "qm7x")
    intended = load(runs / "conservative", dispersion=PBE | {"ignore_theory": True})
    assert (
        intended.predict(molecule("H2O"), "qm7x").energy
        < load(runs / "conservative").predict(molecule("H2O"), "qm7x").energy
    )


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"functional": "pbe"}, r"dispersion\.damping: missing"),
        ({"damping": "bj"}, r"dispersion\.functional: missing"),
        (PBE | {"s8": 1.0}, r"dispersion\.s8: unknown key; accepted: functional, damping"),
        (PBE | {"damping": "d3bj"}, r"dispersion\.damping.*'bj', 'zero', 'mbj' or 'mzero', found 'd3bj'"),
        (PBE | {"functional": "pbe9"}, r"'pbe9' has no parameters.*damping: bj"),
        ("pbe", r"dispersion: found 'pbe'"),
    ],
)
def test_wrong_keys(runs: Path, keys: Any, why: str) -> None:
    with pytest.raises(RamifyError, match=why):
        load(runs / "conservative", dispersion=keys)


def test_of_a_file(runs: Path, tmp_path: Path) -> None:
    """On the command line; an interrupted file without dispersion is not continued with it; exports refuse it."""
    model, source = runs / "conservative", tmp_path / "a.xyz"
    write(source, images()[1])
    arguments = ["predict", str(source), "--model", str(model), "--branch", "mptrj", "--out"]
    for name, more in (("plain", []), ("d3", ["--dispersion", "{functional: pbe, damping: bj}"])):
        done = CliRunner().invoke(app, [*arguments, str(tmp_path / f"{name}.xyz"), *more])
        assert done.exit_code == 0, done.output
    one, other = (read(tmp_path / f"{name}.xyz").get_potential_energy() for name in ("plain", "d3"))
    (added,), _, _ = Dispersion.of(PBE).energies(Structures.from_ase(images()[1:2]))
    assert other - one == pytest.approx(added, abs=1e-5)
    plain, corrected = load(model), load(model, dispersion=PBE)
    assert plain.identity == corrected.identity[:1]
    with pytest.raises(RuntimeError):
        predict_file(plain, source, tmp_path / "cut.xyz", ["mptrj"], progress=_stop)
    with pytest.raises(RamifyError, match="started with another input, model"):
        predict_file(corrected, source, tmp_path / "cut.xyz", ["mptrj"])


def _stop(structures: int) -> None:
    if structures:
        raise RuntimeError


def test_metatomic_refuses_it(runs: Path, tmp_path: Path) -> None:
    pytest.importorskip("metatomic.torch")
    from ramify.inference.integrations.metatomic import write_metatomic

    model = load(runs / "conservative", dispersion=PBE)
    with pytest.raises(RamifyError, match="cannot contain dispersion"):
        write_metatomic(model.predictor("mptrj"), tmp_path / "a.pt")


def test_mliap_refuses_it(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(RamifyError, match=r"(?s)it adds dispersion.*pair_style dispersion/d3"):
        write_mliap(load(runs / "conservative", dispersion=PBE), "mptrj", tmp_path / "a.pkl")
