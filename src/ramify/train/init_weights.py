"""Initialisation of a fine-tuning run from the weights of a pretrained model.

Every branch of that model is either trained further or kept unchanged; none is ever replaced. Its reference energies
and units are kept with it.
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
"""Value of `finetune.start` for a branch that starts from random weights."""


CONDITIONS = "encoder.conditions."
"""Beginning of the names of the parameters of conditions."""
ROWS_BY_DATASET = f"{CONDITIONS}dataset.weight"


def set_trainable(model: MultiBranch, recipe: Recipe) -> None:
    """Freezes the encoder, or adds low-rank updates to it, following `finetune.mode`; new conditions are trained in any
    mode. Call it before optimizer and averages are created."""
    if recipe.finetune.mode == "frozen-encoder":
        model.encoder.requires_grad_(False)
    elif recipe.finetune.mode == "lora":
        add_lora(model.encoder, recipe.finetune.rank, recipe.train.seed)
    if recipe.finetune.new_conditions and model.encoder.conditions is not None:
        model.encoder.conditions.requires_grad_(True)


def rate_factor(options: FinetuneOptions, name: str) -> float:
    """Factor of the learning rate of a parameter: `old_rate` for the encoder and for branches that are trained further,
    1 for new parameters."""
    branch = branch_of(name)
    if options.new_conditions and name.startswith(CONDITIONS):
        return 1.0
    pretrained = branch is None or options.start.get(branch) == branch
    return options.old_rate if options.mode is not None and pretrained and not is_lora_weight(name) else 1.0


def read_pretrained(options: FinetuneOptions) -> Saved:
    """The model that a fine-tuning starts from.

    Raises:
        RamifyError: it no longer exists or has changed; or the recipe was not created by `ramify finetune`.
    """
    if not options.weights:
        raise RamifyError(
            f"finetune.mode: {options.mode} needs a trained model to start from",
            fix="ramify finetune MODEL RECIPE --mode MODE --run DIR",
        )
    saved = read_saved(Path(options.model), options.checkpoint)
    if saved.weights_sha256 != options.weights:
        raise RamifyError(
            f"the weights of the model in {options.model} are not those from which this run starts",
            fix="restore that model, or start a new run with `ramify finetune`",
        )
    return saved


def load_pretrained(state: State, recipe: Recipe, saved: Saved) -> None:
    """Loads the weights of `saved`, bit-identical, into the parts that this rank hosts, at step 0.

    Args:
        state: at step 0; the initial weights are marked for evaluation.
        recipe: `finetune.start` names the source of each branch.
        saved: the pretrained model.

    Raises:
        RamifyError: a part does not fit.
    """
    start = recipe.finetune.start
    named = zip(state.model.named_parameters(), state.averages.averages, strict=True)
    with torch.no_grad():
        for (name, parameter), average in named:
            source = None if is_lora_weight(name) else _source(name, start, saved)
            if name == ROWS_BY_DATASET and source is not None:
                source = _rows_by_dataset(source, saved, recipe)
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
    """The pretrained tensor from which the tensor `name` is initialised; None where its weights are random."""
    part, rest = split_name(name)
    branch = branch_of_part(part)
    if branch is None:
        return saved.weights.get(name) if name.startswith(CONDITIONS) else saved.weights[name]
    source = start.get(branch, FRESH)
    if source == FRESH:
        return None
    # a source branch without forces has neither a force head nor a unit of forces
    if rest.startswith("force") and source != branch and not _has_forces(saved.branches[source]):
        return None
    target = f"{part_of_branch(source)}.{rest}"
    if rest.startswith("labels.") and target not in saved.weights:  # the source branch was not trained on this label
        return None
    return saved.weights.get(target, torch.empty(0))


def _rows_by_dataset(rows: Tensor, saved: Saved, recipe: Recipe) -> Tensor:
    """The rows of the condition `dataset` by name; new datasets start from the mean of the old ones."""
    old = list(saved.options["datasets"])
    found = [rows[old.index(name)] if name in old else rows.mean(0) for name in recipe.model.datasets]
    return torch.stack(found)


def _has_forces(datasets: Mapping[str, DatasetInfo]) -> bool:
    return any(info.spread.forces is not None for info in datasets.values())


def _must_fit(name: str, parameter: Tensor, source: Tensor, saved: Saved) -> None:
    if parameter.shape != source.shape:
        found = tuple(source.shape) if source.numel() else "missing"
        raise RamifyError(
            f"{name} has shape {tuple(parameter.shape)}, in the model of {saved.path} it is {found}",
            fix="a dataset with other labels than those of a branch needs a branch of its own: --mode new-branch",
        )
