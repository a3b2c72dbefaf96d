"""`ramify evaluate`: exact errors of every branch on every dataset over a whole split, on one or many processes."""

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ramify.batches.loader import SplitReader
from ramify.batches.open import check_same_data, open_readers, open_stores
from ramify.checkpoint.checkpoint import Checkpoint, open_checkpoint
from ramify.checkpoint.pointers import checkpoint_folder
from ramify.errors import RamifyError
from ramify.evaluate import predictions_file
from ramify.evaluate.predict_split import Numbered, add_in_order, predict_batch, split_batches
from ramify.evaluate.publish import write_evaluation
from ramify.evaluate.refit import foreign_branches, refit_energies
from ramify.evaluate.trivial import Trivial, trivial_predictors
from ramify.files import json_lines
from ramify.labels import BUILT_IN, LABELS, STRESS, mae, rmse
from ramify.model.build import LabelSpread
from ramify.model.multibranch import MultiBranch
from ramify.model.restore import restore_model
from ramify.parallel.startup.launch import choose_device, detect_launcher
from ramify.parallel.startup.rendezvous import connect
from ramify.parallel.sync import on_all, on_rank_zero
from ramify.parallel.world import World
from ramify.recipe import ModelOptions, ParallelOptions, Recipe, parse_recipe
from ramify.store.manifest import Manifest, read_manifest
from ramify.store.store import Store

UNITS = {name: LABELS[name].error_text for name in BUILT_IN}

Totals = dict[str, dict[str, list[Numbered]]]
"""The errors of every batch, by dataset and branch."""


def load_model(checkpoint: Checkpoint) -> tuple[Recipe, MultiBranch]:
    """The recipe and the model of a checkpoint, with the weights for inference; needs no store. Branches that a
    fine-tuning keeps untrained are left out: they read no dataset of its recipe."""
    manifest, datasets = checkpoint.complete(), checkpoint.datasets
    recipe = parse_recipe(manifest["recipe"], where=f"{checkpoint.path}/manifest.json")
    branches = recipe.datasets_of_branches()
    spreads = {b: [LabelSpread.of_manifest(datasets[name]) for name in group] for b, group in branches.items()}
    return recipe, restore_model(
        recipe.model, spreads, checkpoint.weights(branches), recipe.train.precision, checkpoint.path
    )


@dataclass(frozen=True, slots=True)
class Subject:
    """A trained model to evaluate, and the data to evaluate it on.

    Attributes:
        network: the model with its weights.
        model: options of the model.
        branches: the datasets that each branch was trained on.
        stores: the stores of these datasets that are evaluated.
        step: number of optimizer steps taken.
    """

    network: MultiBranch
    model: ModelOptions
    branches: Mapping[str, Sequence[str]]
    stores: Mapping[str, Store]
    step: int

    @property
    def branch_of(self) -> dict[str, str]:
        """The branch that reads each dataset."""
        return {dataset: branch for branch, group in self.branches.items() for dataset in group}


def subject_of_run(run: Path, which: str, stores: Path | None = None) -> Subject:
    """A checkpoint of a run, and the stores that the run was trained on.

    Args:
        run: the run directory.
        which: `best`, `latest` or the name of a checkpoint folder.
        stores: the folder of its stores; None for the folder named in the recipe, relative to the working directory, to
            a parent folder of the run, or to the folder in which it was trained, so that a run can be evaluated from
            any working directory.

    Raises:
        RamifyError: there is no checkpoint, or a store is missing or has changed.
    """
    checkpoint = open_checkpoint(checkpoint_folder(run, which))
    recipe, network = load_model(checkpoint)
    folder = stores or _folder_of_stores(recipe, run, checkpoint.datasets)
    found = open_stores(recipe.model_copy(update={"stores": str(folder)}))
    check_same_data(checkpoint.datasets, found)
    return Subject(network, recipe.model, recipe.datasets_of_branches(), found, checkpoint.step)


