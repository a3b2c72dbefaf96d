"""Training on everything: without validation splits nothing stops a run early, and the last weights are the best."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ramify.checkpoint.checkpoint import open_checkpoint
from ramify.errors import RamifyError
from ramify.evaluate.evaluate import Evaluator
from ramify.inference.model import load
from ramify.prepare.prepare import prepare_dataset
from ramify.recipe import Recipe
from ramify.train.reporting import Callbacks
from ramify.train.start import resume_run, start_run
from tests.small import assert_same, make_recipe, metrics, prepare_stores, tensors, train


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Two datasets of which one has only training structures."""
    folder = tmp_path_factory.mktemp("everything")
    entries = prepare_stores(folder)
    everything = {**entries["bare"], "split": {"val": 0, "test": 0}}
    found = {"all": everything, "qm7x": entries["qm7x"]}
    recipe = make_recipe(folder, found)
    prepare_dataset("all", recipe.datasets["all"], Path(recipe.stores), base=folder)
    return folder, found


def recipe_of(entries: tuple[Path, dict[str, Any]], *names: str, **changes: Any) -> Recipe:
    folder, found = entries
    return make_recipe(folder, {name: found[name] for name in names}, **changes)


def test_a_run_pauses_at_the_step_itself(entries: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    recipe = recipe_of(entries, "all", train__stop_after=7)
    trainer = train(recipe, tmp_path / "run")
    assert (trainer.progress.step, trainer.stopped_by) == (7, "train.stop_after")
    assert open_checkpoint(tmp_path / "run/checkpoints/latest").step == 7


def test_all_steps_are_taken_and_the_last_weights_count(entries: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    said: list[str] = []
    recipe = recipe_of(entries, "all", train__patience=1, train__max_steps=20)
    trainer = train(recipe, tmp_path / "run", replace(Callbacks(), warned=said.append))
    assert trainer.progress.step == 20
    assert "train.patience: 1 has no effect" in said[0]
    assert metrics(tmp_path / "run", "val") == []
    for link in ("best", "latest"):
        assert open_checkpoint(tmp_path / "run/checkpoints" / link).step == 20
    assert load(tmp_path / "run").branches["all"].datasets["all"].structures == 60
    with pytest.raises(RamifyError, match="the test split of all is empty"):
        Evaluator(tmp_path / "run").evaluate()


def test_such_a_run_resumes_to_the_bit(entries: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    recipe = recipe_of(entries, "all", train__max_steps=12)
    train(recipe, tmp_path / "whole")
    trainer = start_run(recipe, tmp_path / "cut", Callbacks())
    with trainer.loader() as loader, trainer.reporter.opened(lambda: "test"):
        for _ in range(5):
            trainer.step(next(loader))
        trainer.finish_step()
        trainer.save(best=False)
    resume_run(tmp_path / "cut", Callbacks()).fit()
    assert_same(tensors(tmp_path / "cut", "best"), tensors(tmp_path / "whole", "best"))


def test_a_dataset_without_validation_beside_one_that_has_it(
    entries: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """The metric is that of the datasets that can be measured."""
    train(recipe_of(entries, "all", "qm7x", train__max_steps=4), tmp_path / "run")
    last = metrics(tmp_path / "run", "val")[-1]
    assert last["datasets"]["all"]["energy_mae"] is None
    assert last["datasets"]["qm7x"]["energy_mae"] > 0
    assert 0 < last["metric"] < torch.inf


def test_a_schedule_that_waits_for_a_metric_is_refused(entries: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(RamifyError, match=r"schedule\.kind: plateau"):
        start_run(recipe_of(entries, "all", schedule__kind="plateau"), tmp_path / "run", Callbacks())
    assert not (tmp_path / "run").exists()
