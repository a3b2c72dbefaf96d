"""The forward pass of training: by the model in eager mode, or by a compiled program on padded batches."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from ramify.batches.batch import Batch
from ramify.batches.loader import StepBatches
from ramify.batches.padding import Padding, tile_for
from ramify.errors import RamifyError
from ramify.model.multibranch import BatchPredictions, MultiBranch
from ramify.parallel.layout import Layout
from ramify.recipe import Recipe
from ramify.store.manifest import Manifest
from ramify.train.reporting import Callbacks


@dataclass
class Forward:
    """The forward pass of a training step.

    Attributes:
        predict: (batch, stress=...) -> differentiable predictions.
        pad: (batch, number of its step in this session) -> padded batch; None where batches are not padded.
        measured: (batches of a step, remaining steps) -> context of the step.
    """

    predict: Callable[..., BatchPredictions]
    pad: Callable[[Batch, int], Batch] | None = None
    measured: Callable[[StepBatches, int], AbstractContextManager[None]] = lambda work, remaining: nullcontext()


def make_forward(
    model: MultiBranch,
    recipe: Recipe,
    layout: Layout,
    shares: Mapping[str, float],
    data: Mapping[str, Manifest],
    callbacks: Callbacks,
) -> Forward:
    """The forward pass that `train.compile` selects.

    Args:
        model: on its device.
        recipe: of the run.
        layout: of this rank.
        shares: fraction of each dataset in a batch.
        data: manifests of the stores.
        callbacks: called with the choice of `auto`, and while the step is compiled.

    Raises:
        RamifyError: there is no compiler for the device, which `auto` does not need.
    """
    mode = recipe.train.compile
    if mode == "none":
        return Forward(model)
    from ramify.model.compiled import CompiledModel, CompileMode, program_key  # the compiler takes a second to import
    from ramify.train.compile_cache import ProgramCache

    branches = tuple(model.branches)
    conservative = recipe.model.force_head.kind == "conservative"
    tile = tile_for(_atoms_of_rank(recipe, layout, shares, data), len(branches)) if conservative else 1
    padding = Padding(branches, tile, steps=mode == "cuda-graphs")
    kind: CompileMode = "default" if mode == "auto" else mode
    obstacle = recipe.not_compiled()  # of `auto`; the recipe is refused with other values

    @contextmanager
    def compiling() -> Iterator[None]:
        with layout.watchdog.working(), callbacks.compiling(), cache.compiling():
            yield

    try:
        compiled = CompiledModel(model, kind, compiling)
    except RamifyError as error:
        if mode != "auto":
            raise
        compiled, obstacle = None, obstacle or str(error).splitlines()[0]
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    parts = kind, recipe.train.precision, recipe.objective.stress > 0, len(branches) > 1, tile > 1, trained
    cache = ProgramCache(Path(recipe.stores), program_key(model, *parts) if compiled else "")
    if compiled is not None and mode != "auto":
        return Forward(compiled, lambda batch, number: padding(batch))
    from ramify.train.compile_choice import CompileChoice

    choice = CompileChoice(model, compiled or model, padding, layout, cache, callbacks.noted, obstacle)
    return Forward(choice.predict, choice.pad, choice.measured)


def _atoms_of_rank(recipe: Recipe, layout: Layout, shares: Mapping[str, float], data: Mapping[str, Manifest]) -> float:
    """Mean number of atoms of a micro-batch of this rank."""
    atoms = 0.0
    for dataset, branch in recipe.branch_of_datasets().items():
        if branch in layout.hosted:
            split = data[dataset].splits["train"]
            of_step = recipe.train.batch * shares[dataset] * split.atoms / split.structures
            atoms += of_step / len(layout.placement.hosts[branch])
    return min(atoms, recipe.parallel.micro_batch_atoms or atoms)
