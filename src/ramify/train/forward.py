"""The forward pass of training: by the model in eager mode, or by a compiled program on padded batches."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ramify.batches.padding import Padding, tile_for
from ramify.model.multibranch import BatchPredictions, MultiBranch
from ramify.parallel.layout import Layout
from ramify.recipe import Recipe
from ramify.store.manifest import Manifest


@dataclass
class Forward:
    """The forward pass of a training step.

    Attributes:
        predict: (batch, stress=...) -> differentiable predictions.
        padding: of the batches; None where they are not padded.
    """

    predict: Callable[..., BatchPredictions]
    padding: Padding | None = None


def make_forward(
    model: MultiBranch, recipe: Recipe, layout: Layout, shares: Mapping[str, float], data: Mapping[str, Manifest]
) -> Forward:
    """The forward pass that `train.compile` selects.

    Args:
        model: on its device.
        recipe: of the run.
        layout: of this rank.
        shares: fraction of each dataset in a batch.
        data: manifests of the stores.

    Raises:
        RamifyError: there is no compiler for the device.
    """
    mode = recipe.train.compile
    if mode == "none":
        return Forward(model)
    from ramify.model.compiled import CompiledModel  # the compiler takes a second to import

    compiled = CompiledModel(model, mode, layout.watchdog.working)
    branches = tuple(model.branches)
    tile = tile_for(_atoms_of_rank(recipe, layout, shares, data), len(branches)) if compiled.conservative else 1
    return Forward(compiled, Padding(branches, tile, steps=mode == "cuda-graphs"))


def _atoms_of_rank(recipe: Recipe, layout: Layout, shares: Mapping[str, float], data: Mapping[str, Manifest]) -> float:
    """Mean number of atoms of a micro-batch of this rank."""
    atoms = 0.0
    for dataset, branch in recipe.branch_of_datasets().items():
        if branch in layout.hosted:
            split = data[dataset].splits["train"]
            of_step = recipe.train.batch * shares[dataset] * split.atoms / split.structures
            atoms += of_step / len(layout.placement.hosts[branch])
    return min(atoms, recipe.parallel.micro_batch_atoms or atoms)
