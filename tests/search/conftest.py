"""A store and a recipe so small that a training takes a tenth of a second, and a space over it."""

from pathlib import Path
from typing import Any

import pytest

from ramify.prepare.prepare import prepare_dataset
from tests.small import make_recipe, without_forces

SPACE = {
    "optimizer.lr": {"low": 1.0e-4, "high": 0.1, "log": True},
    "model.encoder.width": {"low": 4, "high": 16, "step": 4},
    "model.encoder.kind": ["egnn", "painn"],
    "model.encoder.vector_channels": {"low": 2, "high": 6, "when": {"model.encoder.kind": "egnn"}},
}


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of a search: 8 steps, evaluated every 2; rungs at steps 2, 4 and 8."""
    folder = tmp_path_factory.mktemp("search")
    entries = {"bare": {"format": "extxyz", "path": str(without_forces(folder)), "group_key": "molecule"}}
    changes = {"train__max_steps": 8, "train__precision": "fp64", "train__evaluate_every": 0.3, "train__log_every": 1}
    recipe = make_recipe(folder, entries, train__batch=8, train__threads=1, **changes)
    prepare_dataset("bare", recipe.datasets["bare"], Path(recipe.stores), base=folder)
    return {"recipe": recipe.model_dump(mode="json"), "space": SPACE, "rungs": 3, "reduction": 2, "seed": 3}
