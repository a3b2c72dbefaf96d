"""Errors against the labels of a file equal the known offsets of its labels, also after an interruption."""

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from ase.stress import full_3x3_to_voigt_6_stress

from ramify.inference.jobs import predict_file as module
from ramify.inference.jobs.predict_file import predict_file
from ramify.inference.label_errors import lines, results
from ramify.inference.model import Model

OFF_E = np.array([0.3, -0.1, 0.2, 0.4])
OFF_F = np.array([0.01, -0.02, 0.05])


@pytest.fixture
def labelled(conservative: Model, crystals: list[Atoms], tmp_path: Path) -> Path:
    """Crystals whose labels are the predictions of branch mptrj, off by known amounts; and one without labels."""
    made = []
    for atoms, off in zip(crystals, OFF_E, strict=True):
        found = conservative.predict(atoms, "mptrj")
        image = atoms.copy()
        stress = full_3x3_to_voigt_6_stress(found.stress - 1e-3)
        image.calc = SinglePointCalculator(image, energy=found.energy - off, forces=found.forces - OFF_F, stress=stress)
        made.append(image)
    write(tmp_path / "in.extxyz", [*made, crystals[0]], format="extxyz")
    return tmp_path / "in.extxyz"


def test_errors_are_those_worked_out_by_hand(
    conservative: Model, crystals: list[Atoms], labelled: Path, tmp_path: Path
) -> None:
    progress = predict_file(conservative, labelled, tmp_path / "out.extxyz", ["mptrj"])
    found = results(progress.errors["mptrj"])
    sizes = np.array([len(atoms) for atoms in crystals])
    assert found["energy"]["count"] == 4
    assert found["energy"]["mae"] == pytest.approx(np.abs(OFF_E).mean(), abs=1e-4)
    assert found["energy"]["rmse"] == pytest.approx(np.sqrt((OFF_E**2).mean()), abs=1e-4)
    assert found["energy_per_atom"]["mae"] == pytest.approx(np.abs(OFF_E / sizes).mean(), abs=1e-4)
    assert found["energy_per_atom"]["rmse"] == pytest.approx(np.sqrt(((OFF_E / sizes) ** 2).mean()), abs=1e-4)
    assert found["forces"]["count"] == 3 * sizes.sum()
    assert found["forces"]["mae"] == pytest.approx(np.abs(OFF_F).mean(), abs=1e-5)
    assert found["forces"]["rmse"] == pytest.approx(np.sqrt((OFF_F**2).mean()), abs=1e-5)
    for axis, off in zip("xyz", OFF_F, strict=True):
        assert found[f"forces_{axis}"]["mae"] == pytest.approx(abs(off), abs=1e-5)
    assert found["stress"]["mae"] == pytest.approx(1e-3, abs=1e-6)
    said = "\n".join(lines(found))
    for part in ("energy: MAE 0.25", "eV/atom", "eV/Å per component", "z 0.05", "eV/Å³", "4 structures"):
        assert part in said


def test_what_is_done_counts_where_the_work_goes_on(
    conservative: Model, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = predict_file(conservative, labelled, tmp_path / "whole.extxyz", ["mptrj", "qm7x"])
    monkeypatch.setattr(module, "CHUNK_STRUCTURES", 1)

    def stop(done: int, count: list[int] = [0]) -> None:  # noqa: B006  (counts the calls)
        count[0] += 1
        if count[0] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_file(conservative, labelled, tmp_path / "out.extxyz", ["mptrj", "qm7x"], progress=stop)
    again = predict_file(conservative, labelled, tmp_path / "out.extxyz", ["mptrj", "qm7x"])
    assert results(again.errors["mptrj"]) == {
        name: pytest.approx(entry, rel=1e-6) for name, entry in results(whole.errors["mptrj"]).items()
    }
    assert results(again.errors.get("qm7x", {})) == {}  # it knows none of these elements


def test_labels_that_predict_itself_has_kept(conservative: Model, labelled: Path, tmp_path: Path) -> None:
    """Its output can be predicted again: labels are under REF_energy, results under ASE's names."""
    first = predict_file(conservative, labelled, tmp_path / "a.extxyz", ["mptrj", "qm7x"])
    second = predict_file(conservative, tmp_path / "a.extxyz", tmp_path / "b.extxyz", ["mptrj"])
    assert results(second.errors["mptrj"])["forces"] == pytest.approx(
        results(first.errors["mptrj"])["forces"], rel=1e-4
    )


def test_labels_that_are_none(conservative: Model, tmp_path: Path) -> None:
    atoms = Atoms("OH2", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], info={"REF_energy": "unknown"})
    atoms.arrays["REF_forces"] = np.full((3, 3), np.nan)
    write(tmp_path / "in.extxyz", atoms, format="extxyz")
    progress = predict_file(conservative, tmp_path / "in.extxyz", tmp_path / "out.extxyz", ["qm7x"])
    assert results(progress.errors.get("qm7x", {})) == {}
