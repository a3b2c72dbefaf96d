"""Lengths of the trainings of a study: equal passes, equal steps or equal time."""

from collections.abc import Mapping, Sequence
from typing import Any

from ramify.recipe import Recipe, TrainOptions
from ramify.study.models import Equal, Model

Budget = dict[str, Any]
"""Keys of `train`: `epochs`, `max_steps`, `evaluate_every`, `checkpoint_every`."""


ALL = "all"
"""Key of the multi-branch model at the beginning of the study, whose length the others are compared with."""


def budget_of(
    model: Model,
    train: TrainOptions,
    reference: Sequence[str],
    structures: Mapping[str, int],
    equal: Equal,
    seconds: Mapping[str, float],
) -> Budget:
    """The length of one training.

    `passes`: every model passes as often over its own data as the recipe says, and a single-dataset model takes
    fewer steps. `steps`: every model takes the steps of the multi-branch model. `time`: every model takes as many
    steps as fit into the time of the multi-branch model, by the measured seconds per step. With `steps` and `time` the
    evaluations are as many as those of the multi-branch model.

    Args:
        model: the model.
        train: keys of the recipe of the study.
        reference: datasets of the multi-branch model at the beginning of the study.
        structures: number of training structures of each dataset.
        equal: see above.
        seconds: for `time`: measured seconds per step, by the name of the model and `ALL`; else empty.
    """
    of_all = sum(structures[name] for name in reference) / train.batch
    of_model = sum(structures[name] for name in model.datasets) / train.batch
    passes = train.epochs if train.max_steps is None else train.max_steps / of_all
    if equal == "passes":
        steps = None if train.max_steps is None else max(1, round(passes * of_model))
        every = {"evaluate_every": train.evaluate_every, "checkpoint_every": train.checkpoint_every}
        return {"epochs": train.epochs, "max_steps": steps} | every
    steps = train.max_steps if train.max_steps is not None else max(1, round(train.epochs * of_all))
    if equal == "time":
        steps = max(1, round(steps * seconds[ALL] / seconds[model.name]))
    more = steps / of_model / passes  # passes of this model for each of the multi-branch model
    return {
        "epochs": steps / of_model,
        "max_steps": steps,
        "evaluate_every": train.evaluate_every * more,
        "checkpoint_every": train.checkpoint_every * more,
    }


def steps_of(recipe: Recipe, structures: Mapping[str, int]) -> int:
    """Number of steps of a run without early stopping."""
    if recipe.train.max_steps is not None:
        return recipe.train.max_steps
    return max(1, round(recipe.train.epochs * sum(structures[name] for name in recipe.datasets) / recipe.train.batch))
