"""Asynchronous successive halving (ASHA): which trials stop at a rung, and which are continued.

L. Li et al., A System for Massively Parallel Hyperparameter Tuning, arXiv:1810.05934 (2018), algorithm 2. All trials
begin with a short training. Of the trials that have reached a rung, the best of every `reduction` are continued to the
next rung, as soon as there are enough results: no trial waits for others. A promotion here continues the run from its
checkpoint, to the bit, with the learning rate schedule of its full length, instead of training a new model for longer.

All functions depend on the table of trials only, so that a controller that was killed decides as before.
"""

import math
from collections.abc import Iterable, Sequence

from ramify.search.trials import Trial


def rung_steps(steps: int, rungs: int, reduction: int) -> list[int]:
    """Steps of the rungs of a run of `steps` steps, the last one included: each is `reduction` times the one before."""
    return [math.ceil(steps / reduction ** (rungs - 1 - k)) for k in range(rungs)]


def to_promote(trials: Iterable[Trial], rungs: int, reduction: int, objectives: Sequence[str]) -> Trial | None:
    """The paused trial to continue next: the best promotable one of the highest rung, as in algorithm 2.

    Args:
        trials: all of the search.
        rungs: number of rungs.
        reduction: one of so many is promoted.
        objectives: values to minimise.
    """
    known = list(trials)
    for rung in reversed(range(rungs - 1)):
        reached = ranked(known, rung, objectives)
        for trial in reached[: len(reached) // reduction]:
            if _waits_at(trial, rung):
                return trial
    return None


def to_finish(trials: Iterable[Trial], rungs: int, objectives: Sequence[str]) -> Trial | None:
    """The paused trial to continue where `to_promote` has none and no trial is active or to come.

    Few trials may leave a rung empty. The best trial below it is then continued, so that every search trains at least
    one model to its end.
    """
    known = list(trials)
    for rung in range(rungs - 1):
        waiting = [trial for trial in ranked(known, rung, objectives) if _waits_at(trial, rung)]
        if waiting and not any(len(trial.results) > rung + 1 for trial in known):
            return waiting[0]
    return None


def ranked(trials: Iterable[Trial], rung: int, objectives: Sequence[str]) -> list[Trial]:
    """Trials that have reached a rung, best first, by their results at that rung.

    With several objectives, those that no other dominates come first, then those that only these dominate, and so on
    (non-dominated sorting, as in R. Schmucker et al., arXiv:2106.12639); within a front, by the first objective.
    """
    values = {t.number: t.objectives(objectives, rung) for t in trials if len(t.results) > rung}
    reached = {t.number: t for t in trials if len(t.results) > rung}
    order: list[int] = []
    while left := [number for number in reached if number not in order]:
        front = pareto_front({number: values[number] for number in left})
        order += sorted(front, key=lambda number: (values[number], number))
    return [reached[number] for number in order]


def pareto_front(values: dict[int, tuple[float, ...]]) -> list[int]:
    """Keys whose values no other dominates: no other is at least as small in all and smaller in one."""

    def dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
        return a != b and all(x <= y for x, y in zip(a, b, strict=True))

    return [key for key, own in values.items() if not any(dominates(other, own) for other in values.values())]


def best_trials(trials: Iterable[Trial], objectives: Sequence[str]) -> list[Trial]:
    """The best trial of those that were trained furthest, or their Pareto front; empty before the first result."""
    results = [trial for trial in trials if trial.results and trial.state != "failed"]
    if not results:
        return []
    last = max(len(trial.results) for trial in results) - 1
    order = ranked(results, last, objectives)
    if len(objectives) == 1:
        return order[:1]
    front = pareto_front({trial.number: trial.objectives(objectives, last) for trial in order})
    return [trial for trial in order if trial.number in front]


def _waits_at(trial: Trial, rung: int) -> bool:
    return trial.state == "paused" and len(trial.results) == rung + 1
