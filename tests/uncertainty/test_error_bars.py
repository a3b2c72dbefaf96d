"""Error bars of a run, of its export, of the calculator and of simulations; they change no energy and no force."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import read, write

from ramify.checkpoint.pointers import resolve
from ramify.errors import RamifyError, RamifyWarning
from ramify.inference.export.exported import write_export
from ramify.inference.integrations.ase import Calculator
from ramify.inference.jobs.dynamics import DynamicsOptions, simulate
from ramify.inference.jobs.predict_file import predict_file
from ramify.inference.model import load, read_saved
from ramify.inspect import describe
from ramify.uncertainty.calibrate import calibrate_run
from ramify.uncertainty.error_bars import FILE, ErrorBars
from ramify.uncertainty.measures import POINTS
from tests.cli.conftest import call
from tests.small import flip_byte


@pytest.fixture
def images() -> list[Atoms]:
    """Molecules, moved a little; the last one is broken."""
    found = [molecule(name) for name in ("CH3CH2OH", "H2O", "C6H6", "CH4")]
    for k, atoms in enumerate(found):
        atoms.rattle(0.03, seed=k)
    found[-1].positions[-1] *= 1.8
    return found


@pytest.mark.parametrize("kind", ["direct", "conservative"])
def test_energies_and_forces_are_the_same_without(calibrated: Path, images: list[Atoms], kind: str) -> None:
    model = load(calibrated / kind)
    with_bars = model.predict(images, "ani1x", forces_std=True)
    without = replace(model, bars=None).predict(images, "ani1x")
    np.testing.assert_array_equal(with_bars.energy, without.energy)
    assert with_bars.forces_of_atoms is not None
    assert without.forces_of_atoms is not None
    np.testing.assert_array_equal(with_bars.forces_of_atoms, without.forces_of_atoms)
    assert without.energy_std is None
    assert with_bars.energy_std is not None
    assert with_bars.forces_std is not None
    assert (with_bars.energy_std > 0).all()
    assert [f.shape for f in with_bars.forces_std] == [(len(atoms), 3) for atoms in images]
    energy_std, alone = with_bars.energy_std, model.predict(images[1], "ani1x")
    assert alone.energy_std == pytest.approx(energy_std[1], rel=1e-12)
    assert alone.forces_std is None


def test_they_are_kept_by_an_export(calibrated: Path, images: list[Atoms], tmp_path: Path) -> None:
    write_export(read_saved(calibrated / "conservative"), tmp_path / "model", ["ani1x"])
    model, exported = load(calibrated / "conservative"), load(tmp_path / "model")
    assert exported.bars is not None
    assert list(exported.bars.branches) == ["ani1x"]
    assert set(exported.bars.measured) == {"ani1x"}
    found, expected = (m.predict(images, "ani1x", forces_std=True) for m in (exported, model))
    np.testing.assert_array_equal(found.energy_std, expected.energy_std)
    np.testing.assert_array_equal(found.forces_std_of_atoms, expected.forces_std_of_atoms)
    (card,) = (line for line in (tmp_path / "model/README.md").read_text().splitlines() if "| ani1x | energy |" in line)
    assert f"| {exported.bars.measured['ani1x']['energy']['spearman']:.2f} |" in card
    assert describe(tmp_path / "model", verify=False)[1]["calibrated"] == {"ani1x": ["ani1x"]}
    assert describe(calibrated / "conservative", verify=False)[1]["calibrated"].keys() == model.bars.branches.keys()
    flip_byte(tmp_path / "model" / FILE)
    with pytest.raises(RamifyError, match="checksum"):
        load(tmp_path / "model")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TorchScript's
@pytest.mark.parametrize("kind", ["direct", "conservative"])
def test_metatomic_models_have_them(calibrated: Path, tmp_path: Path, kind: str) -> None:
    """Of systems those of `predict`, for sets of elements with a scale of their own and without; by atom those of a
    system with this atom alone, to which programs compare their threshold."""
    metatomic = pytest.importorskip("ramify.inference.integrations.metatomic")
    torch_models = pytest.importorskip("metatomic.torch")
    calculator = pytest.importorskip("metatomic_ase").MetatomicCalculator
    model = load(calibrated / kind)
    assert model.bars is not None
    scale = model.bars.branches["ani1x"].facts.datasets["ani1x"].energy
    scale.by_elements["H O"] = 3.0 * scale.all
    path = metatomic.write_metatomic(model.predictor("ani1x"), tmp_path / "model.pt")
    asked = calculator(str(path), device="cpu", uncertainty_threshold=1e-9)

    def found(atoms: Atoms, sample: str) -> np.ndarray:
        output = torch_models.ModelOutput(unit="eV", sample_kind=sample)
        result = asked.run_model(atoms, {"energy_uncertainty": output})
        return result["energy_uncertainty"].block().values[:, 0].numpy()

    for atoms in (molecule("H2O"), molecule("CH3OH"), Atoms("C")):
        expected = model.predict(atoms, "ani1x").energy_std
        assert found(atoms, "system")[0] == pytest.approx(expected, rel=1e-9)
    assert found(Atoms("C"), "atom")[0] == pytest.approx(model.predict(Atoms("C"), "ani1x").energy_std, rel=1e-9)
    assert found(molecule("H2O"), "atom").shape == (3,)
    atoms = molecule("CH3OH")
    atoms.calc = asked
    with pytest.warns(UserWarning, match="uncertainties"):
        atoms.get_potential_energy()


def test_a_run_keeps_its_file(calibrated: Path) -> None:
    bars = ErrorBars.read(calibrated / "direct" / FILE)
    assert bars.content() == (calibrated / "direct" / FILE).read_bytes()
    for branch in bars.branches.values():
        assert np.linalg.eigvalsh(branch.tensors["covariance"]).min() > -1e-8 * np.trace(branch.tensors["covariance"])
    assert bars.branches["bare"].facts.datasets["bare"].forces is None
    assert set(bars.measured["ani1x"]) == {"energy", "forces"}
    with np.load(calibrated / "direct" / POINTS) as points:
        error, std = points["ani1x.energy_error"], points["ani1x.energy_std"]
    measured = bars.measured["ani1x"]["energy"]
    assert measured["rows"] == len(error)
    assert measured["coverage_1"] == pytest.approx((np.abs(error) <= std).mean(), abs=1.5 / len(error))


def test_those_of_other_weights_are_not_used(calibrated: Path, tmp_path: Path) -> None:
    """The file of one run is in another: its error bars would be wrong."""
    run = shutil.copytree(calibrated / "direct", tmp_path / "run", symlinks=True)
    shutil.copyfile(calibrated / "conservative" / FILE, run / FILE)
    with pytest.warns(RamifyWarning, match="other weights"):
        model = load(run)
    assert model.bars is None
    with pytest.raises(RamifyError, match="ramify calibrate"):
        model.predict(molecule("H2O"), "ani1x", forces_std=True)
    with pytest.raises(RamifyError, match="no error bars of forces"):
        load(calibrated / "direct").predict(molecule("H2O"), "bare", forces_std=True)


def test_predicted_files_have_them(calibrated: Path, images: list[Atoms], tmp_path: Path) -> None:
    write(tmp_path / "in.xyz", images, format="extxyz")
    model = load(calibrated / "direct")
    predict_file(model, tmp_path / "in.xyz", tmp_path / "out.xyz", ["ani1x"], forces_std=True)
    predict_file(model, tmp_path / "in.xyz", tmp_path / "all.xyz", ["ani1x", "bare"])
    expected = model.predict(images, "ani1x", forces_std=True)
    assert expected.energy_std is not None
    assert expected.forces_std is not None
    for k, atoms in enumerate(read(tmp_path / "out.xyz", ":")):
        assert atoms.info["energy_std"] == pytest.approx(expected.energy_std[k], rel=1e-6)
        np.testing.assert_allclose(atoms.arrays["forces_std"], expected.forces_std[k], atol=1e-7)
    assert read(tmp_path / "all.xyz", "1").info["energy_std_bare"] > 0


def test_calculator_and_simulation(calibrated: Path) -> None:
    """A simulation ends, or warns once, where the error bar exceeds the limit."""
    atoms, calculator = molecule("CH4"), Calculator(calibrated / "conservative", "ani1x", forces_std=True)
    atoms.calc = calculator
    std = atoms.calc.get_property("energy_std", atoms) / len(atoms)
    assert atoms.calc.results["forces_std"].shape == (5, 3)
    options = DynamicsOptions(steps=3, max_std=0.5 * std)
    frames: list[Atoms] = []
    report = simulate(atoms.copy(), calculator, options, frames.append)
    assert "step 0: standard deviation of the energy" in report.stopped
    assert len(frames) == 1
    with pytest.warns(RamifyWarning, match="above the limit") as seen:
        assert simulate(atoms.copy(), calculator, replace(options, beyond="warn")).stopped == ""
    assert len([w for w in seen if "above the limit" in str(w.message)]) == 1
    assert simulate(atoms.copy(), calculator, replace(options, max_std=100 * std)).stopped == ""
    bare = Calculator(replace(calculator.model, bars=None), "ani1x")
    with pytest.raises(RamifyError, match="no error bars"):
        simulate(atoms.copy(), bare, options)


def test_the_command(calibrated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = shutil.copytree(calibrated / "direct", tmp_path / "run", symlinks=True)
    (run / FILE).unlink()
    assert call("calibrate", run, "--stores", calibrated / "stores", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == ErrorBars.read(calibrated / "direct" / FILE).measured
    assert (run / FILE).read_bytes() == (calibrated / "direct" / FILE).read_bytes()


def test_errors_of_calibration(calibrated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RamifyError, match="not a run"):
        calibrate_run(resolve(calibrated / "direct/checkpoints/best"))
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(RamifyError, match="by one process, 2 were started"):
        calibrate_run(calibrated / "direct")
