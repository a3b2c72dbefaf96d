"""The paper's recipe with a model of a chosen width."""

from collections.abc import Callable

import pytest

from ramify.recipe import Recipe, load_recipe

MakeRecipe = Callable[..., Recipe]


@pytest.fixture(scope="session")
def paper() -> MakeRecipe:
    """`paper(16, "optimizer.ema=0")`: one layer of that width, and further overrides."""

    def make(width: int, *overrides: str) -> Recipe:
        widths = [f"model.{part}.width={width}" for part in ("encoder", "energy_head", "force_head")]
        return load_recipe("paper", ["model.encoder.layers=1", *widths, *overrides])

    return make
