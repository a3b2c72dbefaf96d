"""Reference energies of a dataset fitted again to a model that was not trained on it.

The energies of a model are relative to its own reference energies, which say nothing about another dataset with another
level of theory. Here one energy per element is added to the predictions of a branch: the least-squares fit of label
minus prediction on the training split of the dataset, with the same `reference_ridge` as its references. The remaining
error is the error of the model itself.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ramify.batches.loader import SplitReader
from ramify.evaluate.metrics import Errors
from ramify.evaluate.predict_split import ATOMS_AT_ONCE, predict_batch
from ramify.labels import mae, rmse
from ramify.model.multibranch import MultiBranch
from ramify.parallel.sync import on_all
from ramify.parallel.world import World
from ramify.references import fit_references

FITTED_STRUCTURES = 20_000
"""Structures of a training split on which references are fitted again: every k-th batch of larger splits. One number
per element needs no more."""

PREFIX = "refitted_"
"""Prefix of these errors in `evaluation.json`: `refitted_energy_mae`, `refitted_energy_rmse`."""

Batches = list[dict[str, Any]]
"""Plain data of batches: number in the split, sizes and numbers of the structures, label minus prediction (eV/atom)."""


def refit_energies(
    model: MultiBranch,
    train: Mapping[str, SplitReader],
    evaluated: Mapping[str, SplitReader],
    foreign: Mapping[str, Sequence[str]],
    ranks: World,
    device: torch.device,
    progress: Callable[[str, str, int], None],
) -> dict[tuple[str, str], dict[str, float | None]]:
    """Energy errors of branches on datasets they were not trained on, after the references were fitted again.

    All ranks call it together; the errors do not depend on their number.

    Args:
        model: in evaluation mode, on `device`.
        train, evaluated: readers of the training split and of the evaluated split, by dataset.
        foreign: by dataset, the branches.
        ranks: the processes that evaluate together.
        device: of the model.
        progress: called with (dataset, branch, structures completed by this process since the last call).

    Returns:
        By branch and dataset, `refitted_energy_mae` and `refitted_energy_rmse` in eV/atom; None without labels.
    """
    found: dict[tuple[str, str], dict[str, float | None]] = {}
    for dataset, branches in foreign.items():
        every = max(1, math.ceil(len(train[dataset]) / FITTED_STRUCTURES))
        residuals = partial(_residuals, model, branches=branches, ranks=ranks, device=device, progress=progress)
        parts = [
            on_all(ranks, partial(residuals, train[dataset], stride=every)),
            on_all(ranks, partial(residuals, evaluated[dataset], stride=1)),
        ]
        options = train[dataset].store.manifest.options
        elements = np.flatnonzero(~np.isnan(train[dataset].store.references))
        for branch in branches:
            fitted, tested = (_in_order([part[branch] for part in by_rank]) for by_rank in parts)
            found[branch, dataset] = _errors(fitted, tested, elements, float(options.get("reference_ridge") or 0.0))
    return found


def _residuals(
    model: MultiBranch,
    reader: SplitReader,
    *,
    branches: Sequence[str],
    ranks: World,
    device: torch.device,
    progress: Callable[[str, str, int], None],
    stride: int,
) -> dict[str, Batches]:
    """Label minus prediction of the batches of this rank, by branch; of every `stride`-th batch of the split."""
    dtype = next(model.parameters()).dtype
    kept: dict[str, Batches] = {branch: [] for branch in branches}
    batches = reader.batches(ATOMS_AT_ONCE, dtype, first=ranks.rank * stride, step=ranks.size * stride)
    for k, (indices, batch) in enumerate(batches):
        for branch in branches:
            seen = predict_batch(model, indices, batch, branch, device)
            kept[branch].append(
                {
                    "batch": ranks.rank + k * ranks.size,
                    "n_atoms": seen.n_atoms.tolist(),
                    "numbers": seen.numbers.tolist(),
                    "residual": _finite(seen.labels["energy"] - seen.predicted["energy"]),
                }
            )
            progress(reader.dataset, branch, len(indices))
    return kept


def _finite(values: NDArray[np.float64]) -> list[float | None]:
    """Plain data; None without a label."""
    return [value if math.isfinite(value) else None for value in values.tolist()]


def _in_order(by_rank: Sequence[Batches]) -> Batches:
    """The batches of all ranks in the order of the split."""
    return sorted((batch for part in by_rank for batch in part), key=lambda batch: int(batch["batch"]))


def _errors(fitted: Batches, tested: Batches, elements: NDArray[np.integer], ridge: float) -> dict[str, float | None]:
    """Errors on `tested` after one energy per element was fitted on `fitted`."""
    chunks = [chunk for chunk in map(_labelled, fitted) if len(chunk[0])]
    errors = Errors()
    if chunks:
        shifts = fit_references(lambda: chunks, elements, ridge).energies
        for n_atoms, numbers, residual in map(_labelled, tested):
            structure = np.repeat(np.arange(len(n_atoms)), n_atoms)
            moved = np.bincount(structure, weights=shifts[numbers], minlength=len(n_atoms))
            errors.add("energy", (moved - residual) / n_atoms)
    return {PREFIX + mae("energy"): errors.mae("energy"), PREFIX + rmse("energy"): errors.rmse("energy")}


def _labelled(batch: Mapping[str, Any]) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.float64]]:
    """Sizes, numbers and label minus prediction (eV) of the labelled structures of a batch."""
    n_atoms = np.asarray(batch["n_atoms"], np.int64)
    residual = np.array([np.nan if v is None else v for v in batch["residual"]], np.float64)
    known = ~np.isnan(residual)
    numbers = np.asarray(batch["numbers"], np.uint8)[np.repeat(known, n_atoms)]
    return n_atoms[known], numbers, residual[known] * n_atoms[known]


def foreign_branches(branches: Mapping[str, Sequence[str]], datasets: Iterable[str]) -> dict[str, list[str]]:
    """The branches of a model, by each of `datasets` that none of them was trained on.

    Args:
        branches: the datasets that each branch was trained on.
        datasets: any datasets.
    """
    trained = {dataset for group in branches.values() for dataset in group}
    return {dataset: list(branches) for dataset in datasets if dataset not in trained}
