"""A study of two small datasets that is finished."""

from pathlib import Path

import pytest

from ramify.recipe import Recipe
from ramify.study.conduct import prepare_missing
from ramify.study.setup import Request
from tests.small import make_recipe
from tests.study.conducted import Conducted, alloys


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Two datasets that share copper, each with its store."""
    folder = tmp_path_factory.mktemp("study")
    entries = {
        "aluminium": alloys(folder, "aluminium", ("Al", "Cu"), 1),
        "nickel": alloys(folder, "nickel", ("Ni", "Cu"), 2),
    }
    made = make_recipe(
        folder, entries, train__max_steps=16, train__threads=1, train__evaluate_every=0.5, train__checkpoint_every=0.2
    )
    prepare_missing(made, folder, lambda dataset, count: None)
    return made


@pytest.fixture(scope="session")
def finished(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of one seed, conducted without interruption, one model at a time."""
    request = Request(recipe, "test", tmp_path_factory.mktemp("finished") / "study")
    Conducted(request).end()
    return request.out
