"""Training with conditions: one process and two ranks, with and without sharding, take equal steps."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from numpy.typing import NDArray

from ramify.prepare.prepare import prepare_dataset
from ramify.recipe import Recipe, parse_recipe
from tests.parallel.placements.test_parity import state_of
from tests.processes.worlds import run_world
from tests.small import make_recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Two datasets of ions, all conditions, 6 steps in float64."""
    folder, entries = tmp_path_factory.mktemp("ions"), {}
    for name, base in (("cells", bulk("Cu", cubic=True)), ("waters", molecule("H2O"))):
        images = []
        for index in range(24):
            atoms = base.copy()
            atoms.rattle(0.05, seed=index)
            atoms.calc = EMT()
            energy, forces = atoms.get_potential_energy() + 0.5 * (index % 3 - 1), atoms.get_forces()
            atoms.info = {"charge": index % 3 - 1, "spin": 1 + int(index % 3 != 1), "source": index}
            atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
            images.append(atoms)
        write(folder / f"{name}.xyz", images, format="extxyz")
        keys = {"group_key": "source", "charge_key": "charge", "spin_key": "spin"}
        entries[name] = {"format": "extxyz", "path": str(folder / f"{name}.xyz"), **keys}
    made = make_recipe(
        folder,
        entries,
        model__conditions=["charge", "spin", "dataset"],
        model__force_head__kind="conservative",
        train__precision="fp64",
        train__max_steps=6,
        train__evaluate_every=99.0,
        train__checkpoint_every=99.0,
    )
    for name, options in made.datasets.items():
        prepare_dataset(name, options, Path(made.stores), base=folder)
    return made


def train_each(rank: int, world: int, recipes: list[Recipe], folder: Path) -> list[dict[str, NDArray[np.float64]]]:
    from ramify.parallel.world import World
    from ramify.train.reporting import Callbacks
    from ramify.train.start import start_run

    found = []
    for number, recipe in enumerate(recipes):
        trainer = start_run(recipe, folder / f"{world}-{number}", Callbacks(), world=World(rank=rank, size=world))
        trainer.fit()
        found.append(state_of(trainer))
        trainer.run.unlock()
    return found


def with_keys(recipe: Recipe, **parallel: Any) -> Recipe:
    content = recipe.model_dump(mode="json")
    return parse_recipe(content | {"parallel": content["parallel"] | parallel}, "test")


@pytest.mark.slow
def test_two_ranks(recipe: Recipe, tmp_path: Path) -> None:
    """To 1e-12 of the largest number of each tensor, those of the conditions among them, which have moved."""
    (alone,) = train_each(0, 1, [recipe], tmp_path)
    assert np.abs(alone["encoder.conditions.modulation"]).max() > 1e-3
    assert {f"encoder.conditions.{n}" for n in ("charge", "spin", "dataset.weight")} <= alone.keys()
    placed = [with_keys(recipe, placement="replicated"), with_keys(recipe, placement="per-branch")]
    for ranks in zip(*run_world(2, train_each, 2, placed, tmp_path, limit=220), strict=True):
        for state in ranks:
            for name, array in state.items():
                limit = 1e-12 * np.abs(alone[name]).max()
                np.testing.assert_allclose(array, alone[name], rtol=0, atol=limit, err_msg=name)


def shard(rank: int, world: int, recipe: Recipe, folder: Path) -> dict[str, NDArray[np.float64]]:
    """The whole weights after training with a sharded encoder."""
    from ramify.checkpoint.checkpoint import open_checkpoint
    from ramify.parallel.world import World
    from ramify.train.reporting import Callbacks
    from ramify.train.start import start_run

    trainer = start_run(recipe, folder / "sharded", Callbacks(), world=World(rank=rank, size=world))
    trainer.fit()
    trainer.run.unlock()
    found = open_checkpoint(folder / "sharded/checkpoints/latest").training()
    return {name: tensor.numpy() for name, tensor in found.items() if "/" not in name}


def test_sharded_encoder(recipe: Recipe, tmp_path: Path) -> None:
    (alone,) = train_each(0, 1, [recipe], tmp_path)
    sharded, _ = run_world(2, shard, 2, with_keys(recipe, shard="encoder"), tmp_path, limit=220)
    for name, array in sharded.items():
        np.testing.assert_allclose(array, alone[name], rtol=0, atol=1e-12 * np.abs(alone[name]).max(), err_msg=name)
