"""The verbs that use a trained model, by the command line."""

import json
import re
from pathlib import Path

import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write

import ramify as package
from tests.processes.compiler import hide_compiler
from tests.small import files_of

from .conftest import Ramify, refused


@pytest.fixture
def water(tmp_path: Path) -> Path:
    """A file with one molecule."""
    write(tmp_path / "water.xyz", molecule("H2O"))
    return tmp_path / "water.xyz"


def test_export_predict_and_inspect(ramify: Ramify, finished: Path, water: Path, tmp_path: Path) -> None:
    said = ramify("export", finished / "run", "-o", "model", "-b", "qm7x")
    assert (said.status, said.err, said.out) == (0, "", "model: model\n")
    assert json.loads(ramify("inspect", "model", "--json").out)["branches"] == {"qm7x": ["qm7x"]}
    said = ramify("predict", water, "-m", "model", "-o", "out.extxyz")
    assert (said.status, said.err) == (0, "")
    assert "1 structures: out.extxyz" in said.out
    expected = package.load(finished / "run").predict(molecule("H2O"), "qm7x")
    found = read(tmp_path / "out.extxyz")
    assert found.get_potential_energy() == pytest.approx(expected.energy, abs=1e-5)
    said = ramify("predict", water, "-m", finished / "run", "--all-branches", "-o", "all.extxyz", "--json")
    assert json.loads(said.out) == {"written": 1, "skipped": {}, "warnings": 1, "out": "all.extxyz"}
    assert {"energy_qm7x", "energy_mptrj"} <= read(tmp_path / "all.extxyz").info.keys()


def test_what_is_left_out_is_said(ramify: Ramify, finished: Path, tmp_path: Path) -> None:
    write(tmp_path / "in.xyz", [molecule("H2O"), bulk("Cu"), molecule("SiH4")])
    said = ramify("predict", "in.xyz", "-m", finished / "run", "-b", "qm7x", "-o", "out.extxyz")
    assert said.status == 0
    assert "1 structures: out.extxyz" in said.out
    assert "skipped: 2 element that the branch never saw; see out.extxyz.skipped.jsonl" in said.out


def test_relax(ramify: Ramify, finished: Path, tmp_path: Path) -> None:
    write(tmp_path / "in.xyz", [molecule("H2O"), molecule("SiH4")])
    said = ramify("relax", "in.xyz", "-m", finished / "run", "-b", "qm7x", "-o", "out.extxyz", "--steps", "2")
    assert said.status == 0
    assert re.search(r"0 OH2: (NOT CONVERGED|converged), \d+ steps, [+-]\d\.\d+ eV, \d+\.\d+ eV/Å\n", said.out)
    assert "1 SiH4: skipped, element that the branch never saw: it holds Si" in said.out
    assert "skipped: 1 element that the branch never saw; see out.extxyz.skipped.jsonl" in said.out
    assert len(read(tmp_path / "out.extxyz", ":")) == 1


def test_md(ramify: Ramify, finished: Path, water: Path, tmp_path: Path) -> None:
    command = ("md", water, "-m", finished / "run", "-b", "qm7x")
    said = ramify(*command, "-o", "out.extxyz", "--temperature", "300", "--steps", "5", "--every", "5")
    assert said.status == 0
    assert "warning: branch 'qm7x' predicts forces directly" in said.out
    assert re.search(
        r"5 steps, 0\.003 ps, \d+ K on average; conserved energy drifts by -?\d+\.\d+ meV/atom/ps", said.out
    )
    assert len(read(tmp_path / "out.extxyz", ":")) == 2
    said = ramify(*command, "-o", "nvt.extxyz", "--temperature", "300", "--ensemble", "nvt", "--steps", "3", "--json")
    assert json.loads(said.out)["steps"] == 3


