"""Exact errors of a model over whole splits, any branch on any dataset."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from ramify.data.batch import Batch, Segment
from ramify.data.loader import SplitReader
from ramify.evaluate.metrics import Errors
from ramify.model.multibranch import MultiBranch, Predictions

ATOMS_AT_ONCE = 1500
"""Atoms per batch in evaluation; keeps the memory of conservative forces near 1 GB at the paper's width."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """Predictions beside labels, for one batch, as float64 arrays; energies per atom after references.

    Attributes:
        indices: (S,) positions in the split.
        energy, energy_label: (S,) eV/atom.
        forces, forces_label: (N, 3) eV/Å.
        n_atoms: (S,).
        numbers: (N,).
    """

    indices: NDArray[np.int64]
    energy: NDArray[np.float64]
    energy_label: NDArray[np.float64]
    forces: NDArray[np.float64]
    forces_label: NDArray[np.float64]
    n_atoms: NDArray[np.int64]
    numbers: NDArray[np.int64]


def predict_split(
    model: MultiBranch, reader: SplitReader, branch: str, device: torch.device, dtype: torch.dtype
) -> Iterator[Labelled]:
    """Predicts a whole split with one branch, in order, each structure once."""
    model.eval()
    for indices, batch in reader.batches(ATOMS_AT_ONCE, dtype):
        with torch.no_grad():
            predictions: Predictions = model(read_by(batch, branch).to(device))
        yield Labelled(
            indices=indices,
            energy=_float64(predictions.energy),
            energy_label=_float64(batch.energy),
            forces=_float64(predictions.forces),
            forces_label=_float64(batch.forces),
            n_atoms=batch.n_atoms.long().numpy(),
            numbers=batch.numbers.numpy(),
        )


def split_errors(
    model: MultiBranch,
    reader: SplitReader,
    branch: str,
    device: torch.device,
    dtype: torch.dtype,
    progress: Callable[[int], None] = lambda structures: None,
) -> Errors:
    """Errors of one branch on one split."""
    errors = Errors()
    has_forces = model.branch(branch).forces is not None
    for seen in predict_split(model, reader, branch, device, dtype):
        errors.add(
            seen.energy - seen.energy_label,
            seen.forces - seen.forces_label,
            energy_labelled=~np.isnan(seen.energy_label),
            forces_labelled=~np.isnan(seen.forces_label) & has_forces,
        )
        progress(len(seen.indices))
    return errors


def trivial_errors(reader: SplitReader, dtype: torch.dtype) -> Errors:
    """Errors of the trivial predictors: the reference energies alone, and no force anywhere."""
    errors = Errors()
    for _, batch in reader.batches(ATOMS_AT_ONCE, dtype):
        errors.add(-_float64(batch.energy), -_float64(batch.forces))
    return errors


def read_by(batch: Batch, branch: str) -> Batch:
    """The batch with all its structures in the segment of `branch`."""
    whole = Segment(branch, slice(0, len(batch.n_atoms)), slice(0, len(batch.numbers)))
    return replace(batch, segments=(whole,))


def _float64(tensor: torch.Tensor) -> NDArray[np.float64]:
    return tensor.detach().to("cpu", torch.float64).numpy()
