"""Committees: means and standard deviations of several models, in predictions, calculators, files and simulations."""

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import read, write

from ramify.errors import RamifyError
from ramify.inference.integrations.ase import Calculator
from ramify.inference.model import Model, load
from ramify.prepare.prepare import prepare_dataset
from tests.cli.conftest import call
from tests.small import make_recipe, prepare_stores, train


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three seeds of one recipe with conservative forces, in float64."""
    folder = tmp_path_factory.mktemp("committee")
    entries = prepare_stores(folder)
    chosen = {name: entries[name] for name in ("ani1x", "mptrj")}
    for seed in range(3):
        changes = {"model__force_head__kind": "conservative", "train__precision": "fp64", "train__max_steps": 4}
        train(make_recipe(folder, chosen, train__seed=seed, **changes), folder / f"seed{seed}")
    return [folder / f"seed{seed}" for seed in range(3)]


@pytest.fixture(scope="module")
def committee(runs: list[Path]) -> Model:
    return load(runs)


@pytest.fixture
def images() -> list[Atoms]:
    found = [molecule(name) for name in ("CH3CH2OH", "H2O", "CH4")]
    for k, atoms in enumerate(found):
        atoms.rattle(0.03, seed=k)
    return found


def test_predictions_are_means_with_their_spread(committee: Model, runs: list[Path], images: list[Atoms]) -> None:
    found = committee.predict(images, "ani1x", forces_std=True)
    each = [load(run).predict(images, "ani1x") for run in runs]
    energies = np.array([one.energy for one in each])
    np.testing.assert_allclose(found.energy, energies.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.energy_std, energies.std(0, ddof=1), rtol=1e-6)
    forces = np.array([one.forces_of_atoms for one in each])
    np.testing.assert_allclose(found.forces_of_atoms, forces.mean(0), atol=1e-12)
    np.testing.assert_allclose(np.concatenate(found.forces_std), forces.std(0, ddof=1), atol=1e-12)
    assert (np.array(found.energy_std) > 0).all()
    assert committee.predict(images, "ani1x").forces_std is None


def test_calculators_have_stress_and_forces_that_agree_with_energies(committee: Model, runs: list[Path]) -> None:
    """Also a mean of energies has the mean of the forces as its gradient: finite differences."""
    atoms = bulk("NaCl", "rocksalt", 5.6)
    atoms.rattle(0.05, seed=1)
    elements = set(committee.branches["mptrj"].datasets["mptrj"].elements)
    atoms.symbols = sorted(elements)[:2]
    atoms.calc = Calculator(committee, "mptrj", forces_std=True)
    forces, stress = atoms.get_forces(), atoms.get_stress()
    assert atoms.calc.results["energy_std"] > 0
    assert atoms.calc.results["forces_std"].shape == (2, 3)
    each = [Calculator(run, "mptrj") for run in runs]
    np.testing.assert_allclose(stress, np.mean([one.get_stress(atoms) for one in each], axis=0), atol=1e-12)
    moved, step = [atoms.copy(), atoms.copy()], 1e-4
    for sign, image in zip((1, -1), moved, strict=True):
        image.positions[1, 2] += sign * step
        image.calc = Calculator(committee, "mptrj")
    slope = (moved[0].get_potential_energy() - moved[1].get_potential_energy()) / (2 * step)
    assert forces[1, 2] == pytest.approx(-slope, abs=1e-6)


def test_the_command_line(runs: list[Path], images: list[Atoms], tmp_path: Path) -> None:
    """Files and simulations, which resume only with the same committee."""
    write(tmp_path / "in.xyz", images, format="extxyz")
    models = [word for run in runs for word in ("--model", run)]
    assert call("predict", tmp_path / "in.xyz", *models, "--branch", "ani1x", "--out", tmp_path / "out.xyz") == 0
    expected = load(runs).predict(images, "ani1x")
    written = read(tmp_path / "out.xyz", ":")
    np.testing.assert_allclose([atoms.info["energy_std"] for atoms in written], expected.energy_std, rtol=1e-6)
    md = (
        "md",
        tmp_path / "in.xyz",
        "--index",
        0,
        "--branch",
        "ani1x",
        "--temperature",
        300,
        "--out",
        tmp_path / "md.xyz",
    )
    assert call(*md, *models, "--steps", 2, "--max-std", 1e6) == 0
    assert call(*md, *models[:4], "--steps", 4, "--resume", "--max-std", 1e6) == 1


def test_models_that_form_no_committee(runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs[0].parent)
    with pytest.raises(RamifyError, match="their weights are the same"):
        load([runs[0], "seed0"])  # the same run by another path
    with pytest.raises(RamifyError, match="no model is given"):
        load([])
    entries = prepare_stores(tmp_path)
    one = {"model__force_head__kind": "conservative", "train__precision": "fp64", "train__max_steps": 1}
    for name, changes, differing in (
        ("direct", {"model__force_head__kind": "direct"}, "forces of branch ani1x is conservative and direct"),
        ("short", {"model__encoder__cutoff": 3.0}, "cutoff is"),
    ):
        chosen = {dataset: entries[dataset] for dataset in ("ani1x", "mptrj")}
        train(make_recipe(tmp_path, chosen, **(one | changes)), tmp_path / name)
        with pytest.raises(RamifyError, match=rf"cannot form a committee: {differing}[\s\S]*train\.seed"):
            load([runs[0], tmp_path / name])
    for theory in ("PBE", "r2SCAN"):
        bare = make_recipe(tmp_path / theory, {"bare": entries["bare"] | {"theory": theory}}, train__max_steps=1)
        prepare_dataset("bare", bare.datasets["bare"], Path(bare.stores), base=tmp_path)
        train(bare, tmp_path / theory / "run")
    with pytest.raises(RamifyError, match="theory of bare in branch bare is PBE and r2SCAN"):
        load([tmp_path / "PBE/run", tmp_path / "r2SCAN/run"])
    assert not load([runs[0]]).members
