"""Length and memory of a trial before it starts."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ramify.batches.open import open_stores
from ramify.bench.pace import step_seconds
from ramify.errors import RamifyError
from ramify.files import create_whole, read_json
from ramify.planning.plan import USABLE, make_plan
from ramify.planning.workload import DatasetSize, dataset_sizes
from ramify.recipe import Recipe, parse_recipe
from ramify.search.rungs import rung_steps
from ramify.train.continuation import run_length

SECONDS = "seconds_per_step"
LENGTHS = ("train.epochs", "train.max_steps")
"""Keys that `--equal time` sets."""


@dataclass
class Pace:
    """Seconds per step, for trials that take the training time of the recipe of the search.

    Attributes:
        recipe: of the search.
        kept: file with its seconds per step: measured once, by the first controller.
        measure: returns the seconds per step of a recipe with its stores.
    """

    recipe: Recipe
    kept: Path
    measure: Callable[[Recipe, Mapping[str, Path]], float] = step_seconds

    def reference(self) -> float:
        """Of the recipe of the search.

        Raises:
            RamifyError: a step cannot be measured, or the file is damaged.
        """
        if not self.kept.exists():
            create_whole(self.kept, json.dumps({SECONDS: self.seconds(self.recipe)}) + "\n")
        fix = f"remove {self.kept}: it is measured again"
        found = read_json(self.kept, fix=fix)
        seconds = found.get(SECONDS) if isinstance(found, dict) else None
        if not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
            raise RamifyError(f"{self.kept}: {SECONDS} is {seconds!r}, a number above 0 is expected", fix=fix)
        return seconds

    def seconds(self, recipe: Recipe) -> float:
        """Of any recipe, measured now."""
        return self.measure(recipe, {name: Path(recipe.stores) / name for name in recipe.datasets})


class Estimates:
    """Steps and memory of the recipes of trials, which have the same datasets.

    Args:
        recipe: of the search.
        ranks: number of processes of each trial.
        pace: gives all trials the same training time; None: each has the length that its recipe states.

    Raises:
        RamifyError: a store is missing, or does not fit the recipe; or a step cannot be measured.
    """

    def __init__(self, recipe: Recipe, ranks: int, pace: Pace | None = None) -> None:
        self._recipe, self._ranks, self._pace = recipe, ranks, pace
        self._seconds = 0.0 if pace is None else pace.reference()  # now: an error is that of the search, not of a trial
        manifests = [store.manifest for store in open_stores(recipe).values()]
        self._structures = sum(manifest.splits["train"].structures for manifest in manifests)
        self.validates = any(manifest.splits["val"].structures for manifest in manifests)
        self._sizes: dict[tuple[float, int | None], dict[str, DatasetSize]] = {}

    def steps(self, recipe: Recipe) -> int:
        """Number of steps of the whole run of a trial."""
        if self._pace is None:
            return self.stated_steps(recipe)
        return max(1, round(self.stated_steps(self._recipe) * self._seconds / self._pace.seconds(recipe)))

    def stated_steps(self, recipe: Recipe) -> int:
        """Number of steps by the keys of a recipe."""
        return run_length(recipe, self._structures / recipe.train.batch, 0, 0.0)

    def with_length(self, recipe: Recipe, steps: int) -> Recipe:
        """The recipe of a trial of `steps`; with equal time, evaluated as often as the recipe of the search."""
        if self._pace is None:
            return recipe
        epochs = steps * recipe.train.batch / self._structures
        passes = self.stated_steps(self._recipe) * self._recipe.train.batch / self._structures
        content = recipe.model_dump(mode="json")
        content["train"] |= {"epochs": epochs, "max_steps": steps}
        for key in ("evaluate_every", "checkpoint_every"):
            content["train"][key] *= epochs / passes
        return parse_recipe(content, "the recipe of the trial")

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
    steps = estimates.stated_steps(recipe)
    first = rung_steps(steps, rungs, reduction)[0]
    if rungs > 1 and estimates.interval > first:
        often = 0.99 * recipe.train.evaluate_every * first / estimates.interval
        raise RamifyError(
            f"train.evaluate_every: {recipe.train.evaluate_every:g} epochs are {estimates.interval} steps, but the "
            f"first of {rungs} rungs is at step {first} of {steps}",
            fix=f"set train.evaluate_every={often:.3g} or less, or fewer --rungs",
        )
