"""A trained model as it lies on disk: a run directory, a checkpoint or an export, read into one form."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ramify.checkpoint.checkpoint import Checkpoint, open_checkpoint
from ramify.checkpoint.pointers import read_pointers, resolve, step_folders
from ramify.errors import RamifyError
from ramify.evaluate.publish import ERRORS, evaluation_folder
from ramify.evaluate.results import Evaluation
from ramify.files import read_json
from ramify.inference.branches import DatasetInfo
from ramify.model.build import LabelSpread
from ramify.model.multibranch import MultiBranch
from ramify.model.parts import ENCODER, part_of
from ramify.model.restore import must_fit, restore_model
from ramify.recipe import ModelOptions
from ramify.untrusted import has_file, is_name, parsed

ROUTER = "router.safetensors"
"""The file of a run or an export that tells which branch suits a structure (`ramify.route`)."""


@dataclass(frozen=True, slots=True)
class Saved:
    """All that is needed to use a model, without its training data.

    Attributes:
        path: where it was read from.
        options: encoder and heads, the `model` of a recipe.
        precision: it was trained in (`fp32`, `fp64`, `bf16`, `tf32`).
        branches: the datasets that each branch read.
        weights: under the names of a `MultiBranch`.
        recipe: it was trained by, as plain data; for people to read.
        step: optimizer steps taken.
        evaluation: `evaluation.json` of this very checkpoint, None where it was not evaluated.
        ramify: version that trained it.
        router: file that tells which branch suits a structure; None where none was fitted.
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

    @property
    def weights_sha256(self) -> str:
        """Checksum of all weights and their names."""
        return _checksum(self.weights)

    @property
    def encoder_sha256(self) -> str:
        """The same of the encoder alone."""
        return _checksum({name: tensor for name, tensor in self.weights.items() if part_of(name) == ENCODER})

    def build(self) -> tuple[ModelOptions, MultiBranch]:
        """The options, every default filled in, and the network with its weights.

        Raises:
            RamifyError: options that this version does not know, or weights that do not fit them.
        """
        options, spreads = self._shape()
        network = restore_model(options, spreads, self.weights, self.precision, self.path)
        return options, network.requires_grad_(False)

    def must_fit(self) -> None:
        """Compares the weights with the options, before anything is made of either.

        Raises:
            RamifyError: they do not belong to each other.
        """
        must_fit(*self._shape(), self.weights, self.path)

    def _shape(self) -> tuple[ModelOptions, dict[str, list[LabelSpread]]]:
        """What a network is built from."""
        options = parsed(ModelOptions, dict(self.options), self.path / "manifest.json", at="model.")
        return options, {branch: [info.spread for info in group.values()] for branch, group in self.branches.items()}


def _checksum(weights: Mapping[str, Tensor]) -> str:
    total = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        total.update(name.encode())
        total.update(tensor.cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def options_of(content: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Encoder and heads, every default filled in, from what `file` says under `model`.

    Raises:
        RamifyError: this version does not know such a model.
    """
    return parsed(ModelOptions, dict(content), file, at="model.").model_dump(mode="json")


def read_run(path: Path, which: str) -> Saved:
    """A checkpoint of a run directory: `best`, `latest` or a step's folder name.

    Raises:
        RamifyError: it has no such checkpoint, or a damaged one.
    """
    checkpoints = path / "checkpoints"
    if not is_name(which):  # a recipe that names the model it started from may come from elsewhere
        raise RamifyError(f"'{which}' is not a checkpoint of a run", fix="name best, latest or step-XXXXXXXX")
    if not (resolve(checkpoints / which) / "manifest.json").is_file():
        steps = step_folders(checkpoints)
        there = sorted([*(read_pointers(checkpoints) if steps else ()), *(p.name for p in steps)])
        raise RamifyError(
            f"run {path} has no checkpoint '{which}'",
            fix=f"name one of: {', '.join(there)}" if there else f"train it first: ramify train --resume {path}",
        )
    checkpoint = open_checkpoint(checkpoints / which)
    evaluation, folder = None, evaluation_folder(path)
    if has_file(folder, ERRORS):
        content = read_json(folder / ERRORS)
        found = parsed(Evaluation, content, folder / ERRORS, fix=f"ramify evaluate {path}")
        evaluation = content if found.step == checkpoint.step else None
    router = path / ROUTER if has_file(path, ROUTER) else None
    return replace(read_checkpoint(checkpoint, evaluation), router=router)


def read_checkpoint(checkpoint: Checkpoint, evaluation: Mapping[str, Any] | None = None) -> Saved:
    """The weights to use of a checkpoint, and all it says of its datasets."""
    manifest, datasets = checkpoint.complete(), checkpoint.datasets
    file = checkpoint.path / "manifest.json"
    branches: dict[str, dict[str, DatasetInfo]] = {}
    for dataset, branch in manifest["branch_of"].items():
        info = DatasetInfo.of_manifest(dataset, datasets[dataset])
        branches.setdefault(branch, {})[dataset] = info
    for branch, group in manifest.get("carried", {}).items():  # by a fine-tuning, from the model it started from
        others = {name: DatasetInfo.from_dict(name, content, file) for name, content in group.items()}
        branches[branch] = others | branches.get(branch, {})
    recipe = manifest["recipe"]
    return Saved(
        path=checkpoint.path,
        options=options_of(recipe["model"], file),
        precision=recipe["train"]["precision"],
        branches=branches,
        weights=checkpoint.weights(),
        recipe=recipe,
        step=checkpoint.step,
        evaluation=evaluation,
        ramify=manifest["ramify"],
    )
