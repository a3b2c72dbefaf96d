"""Recipes of the runs of a committee: the same training with other seeds."""

from collections.abc import Sequence
from pathlib import Path

from ramify.checkpoint.committee import run_of_seed, write_seeds
from ramify.errors import RamifyError
from ramify.inference.model import read_saved
from ramify.recipe import Recipe, parse_recipe
from ramify.run.run import Run
from ramify.train.init_weights import FRESH


def begin_committee(path: Path, recipe: Recipe, seeds: int, *, continued: bool) -> list[int]:
    """Creates the folder of a committee.

    Args:
        path: the folder.
        recipe: whose `train.seed` is the first seed.
        seeds: number of seeds.
        continued: whether runs may exist.

    Returns:
        The seeds.

    Raises:
        RamifyError: `path` is a run, or has a run although not `continued`.
    """
    if Run.exists(path):
        raise RamifyError(f"{path} is a run of one seed", fix="choose another --run folder for --seeds")
    found = list(range(recipe.train.seed, recipe.train.seed + seeds))
    for seed in found if not continued else []:
        Run.require_free(run_of_seed(path, seed))
    write_seeds(path, found)
    return found


def recipe_of_seed(recipe: Recipe, path: Path, seeds: Sequence[int], seed: int, head_steps: int | None) -> Recipe:
    """The recipe of one seed of the committee at `path`.

    Args:
        recipe: of the first seed.
        path: of the committee.
        seeds: all seeds; the run of the first is trained already where `head_steps` is used.
        seed: that of the recipe.
        head_steps: train only heads, from random weights, on the encoder of the first seed, for so many steps; None to
            train whole models.

    Raises:
        RamifyError: the run of the first seed has no checkpoint.
    """
    content = recipe.model_dump(mode="json")
    content["train"] |= {"seed": seed}
    if head_steps is not None and seed != seeds[0]:
        first = run_of_seed(path, seeds[0])
        content["train"] |= {"max_steps": head_steps}
        content["finetune"] |= {
            "mode": "frozen-encoder",
            "start": dict.fromkeys(recipe.datasets_of_branches(), FRESH),
            "model": str(first),
            "checkpoint": "best",
            "weights": read_saved(first).weights_sha256,
        }
    return parse_recipe(content, f"the recipe of seed {seed}")
