"""Asynchronous successive halving: laws of the decisions, on tables of made-up results."""

import itertools
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from ramify.search.rungs import best_trials, pareto_front, ranked, rung_steps, to_finish, to_promote
from ramify.search.trials import RungResult, Trial

METRIC = ["metric"]
VALUES = st.lists(st.floats(0, 10, allow_nan=False), min_size=1, max_size=25)


def paused(number: int, *metrics: float, seconds: float = 1.0) -> Trial:
    """A trial with these metrics at its rungs."""
    results = tuple(RungResult(10 * 2**k, metric, seconds * 2**k) for k, metric in enumerate(metrics))
    return Trial(number, {}, "paused", 1000, results, target=len(metrics) - 1)


def trained(trials: list[Trial], trial: Trial, metric: float, rungs: int) -> None:
    """Continues a trial by one rung."""
    result = RungResult(10 * 2 ** len(trial.results), metric, 1.0)
    state = "complete" if len(trial.results) + 1 == rungs else "paused"
    trials[trial.number] = replace(trial, results=(*trial.results, result), state=state)


@given(st.integers(1, 100_000), st.integers(1, 5), st.integers(2, 5))
def test_rungs_grow_up_to_the_whole_run(steps: int, rungs: int, reduction: int) -> None:
    found = rung_steps(steps, rungs, reduction)
    assert found == sorted(found)
    assert len(found) == rungs
    assert found[-1] == steps
    assert found[0] >= 1
    assert all(a <= -(-b // reduction) for a, b in itertools.pairwise(found))


def test_the_best_third_is_promoted_once() -> None:
    """Numbers by hand: of seven trials two, the better one first; a third one with two more trials."""
    trials = [paused(i, metric) for i, metric in enumerate([5.0, 1.0, 4.0, 3.0, 2.0, 6.0, 7.0])]
    order = []
    while (trial := to_promote(trials, 3, 3, METRIC)) is not None:
        order.append(trial.number)
        trials[trial.number] = replace(trial, state="active")
    assert order == [1, 4]
    trials += [paused(7, 8.0), paused(8, 9.0)]
    assert to_promote(trials, 3, 3, METRIC) == trials[3]


def test_the_highest_rung_comes_first() -> None:
    trials = [paused(i, float(i), 0.1) for i in range(3)] + [paused(i, 0.0) for i in range(3, 12)]
    assert (found := to_promote(trials, 3, 3, METRIC)) is not None
    assert found.number == 0


@settings(max_examples=60, deadline=None)
@given(VALUES, st.integers(1, 4), st.integers(2, 4))
def test_any_search_ends_with_a_whole_training(metrics: list[float], rungs: int, reduction: int) -> None:
    """In any order of results: each rung has some of the trials of the one below, and the best trial is trained to the
    end. (Promotions do not wait, so a rung may have more than one of every `reduction`.)"""
    trials: list[Trial] = []
    for number, metric in enumerate(metrics):
        trials.append(Trial(number, {}, "active", 1000))
        trained(trials, trials[-1], metric, rungs)
        while (trial := to_promote(trials, rungs, reduction, METRIC)) is not None:
            trained(trials, trial, metrics[trial.number], rungs)
    while (trial := to_finish(trials, rungs, METRIC)) is not None:
        trained(trials, trial, metrics[trial.number], rungs)
    sizes = [sum(len(trial.results) > rung for trial in trials) for rung in range(rungs)]
    assert all(1 <= above <= below for below, above in itertools.pairwise(sizes))
    assert len(best_trials(trials, METRIC)) == 1
    assert metrics[best_trials(trials, METRIC)[0].number] == min(metrics)


@given(st.dictionaries(st.integers(0, 30), st.tuples(st.floats(0, 9), st.floats(0, 9)), min_size=1))
def test_a_pareto_front(values: dict[int, tuple[float, float]]) -> None:
    front = pareto_front(values)
    for key, (a, b) in values.items():
        better = [k for k, (x, y) in values.items() if (x <= a and y <= b) and (x, y) != (a, b)]
        assert (key in front) == (not better)


def test_several_objectives_are_ranked_by_fronts() -> None:
    """Trial 2 is slower and worse than 0; 1 is worse but faster."""
    trials = [paused(0, 1.0, seconds=2.0), paused(1, 3.0, seconds=1.0), paused(2, 2.0, seconds=3.0)]
    assert [trial.number for trial in ranked(trials, 0, ["metric", "time"])] == [0, 1, 2]
    assert [trial.number for trial in best_trials(trials, ["metric", "time"])] == [0, 1]


def test_saved_time() -> None:
    """40 of 1000 steps in 4 s: 96 s more."""
    trial = Trial(0, {}, "paused", 1000, (RungResult(40, 1.0, 4.0),))
    assert trial.saved_seconds == 96.0
    assert replace(trial, state="complete").saved_seconds == 0.0
    assert replace(trial, results=(RungResult(40, 1.0, 4.0, ranks=2),)).processor_seconds == 8.0
