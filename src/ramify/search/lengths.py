"""Length and memory of a trial before it starts."""

from functools import cached_property

from ramify.batches.open import open_stores
from ramify.errors import RamifyError
from ramify.planning.plan import USABLE, make_plan
from ramify.planning.workload import DatasetSize, dataset_sizes
from ramify.recipe import Recipe
from ramify.search.rungs import rung_steps
from ramify.train.continuation import run_length


class Estimates:
    """Steps and memory of the recipes of trials, which have the same datasets.

    Args:
        recipe: of the search.
        ranks: number of processes of each trial.

    Raises:
        RamifyError: a store is missing, or does not fit the recipe.
    """

    def __init__(self, recipe: Recipe, ranks: int) -> None:
        self._recipe, self._ranks = recipe, ranks
        manifests = [store.manifest for store in open_stores(recipe).values()]
        self._structures = sum(manifest.splits["train"].structures for manifest in manifests)
        self.validates = any(manifest.splits["val"].structures for manifest in manifests)
        self._sizes: dict[tuple[float, int | None], dict[str, DatasetSize]] = {}

    def steps(self, recipe: Recipe) -> int:
        """Number of steps of the whole run."""
        return run_length(recipe, self._structures / recipe.train.batch, 0, 0.0)

    def memory(self, recipe: Recipe) -> tuple[float, float]:
        """GB of the rank with most memory, and how much that is above the limit `parallel.memory` (0: it fits)."""
        encoder = recipe.model.encoder
        key = (encoder.cutoff, encoder.max_neighbors)
        if key not in self._sizes:
            self._sizes[key] = dataset_sizes(recipe, {})
        needed = make_plan(recipe, self._sizes[key], self._ranks).chosen.memory / 1e9
        limit = recipe.parallel.memory
        return needed, 0.0 if limit is None else max(0.0, needed - USABLE * limit)

    @cached_property
    def interval(self) -> int:
        """Steps between evaluations with the recipe of the search."""
        train = self._recipe.train
        return max(1, round(train.evaluate_every * self._structures / train.batch))


def check_rungs(estimates: Estimates, recipe: Recipe, rungs: int, reduction: int) -> None:
    """Refuses rungs at which no metric would be known.

    Raises:
        RamifyError: no dataset has a validation split, or the first evaluation comes after the first rung.
    """
    if not estimates.validates:
        raise RamifyError(
            "a search compares errors on validation splits, but no dataset has any",
            fix="prepare a dataset with split.val above 0",
        )
    first = rung_steps(estimates.steps(recipe), rungs, reduction)[0]
    if rungs > 1 and estimates.interval > first:
        often = 0.99 * recipe.train.evaluate_every * first / estimates.interval
        raise RamifyError(
            f"train.evaluate_every: {recipe.train.evaluate_every:g} epochs are {estimates.interval} steps, but the "
            f"first of {rungs} rungs is at step {first} of {estimates.steps(recipe)}",
            fix=f"set train.evaluate_every={often:.3g} or less, or fewer --rungs",
        )
