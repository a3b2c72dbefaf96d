"""A trained model read from disk: one form for run directories, checkpoints and exports."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ramify.checkpoint.checkpoint import Checkpoint, open_checkpoint
from ramify.checkpoint.pointers import checkpoint_folder
from ramify.errors import RamifyWarning
from ramify.evaluate.publish import ERRORS, evaluation_folder
from ramify.evaluate.results import Evaluation
from ramify.files import read_json
from ramify.inference.branches import DatasetInfo
from ramify.model.build import LabelSpread
from ramify.model.multibranch import MultiBranch
from ramify.model.parts import ENCODER, checksum, checksums_of_parts, part_of
from ramify.model.restore import must_fit, restore_model
from ramify.recipe import ModelOptions
from ramify.uncertainty.error_bars import FILE as UNCERTAINTY
from ramify.uncertainty.error_bars import ErrorBars
from ramify.untrusted import has_file, parsed

ROUTER = "router.safetensors"
"""File of the router in a run or an export (`ramify.route`)."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A saved model; it can be used without its training data.

    Attributes:
        path: the folder it was read from.
        options: options of encoder and heads, the `model` of a recipe.
        precision: precision of the training (`fp32`, `fp64`, `bf16`, `tf32`).
        branches: the datasets that each branch was trained on.
        weights: tensors under the names of a `MultiBranch`.
        recipe: recipe of the training, as plain data.
        step: number of optimizer steps taken.
        evaluation: `evaluation.json` of this checkpoint; None if it was not evaluated.
        ramify: version that trained it.
        router: file of the router; None if none was fitted.
        uncertainty: file of the error bars; None if none were calibrated.
    """

    path: Path
    options: Mapping[str, Any]
    precision: str
    branches: Mapping[str, Mapping[str, DatasetInfo]]
    weights: Mapping[str, Tensor]
    recipe: Mapping[str, Any]
    step: int
    evaluation: Mapping[str, Any] | None
    ramify: str
    router: Path | None = None
    uncertainty: Path | None = None

    @property
    def weights_sha256(self) -> str:
        """Checksum of all weights and their names."""
        return checksum(self.weights)

    @property
    def encoder_sha256(self) -> str:
        """Checksum of the weights of the encoder."""
        return checksum({name: tensor for name, tensor in self.weights.items() if part_of(name) == ENCODER})

    def error_bars(self) -> ErrorBars | None:
        """The error bars; None if none were calibrated for these weights.

        Raises:
            RamifyError: the file is damaged.

        Warns:
            RamifyWarning: there are error bars, of other weights.
        """
        if self.uncertainty is None:
            return None
        found = ErrorBars.read(self.uncertainty)
        if found.fits(checksums_of_parts(self.weights)):
            return found
        why = f"{self.uncertainty} belongs to other weights than those of {self.path}: predictions have no error bars"
        warnings.warn(f"{why} (ramify calibrate)", RamifyWarning, stacklevel=3)
        return None

    def build(self) -> tuple[ModelOptions, MultiBranch]:
        """The options with all defaults, and the network with its weights.

        Raises:
            RamifyError: this version does not know the options, or the weights do not fit them.
        """
        options, spreads = self._shape()
        network = restore_model(options, spreads, self.weights, self.precision, self.path)
        return options, network.requires_grad_(False)

    def must_fit(self) -> None:
        """Compares the weights with the options before a network is built.

        Raises:
            RamifyError: they do not fit.
        """
        must_fit(*self._shape(), self.weights, self.path)

    def _shape(self) -> tuple[ModelOptions, dict[str, list[LabelSpread]]]:
        """The arguments of the network's constructor: its options and the spreads of each branch."""
        options = parsed(ModelOptions, dict(self.options), self.path / "manifest.json", at="model.")
        return options, {branch: [info.spread for info in group.values()] for branch, group in self.branches.items()}


def options_of(content: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Options of encoder and heads with all defaults, from the entry `model` of `file`.

    Raises:
        RamifyError: this version does not know the options.
    """
    return parsed(ModelOptions, dict(content), file, at="model.").model_dump(mode="json")


def read_run(path: Path, which: str) -> Saved:
    """Reads a checkpoint of a run directory: `best`, `latest` or the folder name of a step.

    Raises:
        RamifyError: the checkpoint is missing or damaged.
    """
    checkpoint = open_checkpoint(checkpoint_folder(path, which))
    evaluation, folder = None, evaluation_folder(path)
    if has_file(folder, ERRORS):
        content = read_json(folder / ERRORS)
        found = parsed(Evaluation, content, folder / ERRORS, fix=f"ramify evaluate {path}")
        evaluation = content if found.step == checkpoint.step else None
    router, bars = (path / name if has_file(path, name) else None for name in (ROUTER, UNCERTAINTY))
    return replace(read_checkpoint(checkpoint, evaluation), router=router, uncertainty=bars)


def read_checkpoint(checkpoint: Checkpoint, evaluation: Mapping[str, Any] | None = None) -> Saved:
    """Reads the weights for inference of a checkpoint, and the facts about its datasets."""
    manifest, datasets = checkpoint.complete(), checkpoint.datasets
    file = checkpoint.path / "manifest.json"
    options = options_of(manifest["recipe"]["model"], file)
    conditions = options.get("conditions", ())
    branches: dict[str, dict[str, DatasetInfo]] = {}
    for dataset, branch in manifest["branch_of"].items():
        info = DatasetInfo.of_manifest(dataset, datasets[dataset], conditions)
        branches.setdefault(branch, {})[dataset] = info
    for branch, group in manifest.get("carried", {}).items():  # kept untrained by a fine-tuning
        others = {name: DatasetInfo.from_dict(name, content, file) for name, content in group.items()}
        branches[branch] = others | branches.get(branch, {})
    recipe = manifest["recipe"]
    return Saved(
        path=checkpoint.path,
        options=options,
        precision=recipe["train"]["precision"],
        branches=branches,
        weights=checkpoint.weights(),
        recipe=recipe,
        step=checkpoint.step,
        evaluation=evaluation,
        ramify=manifest["ramify"],
    )
