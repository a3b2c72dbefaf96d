"""The complete state of a run, saved to checkpoints and restored from them.

Checkpoints do not depend on ranks: the owner of each part writes it unsharded, and all its hosts read it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ramify.batches.sampler import BatchSampler
from ramify.checkpoint.checkpoint import Checkpoint, save_checkpoint
from ramify.errors import RamifyError
from ramify.model.lora import is_lora_weight, merge_lora
from ramify.model.multibranch import MultiBranch
from ramify.model.parts import branch_of, of_branches
from ramify.parallel.layout import Layout
from ramify.parallel.sharded_tensors import distribute_like, full_tensor
from ramify.recipe import Recipe
from ramify.run.changes import Changes
from ramify.store.manifest import Manifest
from ramify.train.optimization.optimizer import AveragedWeights
from ramify.train.optimization.schedules import Schedule

MOMENTS = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")
"""Optimizer state of a parameter, under PyTorch's names: the first three of AdamW, the last of Muon. Parameters have
their own `step`: a step without structures of a branch does not update it."""


AVERAGE = "average"
"""Suffix of the averaged low-rank updates, which are kept besides the updates: the final weights have them merged."""


@dataclass
class TrainingProgress:
    """Counters of a run, kept in the checkpoint's manifest; the same on all ranks.

    Attributes:
        step: number of optimizer steps.
        evaluated: last step after which the validation splits were evaluated; -1 where the initial weights are to be
            evaluated before any step.
        best: lowest validation metric so far, reached at `best_step`.
        waited: number of evaluations since then.
        seconds: training time over all sessions of the run.
        born: first step of each branch that was added to the run later.
        paced_at: step of the last change of the number of steps per epoch; `epochs` were complete then.
    """

    step: int = 0
    evaluated: int = 0
    best: float = math.inf
    best_step: int = 0
    waited: int = 0
    seconds: float = 0.0
    born: dict[str, int] = field(default_factory=dict)
    paced_at: int = 0
    epochs: float = 0.0

    def epoch(self, steps_per_epoch: float) -> float:
        """Passes over the data so far; an epoch has `steps_per_epoch` steps now."""
        return self.epochs + (self.step - self.paced_at) / steps_per_epoch


@dataclass
class Carried:
    """Unchanged parts of the pretrained model: the branches that the run does not train, and the metadata of datasets
    that its branches were trained on before. Only rank zero has the weights.

    Attributes:
        weights: under the names of a `MultiBranch`.
        datasets: by branch and dataset, `DatasetInfo.to_dict`.
    """

    weights: dict[str, Tensor] = field(default_factory=dict)
    datasets: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)


@dataclass(frozen=True)
class State:
    """The state of a run on one rank."""

    layout: Layout
    model: MultiBranch
    optimizer: torch.optim.Optimizer
    averages: AveragedWeights
    schedule: Schedule
    sampler: BatchSampler
    progress: TrainingProgress
    carried: Carried = field(default_factory=Carried)

    def save(
        self,
        folder: Path,
        recipe: Recipe,
        data: Mapping[str, Manifest],
        *,
        best: bool,
        permit: Callable[[], None] = lambda: None,
    ) -> None:
        """Writes the state after the current step as a checkpoint; all ranks must call it.

        Args:
            folder: the run's `checkpoints`.
            recipe: of the run.
            data: manifests of all its stores, by dataset.
            best: whether the averaged weights are the best so far.
            permit: see `save_checkpoint`.

        Raises:
            RamifyError: on all ranks, as `save_checkpoint`.
        """
        weights: dict[str, Tensor] = {}
        training: dict[str, Tensor] = {}
        weights |= {name: buffer for name, buffer in self.buffers().items() if self._owns(name)}
        for (name, parameter), average in zip(self.model.named_parameters(), self.averages.averages, strict=True):
            whole_average, whole_parameter = full_tensor(average), full_tensor(parameter)
            state = self.optimizer.state.get(parameter, {})
            moments = {f"{name}/{moment}": full_tensor(state[moment]) for moment in MOMENTS if moment in state}
            if self._owns(name):
                weights[name] = whole_average
                training |= {name: whole_parameter} | moments
                if is_lora_weight(name):
                    training[f"{name}/{AVERAGE}"] = whole_average
        about = {
            "recipe": recipe.model_dump(mode="json"),
            "datasets": {name: manifest.to_json() for name, manifest in data.items()},
            "branch_of": recipe.branch_of_datasets(),
            "carried": self.carried.datasets,
            "trainer": {
                "progress": {k: v for k, v in vars(self.progress).items() if v != math.inf},
                "schedule": {k: v for k, v in self.schedule.state().items() if v != math.inf},
                "positions": self.sampler.position(self.progress.step),
            },
        }
        weights = merge_lora(weights)
        if self.layout.is_rank_zero:
            weights |= self.carried.weights
        step = self.progress.step
        save_checkpoint(folder, step, weights, training, about, best=best, ranks=self.layout, permit=permit)

    def restore(self, checkpoint: Checkpoint, changes: Changes | None = None) -> None:
        """Restores the state from `checkpoint`, bit-identical.

        Branches that are not in it keep their initial weights. With other datasets, the best metric is reset, because
        it is a mean over datasets.

        Args:
            checkpoint: of any placement.
            changes: since it was written; None if there are none.

        Raises:
            RamifyError: a file is damaged, or a part does not fit the model. On this rank alone.
        """
        found = [name for name in self.layout.hosted if name in checkpoint.branches]
        self._load_tensors(checkpoint, checkpoint.weights(found), checkpoint.training(found))
        trainer = checkpoint.complete()["trainer"]
        # checkpoints of 0.1 do not contain `evaluated`: an evaluation that was due had been done
        for key, value in ({"evaluated": checkpoint.step} | trainer["progress"]).items():
            setattr(self.progress, key, value)
        self.schedule.restore({"best": math.inf} | trainer["schedule"])
        if "positions" in trainer:  # missing in checkpoints of 0.1, whose datasets cannot have changed
            self.sampler.start_at(self.progress.step, trainer["positions"])
        if changes is not None:
            self._apply_changes(changes)
        self._register_new_branches(checkpoint)
        self.carried.datasets = checkpoint.manifest.get("carried", {})
        others = [branch for branch in self.carried.datasets if branch not in self.layout.placement.hosts]
        if self.layout.is_rank_zero and others:
            self.carried.weights = of_branches(checkpoint.weights(others), others)

    def _apply_changes(self, changes: Changes) -> None:
        """Adapts progress and schedule to another recipe."""
        progress, schedule, keys = self.progress, self.schedule, changes.keys
        if "train.batch" in keys:
            before, now = keys["train.batch"]
            progress.epochs = progress.epoch(self.sampler.steps_per_epoch * now / before)
            progress.paced_at = progress.step
        if changes.of_training:
            progress.waited = 0
        if "schedule.start" in keys:
            schedule.restore({"factor": 1.0, "waited": 0, "best": math.inf})
        stress = [bool(weight) for weight in keys.get("objective.stress", ())]
        if changes.of_data or len(set(stress)) > 1:  # the metric is a mean over trained datasets and labels
            progress.best, progress.best_step, progress.waited = math.inf, 0, 0
            schedule.restore(schedule.state() | {"best": math.inf, "waited": 0})

    def _load_tensors(
        self, checkpoint: Checkpoint, weights: Mapping[str, Tensor], training: Mapping[str, Tensor]
    ) -> None:
        available = (None, *checkpoint.branches)
        named = zip(self.model.named_parameters(), self.averages.averages, strict=True)
        parameters = [(name, p, average) for (name, p), average in named if branch_of(name) in available]
        buffers = {name: buffer for name, buffer in self.buffers().items() if branch_of(name) in available}
        expected = {name: p.shape for name, p, _ in parameters if not is_lora_weight(name)}
        expected |= {name: b.shape for name, b in buffers.items()}
        _must_fit(checkpoint, expected, weights)
        with torch.no_grad():
            for name, buffer in buffers.items():
                buffer.copy_(weights[name])
            for name, parameter, average in parameters:
                parameter.copy_(distribute_like(parameter, training[name]))
                if self.averages.decay:  # else they are the parameters themselves
                    average.copy_(distribute_like(average, _average_of(name, parameter, weights, training)))
                moments = {m: training[f"{name}/{m}"] for m in MOMENTS if f"{name}/{m}" in training}
                if moments:
                    kept = {m: t if m == "step" else t.to(parameter.dtype) for m, t in moments.items()}
                    self.optimizer.state[parameter] = {m: distribute_like(parameter, t) for m, t in kept.items()}

    def _register_new_branches(self, checkpoint: Checkpoint) -> None:
        """Records the first step of new branches: the decay of their averages starts low from there, so that the random
        initial weights lose their influence."""
        for branch in self.layout.placement.hosts:
            if branch not in checkpoint.branches:
                self.progress.born[branch] = self.progress.step
        for branch, step in self.progress.born.items():
            if branch in self.layout.hosted:
                self.averages.start_at(self.model.branch(branch).parameters(), step)

    def buffers(self) -> dict[str, Tensor]:
        """The buffers of the model: the units of its heads."""
        parameters = {name for name, _ in self.model.named_parameters()}
        return {name: tensor for name, tensor in self.model.state_dict().items() if name not in parameters}

    def _owns(self, name: str) -> bool:
        """Whether this rank writes the tensor `name`: rank zero writes the encoder, owners write their branches."""
        branch = branch_of(name)
        return self.layout.is_rank_zero if branch is None else self.layout.owns(branch)


def _average_of(name: str, parameter: Tensor, weights: Mapping[str, Tensor], training: Mapping[str, Tensor]) -> Tensor:
    """The averaged weight of a parameter. The stored weights differ from it where low-rank updates are merged."""
    if is_lora_weight(name):
        return training[f"{name}/{AVERAGE}"]
    return weights[name] if parameter.requires_grad else training[name]


def _must_fit(checkpoint: Checkpoint, expected: Mapping[str, torch.Size], found: Mapping[str, Tensor]) -> None:
    """Compares names and shapes."""
    wrong = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    wrong += [f"{name} is not in the model" for name in sorted(found.keys() - expected.keys())]
    wrong += [
        f"{name} is {tuple(found[name].shape)} instead of {tuple(shape)}"
        for name, shape in expected.items()
        if name in found and found[name].shape != shape
    ]
    if wrong:
        raise RamifyError(
            f"checkpoint {checkpoint.path} does not fit the model of the recipe: {wrong[0]}"
            + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""),
            fix="a dataset whose labels differ from those of a branch needs a branch of its own; else start a new run",
        )
