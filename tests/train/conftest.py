"""Stores that the tests of training share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ramify.recipe import Recipe
from tests.small import make_recipe, prepare_stores

MakeRecipe = Callable[..., Recipe]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """More threads would not be faster with such small models."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with stores, and the recipe entries of its datasets: ani1x, qm7x, mptrj and bare (no forces)."""
    folder = tmp_path_factory.mktemp("training")
    return folder, prepare_stores(folder)


@pytest.fixture(scope="session")
def small(prepared: tuple[Path, dict[str, Any]]) -> MakeRecipe:
    """`small("qm7x", "mptrj", train__batch=4)`: a small recipe over these datasets."""

    def make(*datasets: str, **changes: Any) -> Recipe:
        folder, entries = prepared
        return make_recipe(folder, {name: entries[name] for name in datasets}, **changes)

    return make
