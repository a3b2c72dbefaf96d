"""Sampling of new trials by Optuna: a function of the seed and the table of trials, so that it survives any stop."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, BruteForceSampler, CmaEsSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from ramify.errors import RamifyError, nearest
from ramify.search.space import Space
from ramify.search.trials import Trial

ENOUGH = 10
"""Results from which TPE makes its model; before, it samples at random. The default of Optuna."""

SAMPLERS: Mapping[str, Callable[..., BaseSampler]] = {
    "tpe": partial(TPESampler, n_startup_trials=ENOUGH),
    "random": RandomSampler,
    "grid": BruteForceSampler,  # Optuna's GridSampler has no conditional keys
    "cma-es": partial(CmaEsSampler, consider_pruned_trials=True, warn_independent_sampling=False),
}
"""tpe: tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011); random; grid: every configuration of a finite
space once, in random order; cma-es: covariance matrix adaptation (Hansen & Ostermeier, Evol. Comput. 9, 159 (2001)) of
numbers, with choices at random."""


def check_sampler(name: str, space: Space, objectives: Sequence[str]) -> None:
    """Refuses a sampler that is unknown or not possible for this search.

    Raises:
        RamifyError: with the accepted ones.
    """
    if name not in SAMPLERS:
        raise RamifyError(f"--sampler {name}: unknown{nearest(name, SAMPLERS)}; accepted: {', '.join(SAMPLERS)}")
    if name == "grid" and (infinite := [key.name for key in space.keys if key.grid() is None]):
        raise RamifyError(
            f"--sampler grid: {', '.join(infinite)} has a range with infinitely many values",
            fix="give the range a step, or list choices",
        )
    if name == "cma-es" and len(objectives) > 1:
        raise RamifyError(f"--sampler cma-es: one objective only, found {', '.join(objectives)}", fix="--sampler tpe")
    if name == "cma-es" and not [k for k in space.keys if not isinstance(k.distribution, CategoricalDistribution)]:
        raise RamifyError("--sampler cma-es: the space has choices only, no range", fix="--sampler tpe")


def sample(
    name: str, seed: int, space: Space, trials: Sequence[Trial], objectives: Sequence[str]
) -> tuple[dict[str, Any], dict[str, BaseDistribution], dict[str, Any]]:
    """Parameters of the next trial, their distributions, and Optuna's own attributes of it.

    Args:
        name: of the sampler.
        seed: of the search.
        space: of the search.
        trials: all so far.
        objectives: values to minimise.
    """
    derived = int(np.random.SeedSequence([seed, len(trials)]).generate_state(1)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = table_study(space, trials, objectives, SAMPLERS[name](seed=derived))
        asked = study.ask()
        space.suggest(asked)
    found = study.trials[asked.number]
    return found.params, found.distributions, found.system_attrs


def table_study(
    space: Space, trials: Sequence[Trial], objectives: Sequence[str], sampler: BaseSampler | None = None
) -> optuna.Study:
    """A study in memory with one entry for each trial, compared at the highest rung that `ENOUGH` of them have reached.

    Trials that have reached this rung are shown as complete, with their values there. The others are shown as pruned at
    their last rung, and count as worse: better ones were preferred there. Values of later rungs are not shown: the few
    trials that come first to a rung are often poor ones, whose longer training would make them look better than all
    others. (S. Falkner et al., arXiv:1807.01774, also model the results of the highest rung with enough of them.)
    With several objectives, Optuna has no pruned trials: all are shown as complete.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(directions=["minimize"] * len(objectives), sampler=sampler)
    rung = compared_rung(trials)
    study.add_trials([_as_frozen(space, trial, objectives, rung) for trial in trials])
    return study


def compared_rung(trials: Sequence[Trial]) -> int:
    """The highest rung that at least `ENOUGH` trials have reached, or 0."""
    reached = sorted((len(trial.results) for trial in trials if trial.state != "failed"), reverse=True)
    return max(0, reached[ENOUGH - 1] - 1) if len(reached) >= ENOUGH else 0


def _as_frozen(space: Space, trial: Trial, objectives: Sequence[str], rung: int) -> FrozenTrial:
    state, values, reports = TrialState.RUNNING, None, {}
    results = trial.results[: rung + 1]
    if trial.state == "failed":
        state = TrialState.FAIL
    elif trial.state == "refused":
        state = TrialState.PRUNED  # its violated constraint is among the system attributes
    elif results and (len(results) > rung or len(objectives) > 1):
        state, values = TrialState.COMPLETE, trial.objectives(objectives, len(results) - 1)
    elif results:
        state, reports = TrialState.PRUNED, {k: result.metric for k, result in enumerate(results)}
    return create_trial(
        state=state,
        values=values,
        params=trial.params,
        distributions=space.distributions(trial.params),
        intermediate_values=reports,
        system_attrs=trial.system_attrs,
    )
