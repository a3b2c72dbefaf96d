"""The lengths of the trainings of a study: by hand, and as the models are trained."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from ramify.batches.loader import StepBatches
from ramify.bench import pace
from ramify.bench.pace import step_seconds
from ramify.errors import RamifyError
from ramify.files import read_json, write_json
from ramify.recipe import Recipe, TrainOptions
from ramify.run.run import Run
from ramify.study.budget import ALL, Budget, budget_of
from ramify.study.conduct import prepare_missing
from ramify.study.models import Equal, Model
from ramify.study.setup import Request, add_tasks
from ramify.study.table import Study
from ramify.train.loop import Trainer
from tests.study.conducted import Conducted

STRUCTURES = {"small": 80, "large": 240}
SMALL = Model("Model-small", "single", ("small",))
TRAIN = TrainOptions(batch=8, epochs=6, evaluate_every=2, checkpoint_every=1)


def budget(equal: Equal, seconds: Mapping[str, float] | None = None) -> Budget:
    """Of the model of 80 of 320 structures: a pass is 10 of the 40 steps of the multi-branch model, which takes 240."""
    return budget_of(SMALL, TRAIN, ["small", "large"], STRUCTURES, equal, seconds or {})


def test_lengths_by_hand() -> None:
    assert budget("passes") == {"epochs": 6, "max_steps": None, "evaluate_every": 2, "checkpoint_every": 1}
    assert budget("steps") == {"epochs": 24, "max_steps": 240, "evaluate_every": 8, "checkpoint_every": 4}
    twice_as_fast = {ALL: 0.2, "Model-small": 0.1}
    assert budget("time", twice_as_fast) == {
        "epochs": 48, "max_steps": 480, "evaluate_every": 16, "checkpoint_every": 8
    }  # fmt: skip


def test_equal_steps_as_trained(recipe: Recipe, tmp_path: Path) -> None:
    """The single-dataset model takes the steps of the multi-branch model, with as many evaluations."""
    request = Request(recipe, "test", tmp_path / "study", models=["Model-nickel", "mtl"], equal="steps")
    Conducted(request).end()
    runs = [Run.open(request.out / f"runs/{model}-seed0") for model in ("Model-nickel", "MTL-All")]
    assert [len(run.evaluations()) for run in runs] == [len(runs[1].evaluations())] * 2
    assert [run.evaluations()[-1]["step"] for run in runs] == [16, 16]
    results = json.loads((request.out / "results.json").read_text())
    assert {row["model"] for row in results["tables"][0]["rows"]} == {"Model-nickel", "MTL-All"}


def test_equal_time_measures_each_model_once(recipe: Recipe, tmp_path: Path) -> None:
    measured: list[list[str]] = []

    def measure(of: Recipe, stores: Mapping[str, Path]) -> float:
        assert [*stores] == [*of.datasets]
        measured.append([*of.datasets])
        return 0.1 * len(of.datasets)

    request = Request(recipe, "test", tmp_path / "study", models=["single", "mtl"], seeds=2, equal="time")
    study = request.open()
    study.path.mkdir()
    manifests = prepare_missing(recipe, tmp_path, lambda dataset, count: None)
    add_tasks(study, request, manifests, measure)
    assert sorted(measured) == [["aluminium"], ["aluminium", "nickel"], ["nickel"]]
    steps = {task.name: task.steps for task in study.tasks}
    assert {name: steps[f"{name}-seed1"] for name in ("Model-aluminium", "Model-nickel", "MTL-All")} == {
        "Model-aluminium": 32, "Model-nickel": 32, "MTL-All": 16
    }  # fmt: skip
    study.save()
    assert add_tasks(Study.open(study.path), request, manifests, pytest.fail) == [*steps]


@pytest.mark.slow
def test_seconds_of_a_step_are_measured(recipe: Recipe) -> None:
    stores = {name: Path(recipe.stores) / name for name in recipe.datasets}
    began = time.monotonic()
    found = step_seconds(recipe, stores)
    assert 0 < pace.STEPS * found < time.monotonic() - began
    with pytest.raises(RamifyError, match=r"ended with status 1(.|\n)*nickel-of-another-name"):
        step_seconds(recipe, stores | {"nickel": Path("nickel-of-another-name")})


def test_the_first_steps_do_not_count(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[float] = []

    def slow_at_first(trainer: Trainer, work: StepBatches) -> None:
        taken.append(0.2 if len(taken) < pace.WARMUP else 0.01)
        time.sleep(taken[-1])

    monkeypatch.setattr(Trainer, "step", slow_at_first)
    stores = {name: f"{recipe.stores}/{name}" for name in recipe.datasets}
    write_json(tmp_path / "case.json", {"recipe": recipe.model_dump(mode="json"), "stores": stores})
    pace.run_case(tmp_path / "case.json", tmp_path / "found.json")
    assert len(taken) == pace.WARMUP + pace.STEPS
    assert 0.01 <= read_json(tmp_path / "found.json")["seconds"] < 0.1
