"""`ramify evaluate`: every branch on every dataset, exact over a whole split, on one process or on many."""

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ramify.batches.loader import SplitReader
from ramify.batches.open import check_same_data, open_split, open_stores
from ramify.checkpoint import Checkpoint, open_checkpoint
from ramify.errors import RamifyError
from ramify.evaluate import predictions_file
from ramify.evaluate.predict_split import Numbered, add_in_order, predict_batch, split_batches
from ramify.evaluate.publish import write_evaluation
from ramify.evaluate.trivial import Trivial, trivial_predictors
from ramify.labels import BUILT_IN, LABELS, STRESS, mae, rmse
from ramify.model.build import LabelSpread, build_model
from ramify.model.multibranch import MultiBranch
from ramify.parallel.launch import choose_device, detect_launcher
from ramify.parallel.layout import Layout
from ramify.parallel.rendezvous import process_group
from ramify.parallel.sync import Ranks, SingleProcess, on_all, on_rank_zero
from ramify.planning.placement import replicated
from ramify.recipe import ParallelOptions, Recipe, parse_recipe

UNITS = {name: LABELS[name].error_text for name in BUILT_IN}

Totals = dict[str, dict[str, list[Numbered]]]
"""By dataset and branch: the errors of every batch."""


def load_model(checkpoint: Checkpoint) -> tuple[Recipe, MultiBranch]:
    """The model of a checkpoint, with the weights to use; needs no store. Without branches that a fine-tuning carries
    along: they read no dataset of its recipe."""
    manifest = checkpoint.manifest
    recipe = parse_recipe(manifest["recipe"], where=f"{checkpoint.path}/manifest.json")
    model = build_model(recipe, {name: LabelSpread.of_manifest(m) for name, m in manifest["datasets"].items()})
    try:
        model.load_state_dict(checkpoint.weights(recipe.datasets_of_branches()), strict=True)
    except RuntimeError as error:
        raise RamifyError(f"checkpoint {checkpoint.path} does not fit its own recipe: {error}") from None
    return recipe, model.eval()


@contextmanager
def met(device: str = "auto") -> Iterator[Layout]:
    """The processes that a launcher (torchrun, srun, mpiexec) started together, or this one alone, each on its device.

    Args:
        device: `auto`, `cpu`, `cuda` or `xpu`.

    Raises:
        RamifyError: there is no such device, or the others do not come.
    """
    launch_env = detect_launcher()
    chosen = choose_device(device, launch_env, key="--device")
    with process_group(launch_env, chosen, ParallelOptions().timeout):
        every_rank = replicated(("all branches",), launch_env.world)
        yield Layout.alone(("all branches",), chosen) if launch_env.world == 1 else Layout.spread(every_rank, chosen)


