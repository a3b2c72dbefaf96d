"""The model of a recipe: the initial weights of a part do not depend on the other parts."""

from typing import Any

import pytest
import torch

from ramify.model.build import LabelSpread, build_model
from ramify.recipe import Recipe, parse_recipe
from tests.small import MODEL

SPREADS = {"a": LabelSpread(0.5, 1.5, 10), "b": LabelSpread(0.7, None, 10), "c": LabelSpread(0.1, 0.2, 30)}


def recipe_of(*names: str, seed: int = 3, **changes: Any) -> Recipe:
    entry = {"format": "extxyz", "path": "none.xyz"}
    return parse_recipe(
        {"datasets": dict.fromkeys(names, entry), "model": MODEL, "train": {"seed": seed}} | changes, "test"
    )


def weights_of(recipe: Recipe, hosted: list[str] | None = None) -> dict[str, torch.Tensor]:
    return build_model(recipe, SPREADS, hosted).state_dict()


@pytest.mark.parametrize("hosted", [["a"], ["b", "c"], ["c", "a"], []])
def test_hosted_branches_are_those_of_the_whole_model(hosted: list[str]) -> None:
    whole, part = weights_of(recipe_of("a", "b", "c")), weights_of(recipe_of("a", "b", "c"), hosted)
    kept = {n for n in whole if not n.startswith("branches") or n.split(".")[1] in hosted}
    assert part.keys() == kept
    assert all(torch.equal(tensor, whole[name]) for name, tensor in part.items())


def test_branches_come_and_go_without_touching_others() -> None:
    three, two = weights_of(recipe_of("a", "b", "c")), weights_of(recipe_of("c", "a"))
    assert all(torch.equal(tensor, three[name]) for name, tensor in two.items())


def test_parts_and_seeds_differ() -> None:
    weights, other = weights_of(recipe_of("a", "c")), weights_of(recipe_of("a", "c"), None)
    first = "energy.layers.0.weight"
    assert not torch.equal(weights[f"branches.a.{first}"], weights[f"branches.c.{first}"])
    assert all(torch.equal(tensor, other[name]) for name, tensor in weights.items())
    reseeded = weights_of(recipe_of("a", "c", seed=4))
    for name in (f"branches.a.{first}", f"branches.c.{first}", "encoder.embedding.weight"):
        assert not torch.equal(weights[name], reseeded[name])


def test_the_callers_random_numbers_stay() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    build_model(recipe_of("a"), SPREADS)
    assert torch.equal(torch.rand(3), expected)
