"""The validation metric: labels whose trivial error is rounding, and stress where it is trained on."""

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import write
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ramify.checkpoint.checkpoint import open_checkpoint
from ramify.cli.progress import evaluation_text
from ramify.evaluate.evaluate import Evaluator
from ramify.evaluate.results import Results
from ramify.prepare.prepare import prepare_dataset
from ramify.recipe import Recipe
from ramify.report import report, tables
from ramify.train.reporting import Callbacks
from tests.small import ENTRIES, make_recipe, metrics, train

from .conftest import MakeRecipe


def constant(folder: Path, *others: str, **changes: object) -> Recipe:
    """A recipe over water molecules of many shapes that all have one energy and no forces worth the name; prepared."""
    rng = np.random.default_rng(0)
    images = []
    for row in range(60):
        atoms = Atoms("OH2", positions=[[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
        atoms.positions += rng.normal(0, 0.05, (3, 3))
        atoms.info = {"energy": -2081.123456789012, "molecule": f"m{row // 4}"}
        atoms.arrays["forces"] = rng.normal(0, 1e-15, (3, 3))
        images.append(atoms)
    write(folder / "constant.xyz", images, format="extxyz")
    entry = {"format": "extxyz", "path": str(folder / "constant.xyz"), "group_key": "molecule"}
    recipe = make_recipe(folder, {"constant": entry} | {name: ENTRIES[name] for name in others}, **changes)
    for name, options in recipe.datasets.items():
        prepare_dataset(name, options, folder / "stores", base=folder)
    return recipe


@pytest.mark.parametrize("kind", ["direct", "conservative"])
def test_errors_measured_against_rounding_are_left_out_and_named(tmp_path: Path, kind: str) -> None:
    said: list[str] = []
    recipe = constant(tmp_path, "qm7x", model__force_head__kind=kind, train__evaluate_every=0.1)
    train(recipe, tmp_path / "run", Callbacks(warned=said.append))
    lines = metrics(tmp_path / "run", "val")
    for line in lines:
        assert line["datasets"]["constant"]["trivial_energy_mae"] < 1e-10
        assert "energy" in line["left_out"]["constant"]
        assert set(line["left_out"]) == {"constant"}
        qm7x = line["datasets"]["qm7x"]
        ratios = [qm7x[f"{label}_mae"] / qm7x[f"trivial_{label}_mae"] for label in ("energy", "forces")]
        assert line["metric"] == pytest.approx(np.mean(ratios), rel=1e-9)
        assert "constant -/-" in evaluation_text(line, 200)
    assert len(lines) > 1
    assert len([text for text in said if "constant" in text and "energy" in text and "rounding" in text]) == 1
    Evaluator(tmp_path / "run").evaluate()
    results = Results.open(tmp_path / "run")
    made = tables.from_results([results])
    assert not made.tables[0].rows[0].cells["constant"].no_better_than_trivial
    assert any("constant" in line and "1e-06" in line for line in made.footnotes)
    assert "constant" not in report.verdict(results)


def test_a_metric_of_nothing_else_stays_finite(tmp_path: Path) -> None:
    """Where every label is left out there is still a best checkpoint: errors are measured by the floors."""
    train(constant(tmp_path), tmp_path / "run")
    lines = metrics(tmp_path / "run", "val")
    assert all(np.isfinite(line["metric"]) for line in lines)
    assert open_checkpoint(tmp_path / "run/checkpoints/best").step >= 0
    assert lines[-1]["metric"] == pytest.approx(lines[-1]["datasets"]["constant"]["energy_mae"] / 1e-6, rel=1e-9)


def test_stress_that_is_trained_on_is_part_of_it(small: MakeRecipe, tmp_path: Path) -> None:
    changes = {"model__force_head__kind": "conservative", "train__max_steps": 4, "train__log_every": 2}
    train(small("qm7x", "mptrj", objective__stress=0.5, **changes), tmp_path / "run")
    line = metrics(tmp_path / "run", "val")[-1]
    crystals, molecules = line["datasets"]["mptrj"], line["datasets"]["qm7x"]
    assert molecules["stress_mae"] is molecules["trivial_stress_mae"] is None
    found = [(d, label) for d, labels in ((crystals, "energy forces stress"), (molecules, "energy forces"))
             for label in labels.split()]  # fmt: skip
    assert line["metric"] == pytest.approx(np.mean([d[f"{n}_mae"] / d[f"trivial_{n}_mae"] for d, n in found]), rel=1e-9)
    Evaluator(tmp_path / "run", split="val").evaluate()
    results = Results.open(tmp_path / "run")
    best = min(metrics(tmp_path / "run", "val"), key=lambda entry: entry["metric"])
    row = results.evaluation.row("mptrj", "mptrj")
    assert row is not None
    assert row.mae("stress") == pytest.approx(best["datasets"]["mptrj"]["stress_mae"], rel=1e-5)
    trained = [entry["datasets"]["mptrj"]["stress_mae"] for entry in metrics(tmp_path / "run", "train")]
    assert all(error > 0 for error in trained)
    assert "E/F/S in % of trivial" in evaluation_text(line, 200)
    events = EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    assert {"val/datasets/mptrj/stress_mae", "train/datasets/mptrj/stress_mae"} <= set(events.Tags()["scalars"])
    assert "Stress while training" in report.render(results)


def test_stress_that_is_not_trained_on_is_not(small: MakeRecipe, tmp_path: Path) -> None:
    train(small("mptrj", model__force_head__kind="conservative", train__max_steps=2), tmp_path / "run")
    for line in metrics(tmp_path / "run", "val"):
        assert not [key for key in line["datasets"]["mptrj"] if "stress" in key]