def _folder_of_stores(recipe: Recipe, run: Path, trained: Mapping[str, Manifest]) -> Path:
    """The first folder that contains the training data, or else any store of each dataset."""
    named = Path(recipe.stores)
    bases = [*run.resolve().parents, *_working_directories(run)]
    folders = [named] if named.is_absolute() else [named, *(base / named for base in bases)]
    whole = [
        folder for folder in folders if all((folder / name / "manifest.json").is_file() for name in recipe.datasets)
    ]
    for folder in whole:
        with suppress(RamifyError):  # a store of another version, or a damaged one
            now = {name: read_manifest(folder / name) for name in recipe.datasets}
            if all(now[name].columns == trained[name].columns for name in recipe.datasets):
                return folder
    return whole[0] if whole else named


def _working_directories(run: Path) -> list[Path]:
    """Those of the run's sessions (sessions.jsonl), newest first; lines of earlier programs do not say."""
    file = run / "sessions.jsonl"
    folders = [line.get("folder") for line in json_lines(file.read_bytes())[::-1]] if file.is_file() else []
    kept = [f for f in folders if isinstance(f, str) and f.startswith("/") and "\0" not in f]
    return [Path(folder) for folder in dict.fromkeys(kept)]


@contextmanager
def joined_ranks(device: str = "auto") -> Iterator[World]:
    """The processes started together by a launcher (torchrun, srun, mpiexec), or this process, each on its device.

    Args:
        device: `auto`, `cpu`, `cuda` or `xpu`.

    Raises:
        RamifyError: there is no such device, or another process does not connect or is lost.
    """
    launch_env = detect_launcher()
    chosen = choose_device(device, launch_env, key="--device")
    with connect(launch_env, chosen, ParallelOptions().timeout) as world:
        yield world


