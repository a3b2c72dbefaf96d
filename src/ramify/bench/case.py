"""A benchmark case, as data passed between processes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict

from ramify.errors import RamifyError
from ramify.model.build import LabelSpread
from ramify.planning.model_profile import ModelProfile, profile_model
from ramify.recipe import Recipe, parse_recipe
from ramify.store.store import Store

SHARDED = "+shard"
"""Suffix of a placement: with the encoder sharded over all ranks (`parallel.shard: encoder`)."""

PLACEMENTS = ("auto", "replicated", "per-branch", "per-branch-even", "balanced")

Mode = Literal["weak", "strong"]


class Case(BaseModel):
    """One layout to measure.

    Attributes:
        recipe: the recipe, with the values of `train.batch` and `parallel` of the case.
        stores: paths of the stores by dataset.
        model: cost profile of the model, computed once for all processes.
        mode: `weak` (structures per rank held constant) or `strong` (structures per step held constant).
        placement: requested placement, e.g. `per-branch` or `per-branch+shard`.
        ranks: number of ranks.
        warmup: number of untimed steps, in which memory is allocated and caches fill.
        steps: number of timed steps.
    """

    model_config = ConfigDict(frozen=True)

    recipe: Recipe
    stores: dict[str, Path]
    model: ModelProfile
    mode: str
    placement: str
    ranks: int
    warmup: int
    steps: int

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        stores: Mapping[str, Path],
        *,
        mode: str,
        placement: str,
        ranks: int,
        batch: int,
        warmup: int,
        steps: int,
    ) -> Self:
        """A case of `recipe` with `batch` structures per step.

        Raises:
            RamifyError: there is no such placement.
        """
        kind = placement.removesuffix(SHARDED)
        if kind not in PLACEMENTS:
            raise RamifyError(
                f"placement {placement}: accepted are {', '.join(PLACEMENTS)}, each with or without {SHARDED}"
            )
        content = recipe.model_dump(mode="json")
        content["train"]["batch"] = batch
        content["parallel"]["placement"] = kind
        content["parallel"]["shard"] = "encoder" if placement.endswith(SHARDED) else "none"
        changed = parse_recipe(content, "benchmark")
        spreads = {}
        for path in set(stores.values()):
            with Store.open(path) as store:
                spreads[path] = LabelSpread.of_manifest(store.manifest)
        cost = profile_model(changed, {name: spreads[path] for name, path in stores.items()})
        return cls(
            recipe=changed, stores=dict(stores), model=cost, mode=mode, placement=placement, ranks=ranks, warmup=warmup,
            steps=steps,
        )  # fmt: skip

    def open_stores(self) -> dict[str, Store]:
        """The store of every dataset; a store shared by several datasets is opened once."""
        opened = {path: Store.open(path) for path in set(self.stores.values())}
        return {name: opened[self.stores[name]] for name in self.recipe.datasets}
