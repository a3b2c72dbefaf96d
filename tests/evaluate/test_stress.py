"""Stress in the evaluation: against finite differences of the energy, and in tables only where there is something."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.small import ENTRIES, make_recipe, prepare_stores, train

from ramify.batches.batch import Batch, BatchPart
from ramify.batches.open import open_stores
from ramify.checkpoint.checkpoint import open_checkpoint
from ramify.evaluate.evaluate import Evaluator, load_model
from ramify.evaluate.results import Results
from ramify.neighbors.edges import find_edges
from ramify.recipe import Recipe
from ramify.report import report, tables
from ramify.structures import Structures

STEP = 1e-4


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Recipe]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("stress")
    prepare_stores(folder)

    def make(kind: str, **changes: Any) -> Recipe:
        chosen = {name: ENTRIES[name] for name in ("qm7x", "mptrj")}
        return make_recipe(folder, chosen, train__precision="fp64", model__force_head__kind=kind, **changes)

    return make


@pytest.fixture(scope="module")
def trained(small: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conservative forces and stress as part of the objective."""
    path = tmp_path_factory.mktemp("runs") / "trained"
    train(small("conservative", objective__stress=0.1, optimizer__lr=0.03), path)
    Evaluator(path).evaluate()
    return path


@pytest.fixture(scope="module")
def untrained(small: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conservative forces, stress left out of the objective."""
    path = tmp_path_factory.mktemp("runs") / "untrained"
    train(small("conservative"), path)
    Evaluator(path).evaluate()
    return path


def by_finite_differences(run: Path, structures: Structures, references: np.ndarray) -> np.ndarray:
    """(S, 3, 3) eV/Å³: (E(+ε) - E(-ε)) / 2ε V for each of the six symmetric strains."""
    _, model = load_model(open_checkpoint(run / "checkpoints/best"))
    cell, positions = structures.cell.astype(np.float64), structures.positions.astype(np.float64)
    volume, found = np.abs(np.linalg.det(cell)), np.zeros((len(structures), 3, 3))
    for i, j in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)):
        energies = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[i, j] += 0.5 * sign * STEP
            strain[j, i] += 0.5 * sign * STEP
            moved = replace(structures, cell=cell @ strain, positions=positions @ strain)
            part = BatchPart("any", "mptrj", moved, find_edges(moved, 4.0, 8), references)
            with torch.no_grad():
                per_atom = model(Batch.make([part], torch.float64)).energy.numpy()
            energies.append(per_atom * structures.n_atoms)
        found[:, i, j] = found[:, j, i] = (energies[0] - energies[1]) / (2 * STEP) / volume
    return found


def test_errors_agree_with_finite_differences(trained: Path) -> None:
    results = Results.open(trained)
    store = open_stores(load_model(open_checkpoint(trained / "checkpoints/best"))[0])["mptrj"]
    structures = store.take(np.array(store.range("test")))
    predicted = by_finite_differences(trained, structures, store.references)
    assert np.abs(predicted).max() > 1e-5
    error = predicted - structures.stress
    row = results.evaluation.row("mptrj", "mptrj")
    assert row is not None
    assert row.stress_mae == pytest.approx(np.abs(error).mean(), rel=1e-4)
    assert row.stress_rmse == pytest.approx(np.sqrt((error**2).mean()), rel=1e-4)
    trivial = results.evaluation.trivial_of("mptrj")
    assert trivial.stress_mae == pytest.approx(np.abs(structures.stress.astype(float)).mean(), rel=1e-9)
    assert trivial.stress_rmse == pytest.approx(np.sqrt((structures.stress.astype(float) ** 2).mean()), rel=1e-9)
    with np.load(trained / "predictions" / "mptrj.npz") as kept:
        np.testing.assert_array_equal(kept["stress_true"], structures.stress)
        np.testing.assert_allclose(kept["stress_predicted"], predicted, atol=1e-6)
    with np.load(trained / "predictions" / "qm7x.npz") as kept:
        assert "stress_true" not in kept


def test_every_branch_is_asked_for_stress_where_there_are_labels(trained: Path) -> None:
    rows = {(row.branch, row.dataset): row for row in Results.open(trained).evaluation.rows}
    assert rows["qm7x", "mptrj"].stress_mae not in (None, rows["mptrj", "mptrj"].stress_mae)
    assert rows["mptrj", "qm7x"].stress_mae is None


def test_direct_forces_bring_no_stress(small: Callable[..., Recipe], trained: Path, tmp_path: Path) -> None:
    train(small("direct"), tmp_path / "run")
    Evaluator(tmp_path / "run").evaluate()
    results = Results.open(tmp_path / "run")
    assert all(row.stress_mae is None for row in results.evaluation.rows)
    assert results.evaluation.trivial_of("mptrj").stress_mae is not None
    stress = tables.build([trained, tmp_path / "run"]).tables[2]
    assert stress.rows[1].cells["mptrj"].text() == "not predicted"


def test_the_third_table(trained: Path, untrained: Path) -> None:
    """It has the columns with labels; errors of a model that was not trained on stress are left out, with a note.

    If no model was trained on stress, there is no such table.
    """
    assert len(tables.build([untrained]).tables) == 2
    made = tables.build([trained, untrained])
    assert made.tables[2].title == "Table 3. MAE of the stress (per component) on the test split, eV/Å³"
    assert made.tables[2].datasets == ["mptrj"]
    text = made.markdown().split("Table 3.")[1]
    trivial = Results.open(trained).evaluation.trivial_of("mptrj").stress_mae
    assert trivial is not None
    assert f"| *Trivial* | {tables.format_error(trivial)} |" in text
    assert "Stress: MTL-All (untrained) predicts it without being trained on it." in made.footnotes
    assert not any("(untrained)" in note and "stress" in note for note in made.notes)
    assert "stress" in report.verdict(Results.open(trained))
    assert "stress" not in report.verdict(Results.open(untrained))
    assert "stress RMSE" in report.render(Results.open(trained))
