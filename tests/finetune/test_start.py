"""Before any step nothing has changed: the field's commonest failure, an error that explodes at step 0."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ramify.errors import RamifyError
from ramify.finetune.run import Finetuning
from ramify.inference.export.exported import write_export
from ramify.inference.model import load, read_saved
from tests.small import metrics, tensors

from .conftest import ASKED, assert_same, predictions

Tune = Callable[..., Finetuning]

MODES = [
    ("new-branch", ("qm7x",), "ani1x"),
    ("new-branch", ("qm7x",), "fresh"),
    ("new-branch", ("bare",), "fresh"),
    ("keep-branch", ("ani1x",), None),
    ("keep-branch", ("bare",), "ani1x"),
    ("frozen-encoder", ("qm7x",), "mptrj"),
    ("frozen-encoder", ("ani1x",), None),
    ("lora", ("qm7x",), "ani1x"),
    ("lora", ("mptrj",), None),
    ("replay", ("qm7x", "ani1x", "mptrj"), "fresh"),
]


@pytest.mark.parametrize(("mode", "datasets", "start"), MODES)
def test_no_step_changes_nothing(
    tune: Tune, folder: Path, tmp_path: Path, mode: str, datasets: tuple[str, ...], start: str | None
) -> None:
    """Also through an export and a second fine-tuning of the result; every old branch is still there."""
    expected = predictions(folder / "base")
    tune(*datasets, mode=mode, start=start, steps=0).fit()
    assert_same(predictions(tmp_path / "run"), expected)
    assert_same(predictions(tmp_path / "run/checkpoints/latest"), expected)
    write_export(read_saved(tmp_path / "run"), tmp_path / "export")
    assert_same(predictions(tmp_path / "export"), expected)
    assert [line["step"] for line in metrics(tmp_path / "run")] == [0]


def test_no_step_of_a_finetuned_model(tune: Tune, folder: Path, tmp_path: Path) -> None:
    """An export of it, in another mode; carried branches are carried on."""
    tune("qm7x", mode="lora", start="ani1x", steps=3, path="first").fit()
    write_export(read_saved(tmp_path / "first"), tmp_path / "export")
    expected = predictions(tmp_path / "export")
    moved = predictions(folder / "base")["ani1x"][0]
    assert not np.array_equal(expected["ani1x"][0], moved)  # the encoder has moved under it
    tune("qm7x", mode="keep-branch", steps=0, model=tmp_path / "export", path="second").fit()
    assert_same(predictions(tmp_path / "second"), expected)
    assert set(load(tmp_path / "second").branches) == {"ani1x", "mptrj", "qm7x"}


def test_a_new_branch_starts_as_the_one_it_is_made_from(tune: Tune, folder: Path, tmp_path: Path) -> None:
    """The same energies but for the references, which are its own, and the same forces."""
    tune("qm7x", mode="new-branch", start="ani1x", steps=0).fit()
    model = load(tmp_path / "run")
    one, other = (model.predict(ASKED["ani1x"], branch) for branch in ("ani1x", "qm7x"))
    assert np.array_equal(one.forces_of_atoms, other.forces_of_atoms)
    scales = [model.branches[name].datasets[name].references for name in ("ani1x", "qm7x")]
    for atoms, a, b in zip(ASKED["ani1x"], one.energy, other.energy, strict=True):
        expected = sum(scales[1][s] - scales[0][s] for s in atoms.get_chemical_symbols())
        assert b - a == pytest.approx(expected, abs=1e-6)
        assert abs(expected) > 1  # eV: two levels of theory


def test_the_start_is_measured_before_the_first_step(tune: Tune, tmp_path: Path) -> None:
    heard = []
    tuning = tune("qm7x", mode="new-branch", start="ani1x", steps=2)
    assert tuning.report is None
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    take = type(tuning.trainer).step

    def step(work: object) -> object:
        heard.append(tuning.report)
        return take(tuning.trainer, work)

    tuning.trainer.step = step  # type: ignore[method-assign]
    tuning.fit()
    assert heard[0] is not None
    rows = {(row.branch, row.dataset): row for row in heard[0].before}
    assert {pair: row.trained for pair, row in rows.items()} == {
        ("qm7x", "qm7x"): True,
        ("ani1x", "ani1x"): False,
        ("mptrj", "mptrj"): False,
    }
    known = load(tmp_path / "run").saved
    assert known.branches.keys() == {"qm7x", "ani1x", "mptrj"}
    assert tuning.report is not None
    assert tuning.report.after is not None
    assert {(row.branch, row.dataset) for row in tuning.report.after} == rows.keys()
    assert all(row.energy_mae is not None and row.energy_mae > 0 for row in tuning.report.after)


def test_errors_on_old_data_are_those_the_training_found(tune: Tune, folder: Path) -> None:
    """Of the very checkpoint that the fine-tuning starts from."""
    best = [line for line in metrics(folder / "base", "val") if line["best"]][-1]
    tuning = tune("qm7x", mode="frozen-encoder", start="fresh", steps=0)
    tuning.fit()
    assert tuning.report is not None
    for row in tuning.report.before:
        if not row.trained:
            assert row.energy_mae == pytest.approx(best["datasets"][row.dataset]["energy_mae"], rel=1e-9)
            assert row.forces_mae == pytest.approx(best["datasets"][row.dataset]["forces_mae"], rel=1e-9)


def test_a_frozen_encoder_leaves_old_branches_alone(tune: Tune, folder: Path, tmp_path: Path) -> None:
    """After training too, to the bit; the new branch has moved."""
    tune("qm7x", mode="frozen-encoder", start="ani1x", steps=4).fit()
    assert_same(predictions(tmp_path / "run/checkpoints/latest"), predictions(folder / "base"))
    latest, base = tensors(tmp_path / "run"), tensors(folder / "base", "best")
    for name, tensor in latest.items():
        if name.startswith("weights encoder"):
            assert np.array_equal(tensor, base[name])
    moved = "energy.layers.0.weight"
    assert not np.array_equal(latest[f"weights branches.qm7x.{moved}"], base[f"weights branches.ani1x.{moved}"])


def test_a_model_that_has_changed_is_not_taken_for_the_same(tune: Tune, folder: Path, tmp_path: Path) -> None:
    from ramify.train.init_weights import read_pretrained

    tuning = tune("qm7x", mode="lora", start="ani1x", steps=0)
    options = tuning.trainer.recipe.finetune
    with pytest.raises(RamifyError, match="are not those from which this run starts"):
        read_pretrained(options.model_copy(update={"weights": "0" * 64}))
    with pytest.raises(RamifyError, match="needs a trained model to start from"):
        read_pretrained(options.model_copy(update={"weights": ""}))