def test_a_model_that_cannot_be_compiled(
    ramify: Ramify, finished: Path, water: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_compiler(monkeypatch)
    common = (water, "-m", finished / "run", "-b", "qm7x", "--compile", "-o")
    for said in (ramify("predict", *common, "one.xyz"), ramify("relax", *common, "two.xyz", "--steps", "1")):
        assert said.status == 0
        assert "warning: branch 'qm7x' is used without compilation: compile=True: programs for the CPU need" in said.out


def test_md_of_replicas_that_resume(ramify: Ramify, finished: Path, water: Path, tmp_path: Path) -> None:
    command = ("md", water, "-m", finished / "run", "-b", "qm7x", "-o", "out.traj", "--replicas", "2", "--every", "1")
    refused(ramify(*command), "no temperature is given", "--temperature")
    options = ("--temperature", "300", "--ensemble", "nvt", "--thermostat", "nose-hoover", "--resume", "--json")
    for steps in (2, 3):
        found = json.loads(ramify(*command, *options, "--steps", steps).out)
        assert [report["steps"] for report in found] == [steps, steps]
        images = [read(tmp_path / f"out-{k}.traj", ":") for k in (0, 1)]
        assert [len(frames) for frames in images] == [steps + 1, steps + 1]
        assert abs(images[0][0].get_momenta() - images[1][0].get_momenta()).max() > 1e-3


def test_properties_of_crystals(ramify: Ramify, finished: Path, tmp_path: Path) -> None:
    """The barely trained model has no minimum in volume; its phonons exist all the same."""
    pytest.importorskip("phonopy")
    write(tmp_path / "si.xyz", bulk("Si"), format="extxyz")
    command = ("si.xyz", "-m", finished / "run", "-b", "mptrj", "-o", "out")
    said = ramify("phonons", *command, "--supercell", "1", "1", "1")
    assert re.search(r"frequencies from -?\d+\.\d+ to \d+\.\d+ THz", said.out)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "phonons.json",
        "phonons.svg",
        "phonopy_params.yaml",
    ]
    refused(ramify("phonons", *command), "out exists already", "--out")
    refused(ramify("eos", *command[:-1], "eos", "--points", "3"), "points=3", "5 or more")


def test_mistakes(ramify: Ramify, finished: Path, water: Path, tmp_path: Path) -> None:
    run = finished / "run"
    predict = ("predict", water, "-o", "out.extxyz", "-m")
    refused(ramify(*predict, run), "qm7x, mptrj", "--branch qm7x")
    refused(ramify(*predict, run, "-b", "qm7"), "'qm7'", "'qm7x'")
    refused(ramify(*predict, "nowhere", "-b", "qm7x"), "nowhere")
    refused(ramify(*predict, run, "-b", "qm7x", "--all-branches"), "--branch", "--all-branches")
    refused(ramify(*predict, run, "-b", "qm7x", "--precision", "half"), "precision 'half'", "'fp32'", "'fp64'")
    refused(ramify("predict", "no.xyz", "-m", run, "-b", "qm7x", "-o", "out.extxyz"), "no.xyz")
    refused(ramify("md", water, "-m", run, "-b", "qm7x", "-o", "out.extxyz"), "temperature")
    refused(ramify("export", run, "-o", "model", "-b", "qm7"), "'qm7'", "'qm7x'")
    (tmp_path / "model").mkdir()
    refused(ramify("export", run, "-o", "model"), "model exists already")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "water.xyz"]


def test_a_simulation_that_ends_early_says_so(ramify: Ramify, finished: Path, tmp_path: Path) -> None:
    atoms = molecule("H2O")
    atoms.set_momenta([[1e5, 0, 0], [0, 1e5, 0], [0, 0, 1e5]])
    write(tmp_path / "hot.xyz", atoms, format="extxyz")
    said = ramify("md", "hot.xyz", "-m", finished / "run", "-b", "qm7x", "-o", "out.extxyz", "--steps", "5")
    refused(said, "step 0", "out.extxyz", "--timestep")
    assert (tmp_path / "out.extxyz").exists()


