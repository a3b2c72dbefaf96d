"""Exact errors of a model over whole splits, any branch on any dataset.

A split is divided into batches that depend on the split alone. The errors are summed within each batch, and the sums of
the batches are added in the order of the split: the result is bit-identical for any assignment of batches to ranks.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ramify.batches.batch import Batch, Segment
from ramify.batches.loader import SplitReader
from ramify.batches.transfer import host_array
from ramify.evaluate.metrics import Errors
from ramify.model.multibranch import BatchPredictions, MultiBranch

ATOMS_AT_ONCE = 1500
"""Atoms per batch in evaluation; keeps the memory of conservative forces near 1 GB at the paper's width."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """Predictions and labels of one batch as float64 arrays; energies per atom after reference energies.

    Attributes:
        indices: (S,) positions in the split.
        n_atoms: (S,).
        numbers: (N,).
        predicted: by label, (S, ...) or (N, ...); NaN where the branch predicts none or none was requested.
        labels: the labels in the same form; NaN where there is none.
        possible: by label, the rows that the branch predicts: all, none, or (rows,) bool.
    """

    indices: NDArray[np.int64]
    n_atoms: NDArray[np.int64]
    numbers: NDArray[np.int64]
    predicted: Mapping[str, NDArray[np.float64]]
    labels: Mapping[str, NDArray[np.float64]]
    possible: Mapping[str, NDArray[np.bool_] | bool]

    def errors(self) -> Errors:
        """The errors of this batch; NaN if a prediction with a label is NaN."""
        errors = Errors()
        errors.count(len(self.n_atoms), len(self.numbers))
        for name, predicted in self.predicted.items():
            label, possible = self.labels[name], np.asarray(self.possible[name])
            rows = possible.reshape(possible.shape + (1,) * (label.ndim - possible.ndim))
            errors.add(name, predicted - label, ~np.isnan(label) & rows)
        return errors


def predict_batch(
    model: MultiBranch,
    indices: NDArray[np.int64],
    batch: Batch,
    branch: str,
    device: torch.device,
    *,
    stress: bool = False,
    search: Callable[[Batch], Batch] = lambda batch: batch,
) -> Labelled:
    """Predictions of one branch on a batch, with its labels.

    Args:
        model: in evaluation mode.
        indices: (S,) of the structures of the batch in the split.
        batch: of any datasets; all its structures are read by `branch`.
        branch: its name.
        device: the device of the model.
        stress: also predict stress if the branch can.
        search: finds the edges of a batch that has none, on the device (`ramify.batches.edge_search`).
    """
    heads = model.branch(branch)
    stress = stress and heads.forces == "conservative"
    with torch.no_grad():
        found: BatchPredictions = model(search(read_by(batch, branch).to(device)), stress=stress)
    labels = {name: host_array(tensor) for name, tensor in batch.labels().items()}
    predicted = {name: host_array(tensor) for name, tensor in found.labels().items()}
    possible: dict[str, NDArray[np.bool_] | bool] = dict.fromkeys(predicted, True)
    possible |= {"forces": heads.forces is not None, "stress": (batch.volume > 0).numpy() & stress}
    return Labelled(
        indices=indices,
        n_atoms=batch.n_atoms.long().numpy(),
        numbers=batch.numbers.numpy(),
        predicted={n: predicted.get(n, np.full_like(label, np.nan)) for n, label in labels.items()},
        labels=labels,
        possible={n: possible.get(n, False) for n in labels},
    )


def split_batches(
    reader: SplitReader, dtype: torch.dtype, *, rank: int = 0, world: int = 1
) -> Iterator[tuple[int, NDArray[np.int64], Batch]]:
    """The batches of a split assigned to `rank` of `world`: (number in the split, indices, batch)."""
    for k, (indices, batch) in enumerate(reader.batches(ATOMS_AT_ONCE, dtype, first=rank, step=world)):
        yield rank + k * world, indices, batch


Numbered = tuple[int, dict[str, Any]]
"""The number of a batch in its split, and its errors as plain data (`Errors.to_dict`)."""


def add_in_order(parts: Iterable[Numbered]) -> Errors:
    """The errors of a split from those of its batches, given in any order."""
    errors = Errors()
    for _, found in sorted(parts, key=lambda part: part[0]):
        errors.merge(Errors.from_dict(found))
    return errors


def read_by(batch: Batch, branch: str) -> Batch:
    """The batch with all its structures in the segment of `branch`."""
    whole = Segment(branch, slice(0, len(batch.n_atoms)), slice(0, len(batch.numbers)))
    return replace(batch, segments=(whole,))
