"""`ramify evaluate`: every branch on every dataset, exact over a whole split."""

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ramify.checkpoint import Checkpoint, open_checkpoint
from ramify.data.loader import SplitReader
from ramify.data.open import check_same_data, open_split, open_stores
from ramify.errors import RamifyError
from ramify.evaluate.exact import predict_split, split_errors, trivial_errors
from ramify.files import whole_folder, write_json
from ramify.model.build import Spread, build_model
from ramify.model.multibranch import MultiBranch
from ramify.recipe import Recipe, parse_recipe

UNITS = {"energy": "eV/atom after the dataset's reference energies", "forces": "eV/Å per component"}


def load_model(checkpoint: Checkpoint) -> tuple[Recipe, MultiBranch]:
    """The model of a checkpoint, with the weights to use; needs no store."""
    manifest = checkpoint.manifest
    recipe = parse_recipe(manifest["recipe"], where=f"{checkpoint.path}/manifest.json")
    model = build_model(recipe, {name: Spread.of_manifest(m) for name, m in manifest["datasets"].items()})
    try:
        model.load_state_dict(checkpoint.weights(), strict=True)
    except RuntimeError as error:
        raise RamifyError(f"checkpoint {checkpoint.path} does not fit its own recipe: {error}") from None
    return recipe, model.eval()


@dataclass(frozen=True, slots=True)
class Evaluator:
    """One checkpoint on one split.

    Args:
        run: the run directory.
        split: `train`, `val` or `test`.
        which: `best`, `latest` or the name of a checkpoint folder.
        others: a recipe whose datasets are evaluated too, besides those of the run.
        progress: called with (dataset, branch, structures done since the last call).
    """

    run: Path
    split: str = "test"
    which: str = "best"
    others: Recipe | None = None
    progress: Callable[[str, str, int], None] = lambda dataset, branch, structures: None

    def evaluate(self) -> dict[str, Any]:
        """Writes evaluation.json and predictions/ into the run and returns the former.

        Raises:
            RamifyError: no checkpoint, a missing or changed store, or an empty split.
        """
        checkpoint = open_checkpoint(self.run / "checkpoints" / self.which)
        recipe, model = load_model(checkpoint)
        readers = self._open(recipe, checkpoint)
        dtype = next(model.parameters()).dtype
        rows, trivial = [], []
        for dataset, reader in readers.items():
            for branch in recipe.datasets_of_branches():

                def report(structures: int, dataset: str = dataset, branch: str = branch) -> None:
                    self.progress(dataset, branch, structures)

                errors = split_errors(model, reader, branch, torch.device("cpu"), dtype, report)
                rows.append({"branch": branch, "dataset": dataset} | _finite(errors.results(), branch, dataset))
            found = trivial_errors(reader, dtype).results()
            trivial.append({"dataset": dataset} | {k: v for k, v in found.items() if k not in ("structures", "atoms")})
        result = {
            "split": self.split,
            "units": UNITS,
            "rows": rows,
            "trivial": trivial,
            "branch_of": recipe.branch_of_datasets(),
            "step": checkpoint.step,
            "model": {"parameters": sum(p.numel() for p in model.parameters())},
        }
        own = {name: reader for name, reader in readers.items() if name in recipe.datasets}
        self._keep_predictions(model, own, recipe.branch_of_datasets(), dtype)
        write_json(self.run / "evaluation.json", result)
        return result

    def _open(self, recipe: Recipe, checkpoint: Checkpoint) -> dict[str, SplitReader]:
        stores = open_stores(recipe)
        check_same_data(checkpoint.manifest["datasets"], stores)
        if self.others is not None:
            stores |= {name: store for name, store in open_stores(self.others).items() if name not in stores}
        readers = open_split(recipe, stores, self.split)
        if empty := [name for name, reader in readers.items() if not len(reader)]:
            raise RamifyError(
                f"the {self.split} split of {', '.join(empty)} is empty",
                fix="evaluate another --split, or prepare the dataset with a larger one",
            )
        return readers

    def _keep_predictions(
        self, model: MultiBranch, readers: Mapping[str, SplitReader], branch_of: Mapping[str, str], dtype: torch.dtype
    ) -> None:
        """predictions/DATASET.npz: what the dataset's own branch says, beside the labels."""
        folder = self.run / "predictions"
        shutil.rmtree(self.run / "predictions.new", ignore_errors=True)  # of an evaluation that was killed
        with whole_folder(self.run / "predictions.new") as partial:
            for dataset, reader in readers.items():
                seen = list(predict_split(model, reader, branch_of[dataset], torch.device("cpu"), dtype))
                structures = reader.store.take(np.arange(reader.rows.start, reader.rows.stop))
                np.savez_compressed(
                    partial / f"{dataset}.npz",
                    energy_true=np.concatenate([s.energy_label for s in seen]),
                    energy_predicted=np.concatenate([s.energy for s in seen]),
                    forces_true=np.concatenate([s.forces_label for s in seen]).astype(np.float32),
                    forces_predicted=np.concatenate([s.forces for s in seen]).astype(np.float32),
                    n_atoms=structures.n_atoms,
                    numbers=structures.numbers,
                    names=np.array([structures.name(i) for i in range(len(structures))]),
                )
        _replace_folder(self.run / "predictions.new", folder)


def _finite(results: dict[str, Any], branch: str, dataset: str) -> dict[str, Any]:
    """Refuses errors that are not numbers, which a model that diverged has."""
    if broken := [key for key, value in results.items() if isinstance(value, float) and not math.isfinite(value)]:
        raise RamifyError(
            f"branch '{branch}' predicts values that are not finite on dataset '{dataset}' ({', '.join(broken)})",
            fix="evaluate an earlier checkpoint with --checkpoint, or train again with a lower optimizer.lr",
        )
    return results


def _replace_folder(new: Path, old: Path) -> None:
    if old.exists():
        shutil.rmtree(old)
    new.rename(old)