@dataclass(frozen=True, slots=True)
class Evaluator:
    """One checkpoint on one split.

    Several processes share the batches of every split. Each batch is computed by one of them, whole, and the first
    process adds up all in the order of the split: the result does not depend on how many there are.

    Args:
        run: the run directory, which all processes see.
        split: `train`, `val` or `test`.
        which: `best`, `latest` or the name of a checkpoint folder.
        others: a recipe whose datasets are evaluated too, besides those of the run.
        device: where this process computes.
        ranks: the processes that evaluate together.
        progress: called with (dataset, branch, structures done by this process since the last call).
    """

    run: Path
    split: str = "test"
    which: str = "best"
    others: Recipe | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    ranks: Ranks = field(default_factory=SingleProcess)
    progress: Callable[[str, str, int], None] = lambda dataset, branch, structures: None

    def evaluate(self) -> dict[str, Any]:
        """Writes evaluation.json and predictions/ into the run (the first process does) and returns the former.

        Raises:
            RamifyError: no checkpoint, a missing or changed store, an empty split, or a model whose errors are not
                finite; on all processes if on one.
        """
        opened: list[_Opened] = []
        on_all(self.ranks, lambda: opened.append(self._open()))
        parts = self.run / "predictions.parts"
        on_rank_zero(self.ranks, lambda: shutil.rmtree(parts, ignore_errors=True))  # of an evaluation that was killed
        try:
            shares = on_all(self.ranks, lambda: self._share(opened[0], parts))
            return on_rank_zero(self.ranks, lambda: self._finish(opened[0], shares, parts))
        finally:
            if self.ranks.rank == 0:
                shutil.rmtree(parts, ignore_errors=True)

    def _open(self) -> "_Opened":
        checkpoint = open_checkpoint(self.run / "checkpoints" / self.which)
        recipe, model = load_model(checkpoint)
        stores = open_stores(recipe)
        check_same_data(checkpoint.manifest["datasets"], stores)
        if self.others is not None:
            stores |= {name: store for name, store in open_stores(self.others).items() if name not in stores}
        readers = open_split(recipe, stores, self.split, edge_cache=0.0)
        if empty := [name for name, reader in readers.items() if not len(reader)]:
            raise RamifyError(
                f"the {self.split} split of {', '.join(empty)} is empty",
                fix="evaluate another --split, or prepare the dataset with a larger one",
            )
        return _Opened(checkpoint, recipe, model.to(self.device), readers)

    def _share(self, opened: "_Opened", parts: Path) -> Totals:
        """Works on this process's batches: returns errors, leaves what the datasets' own branches say in `parts`."""
        totals: Totals = {}
        own, dtype = opened.recipe.branch_of_datasets(), next(opened.model.parameters()).dtype
        for dataset, reader in opened.readers.items():
            kept = []
            stated = reader.store.manifest.labels.counts
            stress = bool(stated["stress"])
            predicts_stress = dataset in own and opened.model.branch(own[dataset]).forces == "conservative"
            written = [n for n in stated if n in BUILT_IN[:2] or (stated[n] and (n != "stress" or predicts_stress))]
            by_branch = totals.setdefault(dataset, {})
            for number, indices, batch in split_batches(reader, dtype, rank=self.ranks.rank, world=self.ranks.world):
                for branch in opened.recipe.datasets_of_branches():
                    seen = predict_batch(opened.model, indices, batch, branch, self.device, stress=stress)
                    by_branch.setdefault(branch, []).append((number, seen.errors().to_dict()))
                    if own.get(dataset) == branch:
                        kept.append((number, seen))
                    self.progress(dataset, branch, len(indices))
            predictions_file.write_part(parts, dataset, self.ranks.rank, kept, written)
        return totals

    def _finish(self, opened: "_Opened", shares: Sequence[Totals], parts: Path) -> dict[str, Any]:
        """Adds up, and writes what the run keeps."""
        trivial = {dataset: trivial_predictors(reader) for dataset, reader in opened.readers.items()}
        result = {
            "split": self.split,
            "units": {name: label.error_text for name, label in LABELS.items()},
            "rows": [
                _row(branch, dataset, shares)
                for dataset in opened.readers
                for branch in opened.recipe.datasets_of_branches()
            ],
            "trivial": [_trivial_row(dataset, found) for dataset, found in trivial.items()],
            "branch_of": opened.recipe.branch_of_datasets(),
            "step": opened.checkpoint.step,
            "model": {"parameters": sum(p.numel() for p in opened.model.parameters())},
        }

        def write_predictions(folder: Path) -> None:
            for dataset in opened.recipe.datasets:
                predictions_file.merge_parts(parts, folder, opened.readers[dataset], trivial[dataset], self.ranks.world)

        write_evaluation(self.run, result, write_predictions)
        return result


@dataclass(frozen=True, slots=True)
class _Opened:
    """What an evaluation works on."""

    checkpoint: Checkpoint
    recipe: Recipe
    model: MultiBranch
    readers: Mapping[str, SplitReader]


ABSENT: dict[str, Any] = {mae(STRESS.name): None, rmse(STRESS.name): None}
"""Stated of every dataset, with stress or without."""


def _row(branch: str, dataset: str, shares: Sequence[Totals]) -> dict[str, Any]:
    """Errors of one branch on one dataset, refused where they are not numbers, which a model that diverged has."""
    errors = add_in_order(part for totals in shares for part in totals.get(dataset, {}).get(branch, ()))
    results = ABSENT | errors.results()
    if broken := [key for key, value in results.items() if isinstance(value, float) and not math.isfinite(value)]:
        raise RamifyError(
            f"branch '{branch}' predicts values that are not finite on dataset '{dataset}' ({', '.join(broken)})",
            fix="evaluate an earlier checkpoint with --checkpoint, or train again with a lower optimizer.lr",
        )
    return {"branch": branch, "dataset": dataset} | results


def _trivial_row(dataset: str, found: Trivial) -> dict[str, Any]:
    return (
        {"dataset": dataset}
        | ABSENT
        | found.errors.means()
        | {"energy_predictor": found.predictor, "energy_mae_by": found.energy_mae}
    )