def test_evaluate_on_a_file_and_of_an_export(ramify: Ramify, finished: Path, tmp_path: Path) -> None:
    atoms = molecule("H2O")
    found = package.load(finished / "run").predict(atoms, "qm7x")
    atoms.calc = SinglePointCalculator(atoms, energy=found.energy - 0.3, forces=found.forces)
    write(tmp_path / "test.extxyz", [atoms, molecule("SiH4")], format="extxyz")
    before = files_of(finished / "run")
    how = ("--file", "test.extxyz", "--dataset", "qm7x", "--format", "extxyz")
    said = json.loads(ramify("evaluate", finished / "run", *how, "--json").out)
    row = next(row for row in said["rows"] if row["branch"] == "qm7x")
    assert row["energy_mae"] == pytest.approx(0.1, abs=1e-4)
    assert row["forces_mae"] == pytest.approx(0.0, abs=1e-5)
    shown = ramify("evaluate", finished / "run", *how)
    assert "qm7x*" in shown.out
    assert "skipped: 1 " in shown.out
    assert files_of(finished / "run") == before
    refused(ramify("evaluate", finished / "run", "--dataset", "qm7x"), "--format define how --file is read")
    ramify("export", finished / "run", "-o", "model")
    refused(ramify("evaluate", "model"), "holds no store of a dataset of model", "--stores")
    rows = json.loads(ramify("evaluate", "model", "--stores", finished / "stores", "--json").out)["rows"]
    assert {(r["branch"], r["dataset"]) for r in rows} == {(b, d) for b in ("qm7x", "mptrj") for d in ("qm7x", "mptrj")}


def test_predict_says_how_far_off_it_is(ramify: Ramify, finished: Path, tmp_path: Path) -> None:
    atoms = molecule("H2O")
    found = package.load(finished / "run").predict(atoms, "qm7x")
    atoms.calc = SinglePointCalculator(atoms, energy=found.energy - 0.3, forces=found.forces - 0.02)
    write(tmp_path / "in.extxyz", atoms, format="extxyz")
    predict = ("predict", "in.extxyz", "-m", finished / "run", "-b", "qm7x", "-o")
    said = ramify(*predict, "out.extxyz")
    assert "energy: MAE 0.3, RMSE 0.3 eV" in said.out
    assert "energy per atom: MAE 0.1, RMSE 0.1 eV/atom" in said.out
    assert "forces: MAE 0.02, RMSE 0.02 eV/Å per component (MAE of x 0.02, y 0.02, z 0.02)" in said.out
    errors = json.loads(ramify(*predict, "again.extxyz", "--json").out)["errors"]
    assert errors["qm7x"]["energy"]["mae"] == pytest.approx(0.3, abs=1e-4)


def test_md_counts_from_the_end_too(ramify: Ramify, finished: Path, tmp_path: Path) -> None:
    write(tmp_path / "in.xyz", [molecule("H2O"), molecule("CH4"), molecule("NH3")], format="extxyz")
    command = ("md", "in.xyz", "-m", finished / "run", "-b", "qm7x", "--temperature", "300", "--steps", "1", "-o")
    for index, formula in ((-1, "NH3"), (-3, "OH2"), (1, "CH4")):
        assert ramify(*command, f"{index}.extxyz", "--index", index).status == 0
        assert read(tmp_path / f"{index}.extxyz").get_chemical_formula("hill") == molecule_formula(formula)
    refused(ramify(*command, "none.extxyz", "--index", -4), "in.xyz has no structure -4", "from -1 for the last")


def molecule_formula(symbols: str) -> str:
    """In Hill's order."""
    return str(Atoms(symbols).get_chemical_formula("hill"))


def test_memory_of_predict(ramify: Ramify, finished: Path, water: Path) -> None:
    command = ("predict", water, "-m", finished / "run", "-b", "qm7x", "-o")
    assert ramify(*command, "a.extxyz", "--memory", "1e0GB").status == 0
    refused(ramify(*command, "b.extxyz", "--memory", "much"), "--memory much", "64GB")
