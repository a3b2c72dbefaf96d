"""Searches of real trainings: promotions to the bit, kills, failures, refusals, several controllers."""

import json
import math
import os
import random
import shutil
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ramify.errors import RamifyError
from ramify.recipe import Recipe, load_recipe, parse_recipe
from ramify.run.run import Run
from ramify.run.stop import Stop
from ramify.search.lengths import Pace
from ramify.search.rungs import best_trials, rung_steps
from ramify.search.runs import arguments
from ramify.search.search import Search, open_search
from ramify.search.trials import Trial
from tests.processes import forked, programs
from tests.search import controllers
from tests.small import assert_near, assert_same, metrics, tensors, train

Settings = dict[str, Any]


def table(folder: Path, settings: Settings) -> list[Trial]:
    return controllers.search(folder, settings, 0).journal.trials()


def facts(trials: Sequence[Trial]) -> list[Any]:
    """What must not depend on kills: all but times."""
    return [(t.number, t.params, t.state, [(r.step, r.metric) for r in t.results]) for t in trials]


@pytest.fixture(scope="module")
def searched(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search of four trials by one controller that nothing disturbs."""
    folder = tmp_path_factory.mktemp("reference") / "search"
    controllers.run(folder, settings, 4)
    return folder


class Interrupted(Stop):
    """A stop whose reason is set by the test."""

    reason = ""  # type: ignore[assignment]


def by_hand(datasets: Iterable[dict[str, Any]]) -> float:
    """The geometric mean of error / trivial error, as a product: of energies and forces of all datasets."""
    labels = ("energy_mae", "forces_mae")
    ratios = [d[label] / d[f"trivial_{label}"] for d in datasets for label in labels if d[label] is not None]
    return float(math.prod(ratios) ** (1 / len(ratios)))


def test_rungs_of_a_search(searched: Path, settings: Settings) -> None:
    trials = table(searched, settings)
    assert [trial.number for trial in trials] == [0, 1, 2, 3]
    assert {trial.state for trial in trials} == {"paused", "complete"}
    assert all(result.step == (2, 4, 8)[k] for trial in trials for k, result in enumerate(trial.results))
    for trial in trials:
        run = Run.open(searched / "trials" / str(trial.number))
        assert run.checkpoint("latest").step == trial.results[-1].step
        lowest = min(by_hand(line["datasets"].values()) for line in run.evaluations())
        assert trial.metric == pytest.approx(lowest, rel=1e-12)
    (best,) = best_trials(trials, ["geometric"])
    assert best.state == "complete"
    assert best.metric == min(t.results[-1].metric for t in trials if t.state == "complete")


def test_a_promoted_trial_is_the_uninterrupted_run_to_the_bit(
    searched: Path, settings: Settings, tmp_path: Path
) -> None:
    """Float64, cosine schedule; it was continued twice."""
    trial = next(trial for trial in table(searched, settings) if trial.state == "complete")
    run = searched / "trials" / str(trial.number)
    ends = [line["ended"] for line in Run.open(run).sessions.lines() if line["kind"] == "end"]
    assert ends == ["stopped: train.stop_after", "stopped: train.stop_after", "finished"]
    torch.set_num_threads(1)
    train(load_recipe(searched / "recipes" / f"{trial.number}.yaml"), tmp_path / "whole")
    assert_same(tensors(run), tensors(tmp_path / "whole"))
    assert metrics(run) == metrics(tmp_path / "whole")


def test_a_promoted_trial_continues_on_another_number_of_ranks(
    searched: Path, settings: Settings, tmp_path: Path
) -> None:
    """From its first rung on two ranks: the same run but for the order of sums."""
    trial = next(trial for trial in table(searched, settings) if trial.state == "paused")
    run, recipe = tmp_path / "run", searched / "recipes" / f"{trial.number}.yaml"
    shutil.copytree(searched / "trials" / str(trial.number), run, symlinks=True)
    done = programs.run(tmp_path, 2, *arguments(recipe, run, None))
    assert done.statuses == [0, 0], done.said
    torch.set_num_threads(1)
    train(load_recipe(recipe), tmp_path / "whole")
    for found, expected in zip(metrics(run), metrics(tmp_path / "whole"), strict=True):
        assert_near(found, expected, rel=1e-9, abs=1e-11)


def written(folder: Path) -> int:
    """Bytes of the table and of the logs of the runs: they grow with the progress of a search, on any machine."""
    logs = ("journal.log", "trials/*/metrics.jsonl", "trials/*/sessions.jsonl")
    return sum(path.stat().st_size for name in logs for path in folder.glob(name))


def test_killed_ten_times_it_finds_the_same(searched: Path, settings: Settings, tmp_path: Path) -> None:
    """At random moments, alone or together with its training."""
    folder, random_ = tmp_path / "search", random.Random(5)
    for kill in range(10):
        process = controllers.controller(folder, settings, 4)
        until = written(folder) + random_.uniform(0, 0.2) * written(searched)
        while process.is_alive() and written(folder) < until:
            time.sleep(0.003)
        if kill % 2:
            for claim in folder.glob("claims/*/training.json"):
                with suppress(ProcessLookupError):
                    os.killpg(json.loads(claim.read_text())["pid"], signal.SIGKILL)
        if process.is_alive():
            os.kill(int(process.pid), signal.SIGKILL)
        process.join()
    last = controllers.controller(folder, settings, 4)
    last.join()
    assert last.exitcode == 0
    trials = table(folder, settings)
    assert facts(trials) == facts(table(searched, settings))
    starts = sum(
        line["kind"] == "start" for t in trials for line in Run(folder / f"trials/{t.number}").sessions.lines()
    )
    assert starts > sum(len(trial.results) for trial in trials)  # some trainings were killed
    for trial in trials:
        assert_same(tensors(folder / f"trials/{trial.number}"), tensors(searched / f"trials/{trial.number}"))


def test_two_controllers_share_a_search_and_it_is_extended(settings: Settings, tmp_path: Path) -> None:
    """Each trial is trained once; with more trials, paused ones may still be promoted."""
    folder, changed = tmp_path / "search", settings | {"rungs": 2}
    both = [controllers.controller(folder, changed, 3) for _ in range(2)]
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    trials = table(folder, changed)
    assert len(trials) == 3
    assert len({str(trial.params) for trial in trials}) == 3
    for trial in trials:
        sessions = Run.open(folder / f"trials/{trial.number}").sessions.lines()
        assert len([line for line in sessions if line["kind"] == "start"]) == len(trial.results)
    controllers.run(folder, changed, 4, jobs=2)
    assert len(table(folder, changed)) == 4
    with pytest.raises(RamifyError, match=r"(?s)reduction: 2, now 3.*--out"):
        table(folder, changed | {"reduction": 3})


def test_failed_lost_and_refused_trials(settings: Settings, tmp_path: Path) -> None:
    """A diverging training, a killed one and one that does not fit each leave their reason and no value."""
    diverging = {"optimizer.lr": [1e300], "optimizer.weight_decay": {"low": 0.1, "high": 1.0}}
    folder, changed = tmp_path / "failed", settings | {"space": diverging, "rungs": 1}
    controllers.run(folder, changed, 1)
    (trial,) = table(folder, changed)
    assert (trial.state, trial.metric) == ("failed", None)
    assert "RamifyError: step" in trial.reason
    assert best_trials([trial], ["metric"]) == []

    def killed(words: Sequence[str], log: Path, slot: int, name: str) -> forked.Forked:
        started = forked.start(words, log, slot, name)
        os.kill(started.pid, signal.SIGKILL)
        return started

    said: list[str] = []
    folder = tmp_path / "lost"
    controllers.search(folder, settings | {"rungs": 1}, 1, start=killed, noted=said.append).run()
    (trial,) = table(folder, settings | {"rungs": 1})
    assert (trial.state, trial.attempts) == ("failed", 3)
    assert "status -9" in trial.reason
    assert sum("attempt" in line for line in said) == 3

    small = settings["recipe"] | {"parallel": settings["recipe"]["parallel"] | {"memory": 1e-6}}
    two = {"space": {"model.encoder.width": [8, 16]}, "sampler": "grid"}
    folder, changed = tmp_path / "refused", settings | two | {"recipe": small}
    controllers.run(folder, changed, 5)
    trials = table(folder, changed)
    assert [trial.state for trial in trials] == ["refused", "refused"]
    assert "GB" in trials[0].reason
    assert trials[0].system_attrs["constraints:memory"] > 0
    assert not any((folder / "trials").iterdir())


@pytest.fixture
def opened(settings: Settings, tmp_path: Path) -> Any:
    """Opens a search as the command does."""
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings["recipe"]))
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(settings["space"]))

    def search(**options: Any) -> Search:
        return open_search(tmp_path / "out", tmp_path / "recipe.yaml", [], tmp_path / "space.yaml", **options)

    return search


def test_sql_storage_and_several_objectives(opened: Any, tmp_path: Path) -> None:
    """Memory by the plan does not depend on time: the smallest model is on the front."""
    from ramify.run.launcher import Launcher

    url = f"sqlite:///{tmp_path}/search.db"
    found = opened(storage=url, objectives=["metric", "memory"], rungs=2, reduction=2)
    found.controller(2, 1, Launcher(), start=forked.start, poll=0.02).run()
    trials = found.journal.trials()
    assert (tmp_path / "search.db").exists()
    assert not (tmp_path / "out/journal.log").exists()
    finished = [trial for trial in trials if len(trial.results) == 2]
    assert {t.number for t in best_trials(trials, ["metric", "memory"])} <= {t.number for t in finished}
    assert all(trial.memory is not None and trial.memory > 0 for trial in trials)
    with pytest.raises(RamifyError, match="nothing-of-this-kind"):
        opened(storage="nothing-of-this-kind://x")


def test_trials_of_equal_time(settings: Settings, tmp_path: Path) -> None:
    """A trial has the steps that its time per step leaves it, here that of a model twice as wide for a step of 2 s."""
    recipe, kept = parse_recipe(settings["recipe"], "the recipe"), tmp_path / "pace.json"
    width = recipe.model.encoder.width
    pace = Pace(recipe, kept, lambda trial, stores: 2 * trial.model.encoder.width / width)
    space = {"model.encoder.width": [width // 2, width, 2 * width]}
    options = settings | {"space": space, "sampler": "grid", "rungs": 1, "equal": "time"}
    searched = controllers.search(tmp_path / "search", options, 3, pace=pace)
    searched.run()
    trials = searched.journal.trials()
    assert {t.params["model.encoder.width"]: t.steps for t in trials} == {width // 2: 16, width: 8, 2 * width: 4}
    for trial in trials:
        run = Run(tmp_path / "search" / "trials" / str(trial.number))
        assert run.evaluations()[-1]["step"] == trial.steps == trial.results[-1].step
        assert 4 <= len(run.evaluations()) <= 6  # as the recipe of the search, to rounding
    assert json.loads(kept.read_text()) == {"seconds_per_step": 2.0}
    assert Pace(recipe, kept, lambda trial, stores: 0.0).reference() == 2.0  # another controller measures nothing


def test_a_signal_while_a_step_is_measured_leaves_no_trial(settings: Settings, tmp_path: Path) -> None:
    """It ends the measurement as well, which says nothing about the trial."""
    recipe, stop = parse_recipe(settings["recipe"], "the recipe"), Interrupted()

    def measure(trial: Recipe, stores: Mapping[str, Path]) -> float:
        if not (tmp_path / "pace.json").exists():
            return 1.0
        stop.reason = "SIGINT"
        raise RamifyError("rank 0 of 1 ended with status -2")

    pace = Pace(recipe, tmp_path / "pace.json", measure)
    searched = controllers.search(tmp_path / "search", settings | {"equal": "time"}, 3, pace=pace, stop=stop)
    assert searched.run() == "SIGINT"
    assert searched.journal.trials() == []


def test_a_step_that_cannot_be_measured_is_a_failed_trial(settings: Settings, tmp_path: Path) -> None:
    recipe, said = parse_recipe(settings["recipe"], "the recipe"), []
    (tmp_path / "pace.json").write_text('{"seconds_per_step": 1.0}')

    def measure(trial: Recipe, stores: Mapping[str, Path]) -> float:
        raise RamifyError("out of memory")

    pace = Pace(recipe, tmp_path / "pace.json", measure)
    options = settings | {"equal": "time"}
    controllers.search(tmp_path / "search", options, 1, pace=pace, noted=said.append).run()
    assert said[0] == "trial 0: it cannot be trained: out of memory"


@pytest.mark.parametrize("content", ["", "[1]", '{"seconds_per_step": 0}', '{"seconds_per_step": NaN}', "{}"])
def test_a_damaged_pace_is_named(settings: Settings, tmp_path: Path, content: str) -> None:
    (tmp_path / "pace.json").write_text(content)
    recipe = parse_recipe(settings["recipe"], "the recipe")
    with pytest.raises(RamifyError, match=r"(?s)pace\.json.*fix: remove .*pace\.json"):
        Pace(recipe, tmp_path / "pace.json").reference()


def test_equal_time_sets_the_length_alone(opened: Any, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("train.epochs: [1, 2]")
    with pytest.raises(RamifyError, match=r"the space has train\.epochs"):
        opened(equal="time")


def test_a_rung_before_the_first_evaluation(opened: Any) -> None:
    found = opened(rungs=5, reduction=2)
    with pytest.raises(RamifyError, match=r"(?s)train\.evaluate_every.*--rungs"):
        found.controller(3, 1, None)


def test_a_folder_with_something_else(opened: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").touch()
    with pytest.raises(RamifyError, match="out"):
        opened()


def test_an_incomplete_line_of_the_journal_is_removed(searched: Path, settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "search"
    shutil.copytree(searched, folder, symlinks=True)
    with (folder / "journal.log").open("a") as file:
        file.write('{"op_code": 4, "work')
    assert facts(table(folder, settings)) == facts(table(searched, settings))
    assert rung_steps(8, 3, 2) == [2, 4, 8]
