"""`train.stop_after`: a run that pauses and continues is the run that never paused, to the bit."""

from pathlib import Path
from typing import Any

import pytest

from ramify.cli import app
from ramify.recipe import Recipe
from ramify.run.run import Run
from ramify.train.reporting import Callbacks
from ramify.train.start import continue_run
from tests.small import assert_same, metrics, tensors, train
from tests.train.conftest import MakeRecipe

EVERY = {"train__batch": 2, "train__max_steps": 20, "train__precision": "fp64", "train__log_every": 3}
STEPS = {"train__evaluate_every": 0.01, "train__checkpoint_every": 0.017}


def paused(recipe: Recipe, path: Path, after: int | None) -> tuple[int, str]:
    """Trains until the pause; the step reached, and the reason."""
    options = recipe.train.model_copy(update={"stop_after": after})
    trainer = continue_run(recipe.model_copy(update={"train": options}), path, Callbacks())
    trainer.fit()
    return trainer.progress.step, trainer.stopped_by


@pytest.mark.parametrize("schedule", ["cosine", "plateau"])
def test_a_paused_run_continues_to_the_bit(small: MakeRecipe, tmp_path: Path, schedule: str) -> None:
    """It pauses at the first evaluation at or after the step; the schedule is that of the whole run."""
    further: dict[str, Any] = {"schedule__kind": schedule, "schedule__patience": 0}
    recipe = small("qm7x", "mptrj", "bare", **EVERY, **STEPS, **further)
    whole = train(recipe, tmp_path / "whole")
    assert whole.stopped_by == ""
    first, second, *_, last = [line["step"] for line in metrics(tmp_path / "whole", "val")]
    assert 1 < first < second < last == 20
    path = tmp_path / "pieces"
    assert paused(recipe, path, first) == (first, "train.stop_after")
    assert paused(recipe, path, first - 1) == (first, "train.stop_after")  # reached already
    assert paused(recipe, path, first + 1) == (second, "train.stop_after")
    assert Run.open(path).sessions.lines()[-1]["ended"] == "stopped: train.stop_after"
    assert paused(recipe, path, 20) == (20, "")
    assert paused(recipe, path, None) == (20, "")
    assert_same(tensors(path), tensors(tmp_path / "whole"))
    assert metrics(path) == metrics(tmp_path / "whole")


def test_the_command_states_how_to_continue(
    small: MakeRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(small("bare", **EVERY, **STEPS).to_yaml())
    run = str(tmp_path / "run")
    with pytest.raises(SystemExit) as ended:
        app(args=["train", str(tmp_path / "recipe.yaml"), "--run", run, "train.stop_after=6"])
    assert ended.value.code == 75
    assert "train.stop_after=null" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        app(args=["train", "--resume", run, "train.stop_after=null"])
    assert ended.value.code == 0
    assert metrics(Path(run), "train")[-1]["step"] == 20
