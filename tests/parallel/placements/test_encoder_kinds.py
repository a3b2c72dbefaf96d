"""Every kind of encoder takes the same steps on two ranks as on one: micro-batches, branches apart, shards."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ramify.parallel.world import World
from ramify.recipe import Recipe
from ramify.recipe.encoder import KINDS
from ramify.train.reporting import Callbacks
from ramify.train.start import start_run
from tests.parallel.conftest import MakeFive
from tests.parallel.placements.test_fsdp import assert_close, whole_state
from tests.parallel.placements.test_parity import MICRO_BATCHES
from tests.processes.worlds import run_world

STEPS = 3
SIZES = {"layers": 2, "width": 8, "radial": 4, "cutoff": 4.0, "max_neighbors": 6}
OWN: dict[str, dict[str, Any]] = {
    "many_body": {"channels": 6, "passed": 2, "vector_channels": 4},
    "tensornet": {"channels": 6, "vector_channels": 4},
    "pyg:dimenet++": {"kind": "pyg", "layer": "dimenet++"},
    "pyg:pna": {"kind": "pyg", "layer": "pna"},
    "pyg:visnet": {"kind": "pyg", "layer": "visnet"},
}
APART: dict[str, Any] = {"parallel__placement": "per-branch", **MICRO_BATCHES}
SHARDED: dict[str, Any] = {"parallel__placement": "replicated", "parallel__shard": "encoder"}
PLACED = [("many_body", APART), ("many_body", SHARDED), ("painn", APART), ("schnet", SHARDED), ("tensornet", APART)]
"""Every kind but `egnn`, which test_parity and test_fsdp cover."""
if find_spec("torch_geometric") is not None:
    PLACED += [("pyg:visnet", APART), ("pyg:dimenet++", SHARDED), ("pyg:pna", APART)]


def recipe_of(five: MakeFive, kind: str, changes: dict[str, Any]) -> Recipe:
    return five(
        model__encoder={"kind": kind} | SIZES | OWN.get(kind, {}),
        model__force_head__kind="conservative",
        model__repulsion="zbl",
        objective__stress=0.3,
        train__max_steps=STEPS,
        train__batch=6,
        train__evaluate_every=99.0,
        train__checkpoint_every=99.0,
        **changes,
    )


def train_each(rank: int, world: int, recipes: list[Recipe], folder: Path) -> list[dict[str, NDArray[Any]]]:
    """Trains one run after the other on this rank; of each the weights and averages on it."""
    found = []
    for number, recipe in enumerate(recipes):
        trainer = start_run(recipe, folder / f"{world}-{number}", Callbacks(), world=World(rank=rank, size=world))
        trainer.fit()
        found.append(whole_state(trainer))
        trainer.run.unlock()
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_ranks_take_the_steps_of_one(five: MakeFive, tmp_path: Path) -> None:
    """To 1e-12 of the largest number of each tensor, conservative forces, stress and repulsion included."""
    kinds = list(dict(PLACED))
    assert {*(kind.split(":")[0] for kind in kinds), "egnn", "pyg"} == set(KINDS)
    alone = train_each(0, 1, [recipe_of(five, kind, {}) for kind in kinds], tmp_path)
    recipes = [recipe_of(five, kind, changes) for kind, changes in PLACED]
    results = run_world(2, train_each, 2, recipes, tmp_path, limit=400)
    for number, (kind, _) in enumerate(PLACED):
        expected = alone[kinds.index(kind)]
        seen: set[str] = set()
        for rank in range(2):
            assert_close(results[rank][number], expected)
            seen |= results[rank][number].keys()
        assert seen == expected.keys()
    moved = [np.abs(expected[f"averaged {name}"] - expected[name]).max() for name in expected if " " not in name]
    assert max(moved) > 1e-4  # the steps changed the weights
