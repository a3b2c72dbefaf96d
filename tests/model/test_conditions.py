"""Models with conditions: their keys, their weights beside those without, and what they refuse."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.build import molecule
from torch import nn

from ramify.batches.batch import Batch, BatchPart
from ramify.batches.conditions import condition_values
from ramify.batches.open import open_stores
from ramify.batches.padding import Padding
from ramify.errors import RamifyError
from ramify.inference.memory import prediction_cost
from ramify.model import compiled
from ramify.model.build import LabelSpread, build_model
from ramify.model.compiled import CompiledModel
from ramify.model.encoders.base import Encoder, add_conditions
from ramify.model.multibranch import MultiBranch
from ramify.neighbors.edges import find_edges
from ramify.recipe import ModelOptions, Recipe, parse_recipe
from ramify.recipe.encoder import encoder_options
from ramify.structures import Structures

CONDITIONS = ["spin", "dataset", "charge"]


def recipe_of(folder: Path, conditions: list[str], forces: str = "conservative") -> Recipe:
    encoder = {"layers": 1, "width": 8, "vector_channels": 4, "radial": 4, "cutoff": 4.0, "max_neighbors": 8}
    heads = {"energy_head": {"layers": 1, "width": 8}, "force_head": {"layers": 1, "width": 8, "kind": forces}}
    content = {
        "stores": str(folder),
        "datasets": {name: {"format": "extxyz", "path": f"{name}.xyz"} for name in ("b", "a")},
        "branches": "shared",
        "model": {"encoder": encoder, **heads, "conditions": conditions},
        "train": {"precision": "fp64"},
    }
    return parse_recipe(content, "test")


def model_of(recipe: Recipe, **spreads: Any) -> MultiBranch:
    return build_model(recipe, {name: LabelSpread(0.5, 1.0, 10) for name in ("a", "b")})


def test_keys(tmp_path: Path) -> None:
    found = recipe_of(tmp_path, CONDITIONS).model
    assert found.conditions == ("charge", "spin", "dataset")
    assert found.datasets == ("b", "a")
    assert parse_recipe(recipe_of(tmp_path, CONDITIONS).model_dump(mode="json"), "again").model == found
    plain = recipe_of(tmp_path, []).model
    assert not {"conditions", "datasets"} & plain.model_dump(mode="json").keys()  # as of models before there were any
    with pytest.raises(RamifyError, match=r"model\.conditions.*'charge', 'spin' or 'dataset', found 'magnetism'"):
        recipe_of(tmp_path, ["magnetism"])


def test_the_other_weights_are_those_without(tmp_path: Path) -> None:
    plain, conditioned = (model_of(recipe_of(tmp_path, c)).state_dict() for c in ([], CONDITIONS))
    added = conditioned.keys() - plain.keys()
    assert added == {f"encoder.conditions.{n}" for n in (
        "charge", "spin", "bias", "dataset.weight", "elements.weight", "modulation")}  # fmt: skip
    for name, tensor in plain.items():
        assert torch.equal(conditioned[name], tensor), name
    assert conditioned["encoder.conditions.dataset.weight"].shape[0] == 2


def batch_of(options: ModelOptions, states: list[tuple[int, int]], dataset: str = "b") -> Batch:
    structures = Structures.from_ase([molecule("H2O") for _ in states])
    charge, spin = np.array(states, float).T
    structures = Structures.make(
        n_atoms=structures.n_atoms, numbers=structures.numbers, positions=structures.positions, charge=charge, spin=spin
    )
    edges = find_edges(structures, 4.0, 8)
    values = condition_values(options, structures, dataset)
    return Batch.make([BatchPart(dataset, "shared", structures, edges, np.zeros(119), values)], torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("forces", ["direct", "conservative"])
def test_compiled_passes_are_the_plain_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forces: str) -> None:
    """One program for batches of different sizes and states."""
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    recipe = recipe_of(tmp_path, CONDITIONS, forces)
    model = model_of(recipe).train()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    program = CompiledModel(model, "default")
    for states, dataset in (([(0, 1), (1, 2)], "a"), ([(0, 3), (1, 4), (-1, 2)], "b")):
        batch = batch_of(recipe.model, states, dataset)
        plain, found = model(batch), program(Padding(("shared",), steps=True)(batch))
        torch.testing.assert_close(found.energy[: len(states)], plain.energy, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.forces[: 3 * len(states)], plain.forces, rtol=1e-12, atol=1e-12)
        assert plain.energy.std() > 1e-3
    torch.compiler.reset()


def test_absent_values_are_refused() -> None:
    """The last guard, below those of stores and predictions."""
    options = ModelOptions(conditions=("charge",))
    structures = Structures.from_ase([molecule("H2O")])
    with pytest.raises(RamifyError, match=r"\[0\] has no charge"):
        condition_values(options, structures, "d")
    with pytest.raises(RamifyError, match=r"dataset 'd'.*accepted: a, b"):
        condition_values(ModelOptions(conditions=("dataset",), datasets=("a", "b")), structures, "d")


def test_memory_of_a_prediction_is_known() -> None:
    options = ModelOptions(encoder=encoder_options({"layers": 1, "width": 16}), conditions=("charge", "spin"))
    assert prediction_cost(options, "direct").atom > 0


def test_encoders_that_take_none_are_refused() -> None:
    class Deaf(Encoder):
        def __init__(self) -> None:
            super().__init__(encoder_options({"layers": 1, "width": 4}), vector_channels=0)
            self.embedding = nn.Embedding(119, 4)

    with pytest.raises(RamifyError, match=r"model\.conditions: \[charge\].*Deaf"):
        add_conditions(Deaf(), ["charge"], 0)


def test_stores_without_values_are_refused(tmp_path: Path) -> None:
    """When a training starts: the key, the count and the first structure."""
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io import write

    from ramify.prepare.prepare import prepare_dataset

    recipe = recipe_of(tmp_path, ["charge"])
    for name, known in (("b", 0), ("a", 1)):
        images = []
        for index in range(12):
            atoms = molecule("H2O")
            atoms.rattle(0.05, seed=index)
            atoms.calc = SinglePointCalculator(atoms, energy=-1.0 - 0.01 * index, forces=np.zeros((3, 3)))
            atoms.info = {"source": index} | ({"q": 0} if known and index != 5 else {})
            images.append(atoms)
        write(tmp_path / f"{name}.xyz", images, format="extxyz")
    content = recipe.model_dump(mode="json")
    for name, keys in (("b", {"charge": 0}), ("a", {"charge_key": "q"})):
        content["datasets"][name] |= {"path": str(tmp_path / f"{name}.xyz"), "group_key": "source", **keys}
    recipe = parse_recipe(content, "test")
    for name, options in recipe.datasets.items():
        prepare_dataset(name, options, tmp_path, base=tmp_path)
    with pytest.raises(RamifyError, match=r"1 of 12 structures of dataset 'a' have no charge, the first is a.xyz\[5\]"):
        open_stores(recipe)
