"""What a run starts from when it does not start from random numbers: the weights of a trained model.

Every branch of that model either goes on in the run or is carried along untouched; none is ever replaced. Its
reference energies and units come along with it.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ramify.errors import RamifyError
from ramify.inference.branches import DatasetInfo
from ramify.inference.model import read_saved
from ramify.inference.saved import Saved
from ramify.model.lora import add_lora, is_lora_weight
from ramify.model.multibranch import MultiBranch
from ramify.model.parts import branch_of, branch_of_part, of_branches, part_of_branch, split_name
from ramify.parallel.sharded_tensors import distribute_like
from ramify.recipe import FinetuneOptions, Recipe
from ramify.train.state import State

FRESH = "fresh"
"""Where a branch starts that takes over nothing."""


def set_trainable(model: MultiBranch, recipe: Recipe) -> None:
    """Freezes the encoder, or gives it low-rank updates, as the mode of a fine-tuning says; before anything is made
    that holds parameters."""
    if recipe.finetune.mode == "frozen-encoder":
        model.encoder.requires_grad_(False)
    elif recipe.finetune.mode == "lora":
        add_lora(model.encoder, recipe.finetune.rank, recipe.train.seed)


def rate_factor(options: FinetuneOptions, name: str) -> float:
    """How much of the learning rate a parameter takes: `old_rate` of it where it belongs to the encoder or to a branch
    that goes on, all of it where it is new."""
    branch = branch_of(name)
    goes_on = branch is None or options.start.get(branch) == branch
    return options.old_rate if options.mode is not None and goes_on and not is_lora_weight(name) else 1.0


def read_pretrained(options: FinetuneOptions) -> Saved:
    """The model that a fine-tuning starts from.

    Raises:
        RamifyError: it is not there any more, or not the same; or the recipe was not made by `ramify finetune`.
    """
    if not options.weights:
        raise RamifyError(
            f"finetune.mode: {options.mode} needs a trained model to start from",
            fix="ramify finetune MODEL RECIPE --mode MODE --run DIR",
        )
    saved = read_saved(Path(options.model), options.checkpoint)
    if saved.weights_sha256 != options.weights:
        raise RamifyError(
            f"the model in {options.model} has other weights than the one this run is to start from",
            fix="bring it back, or start a new run with `ramify finetune`",
        )
    return saved


def load_pretrained(state: State, recipe: Recipe, saved: Saved) -> None:
    """Puts the weights of `saved` into a state at step 0, to the bit; on this rank, for what it hosts.

    Args:
        state: at its beginning; the start is marked to be evaluated.
        recipe: `finetune.start` says where each branch comes from.
        saved: the model.

    Raises:
        RamifyError: a part does not fit.
    """
    start = recipe.finetune.start
    named = zip(state.model.named_parameters(), state.averages.averages, strict=True)
    with torch.no_grad():
        for (name, parameter), average in named:
            source = None if is_lora_weight(name) else _source(name, start, saved)
            if source is not None:
                _must_fit(name, parameter, source, saved)
                parameter.copy_(distribute_like(parameter, source.to(parameter.dtype)))
                average.copy_(parameter)
        for name, buffer in state.buffers().items():
            source = _source(name, start, saved)
            if source is not None:
                buffer.copy_(source)
    state.progress.evaluated = -1
    branches = recipe.datasets_of_branches()
    for branch, group in saved.branches.items():
        others = {name: info.to_dict() for name, info in group.items() if name not in branches.get(branch, ())}
        if others:
            state.carried.datasets[branch] = others
    if state.layout.is_rank_zero:
        untrained = [branch for branch in saved.branches if branch not in branches]
        state.carried.weights = of_branches(saved.weights, untrained)


def _source(name: str, start: Mapping[str, str], saved: Saved) -> Tensor | None:
    """What the tensor `name` starts from; None where it starts from random numbers."""
    part, rest = split_name(name)
    branch = branch_of_part(part)
    if branch is None:
        return saved.weights[name]
    origin = start.get(branch, FRESH)
    if origin == FRESH:
        return None
    # a branch without forces has nothing that a force head could start from, and no unit of forces
    if rest.startswith("force") and origin != branch and not _has_forces(saved.branches[origin]):
        return None
    target = f"{part_of_branch(origin)}.{rest}"
    if rest.startswith("labels.") and target not in saved.weights:  # a label that the origin was not trained on
        return None
    return saved.weights.get(target, torch.empty(0))


def _has_forces(datasets: Mapping[str, DatasetInfo]) -> bool:
    return any(info.spread.forces is not None for info in datasets.values())


def _must_fit(name: str, parameter: Tensor, source: Tensor, saved: Saved) -> None:
    if parameter.shape != source.shape:
        found = tuple(source.shape) if source.numel() else "not there"
        raise RamifyError(
            f"{name} is {tuple(parameter.shape)}, in the model of {saved.path} it is {found}",
            fix="a dataset with other labels than those of a branch needs a branch of its own: --mode new-branch",
        )
