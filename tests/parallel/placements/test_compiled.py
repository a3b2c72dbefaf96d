"""Compiled passes on several ranks and in several turns take the steps of one plain process."""

from pathlib import Path

import numpy as np
import pytest

from ramify.model import compiled
from ramify.recipe import Recipe
from ramify.train import compile_choice
from ramify.train.compile_cache import ProgramCost
from tests.parallel.conftest import MakeFive
from tests.parallel.placements.test_parity import MICRO_BATCHES, Trained, steps_of, train_each
from tests.processes.worlds import run_world


def train_compiled(rank: int, world: int, recipes: list[Recipe], folder: Path) -> list[Trained]:
    """On this rank, with programs that need no compiler."""
    compiled.BACKEND = "aot_eager"
    return train_each(rank, world, recipes, folder)


def train_choosing(rank: int, world: int, recipes: list[Recipe], folder: Path) -> list[Trained]:
    """With a choice after three steps; the second rank cannot compile."""
    compile_choice.WARMUP, compile_choice.PLAIN, compile_choice.PAIRS, compile_choice.STEPS = 0, 1, 1, 3
    compile_choice.TYPICAL = ProgramCost(compile=1e-9, ratio=0.5)

    def broken(graph: object, inputs: object) -> None:
        raise ValueError("no such processor")

    if rank == 1:
        compiled.BACKEND = broken
        return train_each(rank, world, recipes, folder)
    return train_compiled(rank, world, recipes, folder)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_all_ranks_choose_alike(five: MakeFive, tmp_path: Path) -> None:
    """One rank compiles its step and the other one fails: both take the same steps as one plain process."""
    recipe = steps_of(five, "conservative", {"parallel__placement": "balanced", "train__compile": "auto"})
    (alone,) = train_each(0, 1, [steps_of(five, "conservative", {})], tmp_path)
    for (rank,) in run_world(2, train_choosing, 2, [recipe], tmp_path, limit=280):
        for name, array in rank.state.items():
            limit = 1e-11 * np.abs(alone.state[name]).max()
            np.testing.assert_allclose(array, alone.state[name], rtol=0, atol=limit, err_msg=name)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_ranks_in_turns(five: MakeFive, tmp_path: Path) -> None:
    """To 1e-11 of the largest number of each tensor: products of padded rows add up in another order."""
    (alone,) = train_each(0, 1, [steps_of(five, "conservative", {})], tmp_path)
    recipe = steps_of(
        five, "conservative", {"parallel__placement": "balanced", "train__compile": "default", **MICRO_BATCHES}
    )
    for (rank,) in run_world(2, train_compiled, 2, [recipe], tmp_path, limit=280):
        for name, array in rank.state.items():
            limit = 1e-11 * np.abs(alone.state[name]).max()
            np.testing.assert_allclose(array, alone.state[name], rtol=0, atol=limit, err_msg=name)