@dataclass(frozen=True, slots=True)
class Evaluator:
    """Evaluates one checkpoint on one split.

    The batches of every split are distributed over the processes. Each batch is computed by one process, and rank zero
    adds the sums of all batches in the order of the split: the result does not depend on the number of processes.

    Args:
        run: the run directory, on a file system shared by all processes.
        split: `train`, `val` or `test`.
        which: `best`, `latest` or the name of a checkpoint folder.
        others: a recipe whose datasets are evaluated in addition to those of the run.
        stores: the folder of the stores of the run; None to find it, see `subject_of_run`.
        subject: opens another model and its data instead of a checkpoint of the run; then nothing is written.
        device: the device of this process.
        ranks: the processes that evaluate together.
        refit: also measure the energy errors on the datasets of `others` after their references were fitted again, see
            `ramify.evaluate.refit`.
        progress: called with (dataset, branch, structures completed by this process since the last call).
    """

    run: Path
    split: str = "test"
    which: str = "best"
    others: Recipe | None = None
    stores: Path | None = None
    subject: Callable[[], Subject] | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    ranks: World = field(default_factory=World)
    refit: bool = False
    progress: Callable[[str, str, int], None] = lambda dataset, branch, structures: None

    def evaluate(self) -> dict[str, Any]:
        """Writes evaluation.json and predictions/ into the run (on rank zero) and returns the content of the former.

        Raises:
            RamifyError: on all processes: there is no checkpoint, a store is missing or has changed, a split is empty,
                or the errors of the model are not finite.
        """
        opened: list[_Opened] = []
        on_all(self.ranks, lambda: opened.append(self._open()))
        parts = None if self.subject is not None else self.run / "predictions.parts"
        on_rank_zero(self.ranks, lambda: _remove(parts))  # left by an evaluation that was killed
        try:
            totals = on_all(self.ranks, lambda: self._evaluate_assigned(opened[0], parts))
            refitted = self._refit(opened[0]) if self.refit else {}
            return on_rank_zero(self.ranks, lambda: self._finish(opened[0], totals, refitted, parts))
        finally:
            if self.ranks.rank == 0:
                _remove(parts)

    def _open(self) -> "_Opened":
        subject = self.subject() if self.subject else subject_of_run(self.run, self.which, self.stores)
        stores = dict(subject.stores)
        if self.others is not None:
            stores |= {name: store for name, store in open_stores(self.others).items() if name not in stores}
        readers = open_readers(subject.model, subject.branches, stores, self.split, edge_cache=0.0)
        if empty := [name for name, reader in readers.items() if not len(reader)]:
            raise RamifyError(
                f"the {self.split} split of {', '.join(empty)} is empty",
                fix="evaluate another --split, or prepare the dataset with a larger one",
            )
        return _Opened(subject, subject.network.to(self.device), readers)

    def _evaluate_assigned(self, opened: "_Opened", parts: Path | None) -> Totals:
        """Evaluates the batches of this process: returns errors, writes predictions to `parts`."""
        totals: Totals = {}
        own, dtype = opened.subject.branch_of, next(opened.model.parameters()).dtype
        for dataset, reader in opened.readers.items():
            kept = []
            stated = reader.store.manifest.labels.counts
            stress = bool(stated["stress"])
            predicts_stress = dataset in own and opened.model.branch(own[dataset]).forces == "conservative"
            written = [n for n in stated if n in BUILT_IN[:2] or (stated[n] and (n != "stress" or predicts_stress))]
            by_branch = totals.setdefault(dataset, {})
            for number, indices, batch in split_batches(reader, dtype, rank=self.ranks.rank, world=self.ranks.size):
                for branch in opened.subject.branches:
                    seen = predict_batch(opened.model, indices, batch, branch, self.device, stress=stress)
                    by_branch.setdefault(branch, []).append((number, seen.errors().to_dict()))
                    if parts is not None and own.get(dataset) == branch:
                        kept.append((number, seen))
                    self.progress(dataset, branch, len(indices))
            if parts is not None:
                predictions_file.write_part(parts, dataset, self.ranks.rank, kept, written)
        return totals

    def _refit(self, opened: "_Opened") -> Mapping[tuple[str, str], Mapping[str, Any]]:
        """Energy errors on datasets that no branch was trained on, by branch and dataset."""
        subject = opened.subject
        foreign = foreign_branches(subject.branches, opened.readers)
        stores = {name: opened.readers[name].store for name in foreign}
        train = open_readers(subject.model, subject.branches, stores, "train", edge_cache=0.0)
        return refit_energies(opened.model, train, opened.readers, foreign, self.ranks, self.device, self.progress)

    def _finish(
        self,
        opened: "_Opened",
        by_rank: Sequence[Totals],
        refitted: Mapping[tuple[str, str], Mapping[str, Any]],
        parts: Path | None,
    ) -> dict[str, Any]:
        """Adds the errors of all processes and writes the results into the run."""
        trivial = {dataset: trivial_predictors(reader) for dataset, reader in opened.readers.items()}
        pairs = [(branch, name) for name in opened.readers for branch in opened.subject.branches]
        result = {
            "split": self.split,
            "units": {name: label.error_text for name, label in LABELS.items()},
            "rows": [_row(*pair, by_rank) | dict(refitted.get(pair, {})) for pair in pairs],
            "trivial": [_trivial_row(dataset, found) for dataset, found in trivial.items()],
            "branch_of": opened.subject.branch_of,
            "step": opened.subject.step,
            "model": {"parameters": sum(p.numel() for p in opened.model.parameters())},
        }
        if parts is None:
            return result

        def write_predictions(folder: Path) -> None:
            for dataset in opened.subject.stores:
                predictions_file.merge_parts(parts, folder, opened.readers[dataset], trivial[dataset], self.ranks.size)

        write_evaluation(self.run, result, write_predictions)
        return result


@dataclass(frozen=True, slots=True)
class _Opened:
    """Model and data of an evaluation."""

    subject: Subject
    model: MultiBranch
    readers: Mapping[str, SplitReader]


def _remove(folder: Path | None) -> None:
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


ABSENT: dict[str, Any] = {mae(STRESS.name): None, rmse(STRESS.name): None}
"""Entries that every dataset has, with or without stress labels."""


def _row(branch: str, dataset: str, by_rank: Sequence[Totals]) -> dict[str, Any]:
    """Errors of one branch on one dataset; an error if they are not finite, as those of a model that diverged."""
    errors = add_in_order(part for totals in by_rank for part in totals.get(dataset, {}).get(branch, ()))
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
