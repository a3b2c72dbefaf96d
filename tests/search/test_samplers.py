"""Samplers: functions of the seed and the table of trials."""

from dataclasses import replace
from typing import Any

import pytest

from ramify.errors import RamifyError
from ramify.recipe import load_recipe
from ramify.search.samplers import SAMPLERS, check_sampler, compared_rung, sample, table_study
from ramify.search.space import Space, make_space
from ramify.search.trials import RungResult, Trial

RECIPE = load_recipe("demo").model_dump(mode="json")
RANGES = {"optimizer.lr": {"low": 1e-4, "high": 1e-1, "log": True}, "train.batch": {"low": 8, "high": 64}}
FINITE = {"model.encoder.kind": ["egnn", "painn"], "model.encoder.layers": {"low": 1, "high": 3}}


def space(content: dict[str, Any]) -> Space:
    return make_space(content, RECIPE, "space.yaml")


def searched(name: str, found: Space, count: int, seed: int = 1) -> list[Trial]:
    """Trials whose metric is the distance of the learning rate from 0.01 in decades, the worse half paused."""
    trials: list[Trial] = []
    for number in range(count):
        params, _, attributes = sample(name, seed, found, trials, ["metric"])
        metric = abs(params.get("optimizer.lr", 0.01) / 0.01 - 1)
        results = (RungResult(10, metric, 1.0),) * (2 if metric < 1 else 1)
        state = "complete" if metric < 1 else "paused"
        trials.append(Trial(number, params, state, 20, results, system_attrs=attributes))
    return trials


@pytest.mark.parametrize("name", ["tpe", "random", "cma-es"])
def test_the_same_table_gives_the_same_trial(name: str) -> None:
    found = space(RANGES)
    trials = searched(name, found, 14)
    assert [t.params for t in trials] == [t.params for t in searched(name, found, 14)]
    assert [t.params for t in trials] != [t.params for t in searched(name, found, 14, seed=2)]
    assert len({str(t.params) for t in trials}) == 14


def test_tpe_uses_the_results_and_cma_es_its_own_state() -> None:
    found = space(RANGES)
    others = [replace(t, results=(RungResult(10, 1.0 - i, 1.0),)) for i, t in enumerate(searched("tpe", found, 12))]
    for name, differs in {"tpe": True, "random": False}.items():
        known = searched("tpe", found, 12)
        one, two = (sample(name, 1, found, trials, ["metric"])[0] for trials in (known, others))
        assert (one != two) is differs
    assert any(key.startswith("cma:") for trial in searched("cma-es", found, 8) for key in trial.system_attrs)


def test_trials_are_compared_at_one_rung() -> None:
    """Ten trials at the first rung, the poorest three trained on: all are compared at the first."""
    lengths = [3, 3, 3, 1, 1, 1, 1, 1, 1, 1]
    first = [0.9, 0.8, 0.7, 0.3, 0.2, 0.1, 0.4, 0.5, 0.6, 0.65]
    trials = [
        trial_of(n, [metric, metric / 2, 0.05][:reached])
        for n, (reached, metric) in enumerate(zip(lengths, first, strict=True))
    ]
    assert compared_rung(trials[:9]) == compared_rung(trials) == 0
    study = table_study(space(RANGES), trials, ["metric"])
    assert [t.value for t in study.trials] == first
    assert study.best_trial.number == 5


def test_the_rung_rises_with_enough_results() -> None:
    trials = [trial_of(n, [0.5 + n / 100, 0.3 - n / 100][: 2 if n < 10 else 1]) for n in range(14)]
    assert compared_rung(trials) == 1
    study = table_study(space(RANGES), trials, ["metric"])
    assert study.best_trial.number == 9
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 10 + ["PRUNED"] * 4
    several = table_study(space(RANGES), trials, ["metric", "time"])
    assert {t.state.name for t in several.trials} == {"COMPLETE"}
    assert several.trials[13].values == [0.63, 0.1]


def trial_of(number: int, metrics: list[float]) -> Trial:
    """With results at the rungs of so many metrics, 10 steps and 1 s apart."""
    results = tuple(RungResult(10 * (k + 1), metric, 1.0 * (k + 1)) for k, metric in enumerate(metrics))
    return Trial(number, {"optimizer.lr": 0.01, "train.batch": 8}, "paused", 30, results)


def test_a_grid_has_every_configuration_once() -> None:
    found = space(
        FINITE | {"model.encoder.vector_channels": {"choices": [2, 4], "when": {"model.encoder.kind": "egnn"}}}
    )
    assert found.size == 9
    assert len({str(trial.params) for trial in searched("grid", found, 9)}) == 9


def test_refused_and_failed_trials_are_no_results() -> None:
    """The best trial no longer attracts TPE once it counts as failed, or as infeasible with several objectives too."""
    found = space(RANGES)
    known = searched("tpe", found, 14)
    base = sample("tpe", 1, found, known, ["metric"])[0]
    best = min(known, key=lambda trial: trial.metric or 0.0).number
    failed = [replace(t, state="failed", results=()) if t.number == best else t for t in known]
    assert sample("tpe", 1, found, failed, ["metric"])[0] != base
    excess = {"constraints:memory": 3.0}
    refused = [replace(t, state="refused", results=(), system_attrs=excess) if t.number == best else t for t in known]
    assert sample("tpe", 1, found, refused, ["metric"])[0] != base
    assert sample("tpe", 1, found, refused, ["metric", "time"])[0].keys() == base.keys()


@pytest.mark.parametrize(
    ("name", "content", "objectives", "facts"),
    [
        ("tpa", RANGES, ["metric"], r"tpa.*'tpe'.*cma-es"),
        ("grid", RANGES, ["metric"], r"grid.*optimizer\.lr.*\n.*step"),
        ("cma-es", RANGES, ["metric", "time"], r"cma-es.*metric, time"),
        ("cma-es", {"train.batch": [4, 8]}, ["metric"], r"cma-es.*choices"),
    ],
)
def test_not_possible(name: str, content: dict[str, Any], objectives: list[str], facts: str) -> None:
    with pytest.raises(RamifyError, match=f"(?s){facts}"):
        check_sampler(name, space(content), objectives)
    assert name == "tpa" or name in SAMPLERS
