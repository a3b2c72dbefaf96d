"""The energies of a foreign dataset after its references were fitted again to the predictions of a model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.small import ENTRIES, make_recipe, train

from ramify.batches.open import open_readers, open_stores
from ramify.evaluate import refit
from ramify.evaluate.evaluate import Evaluator, subject_of_run
from ramify.evaluate.predict_split import predict_batch
from ramify.evaluate.results import Evaluation
from ramify.prepare.prepare import prepare_dataset
from ramify.recipe import Recipe


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    """A model of qm7x after a few steps, and the recipe of qm7x and ani1x."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("refit")
    both = make_recipe(folder, {name: ENTRIES[name] for name in ("qm7x", "ani1x")})
    for name, options in both.datasets.items():
        prepare_dataset(name, options, Path(both.stores), base=folder)
    train(make_recipe(folder, {"qm7x": ENTRIES["qm7x"]}, train__max_steps=3), folder / "run")
    return both, folder / "run"


def test_refitted_error_agrees_with_numpy(trained: tuple[Recipe, Path]) -> None:
    both, run = trained
    found = Evaluation.model_validate(Evaluator(run, others=both, refit=True).evaluate())
    foreign, own = found.row("qm7x", "ani1x"), found.row("qm7x", "qm7x")
    assert foreign is not None
    assert own is not None
    assert own.refitted_energy_mae is None
    subject, store = subject_of_run(run, "best"), open_stores(both)["ani1x"]

    def split(name: str) -> tuple[np.ndarray, np.ndarray]:
        """Counts of the elements by structure, and label minus prediction in eV."""
        reader = open_readers(subject.model, subject.branches, {"ani1x": store}, name, edge_cache=0.0)["ani1x"]
        structures = store.take(np.array(reader.rows))
        counts = np.zeros((len(structures), 119))
        np.add.at(counts, (structures.structure_of_atom, structures.numbers), 1.0)
        missing = []
        for indices, batch in reader.batches(10**9, torch.float32):
            seen = predict_batch(subject.network, indices, batch, "qm7x", torch.device("cpu"))
            missing.append((seen.labels["energy"] - seen.predicted["energy"]) * seen.n_atoms)
        return counts, np.concatenate(missing)

    counts, missing = split("train")
    n_atoms = counts.sum(1)
    shifts = np.linalg.lstsq(counts / n_atoms[:, None], missing / n_atoms, rcond=1e-10)[0]
    counts, missing = split("test")
    expected = np.abs((counts @ shifts - missing) / counts.sum(1)).mean()
    assert foreign.refitted_energy_mae == pytest.approx(expected, rel=1e-5)
    assert foreign.energy_mae == pytest.approx(np.abs(missing / counts.sum(1)).mean(), rel=1e-5)
    assert foreign.refitted_energy_mae != pytest.approx(foreign.energy_mae, rel=1e-3)


def test_large_splits_are_thinned(trained: tuple[Recipe, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer structures to fit on, the error is another one, and still that of a fit."""
    both, run = trained
    whole = Evaluation.model_validate(Evaluator(run, others=both, refit=True).evaluate()).row("qm7x", "ani1x")
    monkeypatch.setattr(refit, "FITTED_STRUCTURES", 200)
    part = Evaluation.model_validate(Evaluator(run, others=both, refit=True).evaluate()).row("qm7x", "ani1x")
    assert whole is not None
    assert part is not None
    assert part.refitted_energy_mae != whole.refitted_energy_mae
    assert part.refitted_energy_mae == pytest.approx(whole.refitted_energy_mae, rel=1.0)
    assert part.energy_mae == whole.energy_mae


def test_foreign_branches() -> None:
    branches = {"a": ["one"], "b": ["two", "three"]}
    assert refit.foreign_branches(branches, ["one", "two", "four"]) == {"four": ["a", "b"]}
    assert refit.foreign_branches(branches, ["three"]) == {}
