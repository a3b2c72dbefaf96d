"""Exact errors of a model over whole splits, any branch on any dataset.

A split is cut into batches that depend on the split alone. The errors of each are added up by themselves, and then all
of them in the order of the split: the result is the same to the bit whoever worked on which batch.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ramify.batches.batch import Batch, Segment
from ramify.batches.loader import SplitReader
from ramify.evaluate.metrics import Errors
from ramify.model.multibranch import BatchPredictions, MultiBranch

ATOMS_AT_ONCE = 1500
"""Atoms per batch in evaluation; keeps the memory of conservative forces near 1 GB at the paper's width."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """Predictions beside labels, for one batch, as float64 arrays; energies per atom after references.

    Attributes:
        indices: (S,) positions in the split.
        energy, energy_label: (S,) eV/atom.
        forces, forces_label: (N, 3) eV/Å; predictions NaN where the branch has no force head.
        stress, stress_label: (S, 3, 3) eV/Å³; predictions NaN where the branch predicts none or nobody asked.
        n_atoms: (S,).
        numbers: (N,).
        has_forces: the branch predicts forces.
        has_stress: (S,) bool, stress was asked for and the branch predicts it, for the structure has a volume.
    """

    indices: NDArray[np.int64]
    energy: NDArray[np.float64]
    energy_label: NDArray[np.float64]
    forces: NDArray[np.float64]
    forces_label: NDArray[np.float64]
    stress: NDArray[np.float64]
    stress_label: NDArray[np.float64]
    n_atoms: NDArray[np.int64]
    numbers: NDArray[np.int64]
    has_forces: bool
    has_stress: NDArray[np.bool_]

    def errors(self) -> Errors:
        """The errors of this batch. A prediction that is NaN where there is a label makes them NaN."""
        errors = Errors()
        errors.add(
            self.energy - self.energy_label,
            self.forces - self.forces_label,
            self.stress - self.stress_label,
            energy_labelled=~np.isnan(self.energy_label),
            forces_labelled=~np.isnan(self.forces_label) & self.has_forces,
            stress_labelled=~np.isnan(self.stress_label) & self.has_stress[:, None, None],
        )
        return errors


def predict_batch(
    model: MultiBranch,
    indices: NDArray[np.int64],
    batch: Batch,
    branch: str,
    device: torch.device,
    *,
    stress: bool = False,
) -> Labelled:
    """What one branch says about a batch, beside its labels.

    Args:
        model: in evaluation mode.
        indices: (S,) of the structures of the batch in the split.
        batch: of any datasets; all of it is read by `branch`.
        branch: its name.
        device: where the model lives.
        stress: predict stress too, where the branch can.
    """
    heads = model.branch(branch)
    stress = stress and heads.forces == "conservative"
    with torch.no_grad():
        predictions: BatchPredictions = model(read_by(batch, branch).to(device), stress=stress)
    return Labelled(
        indices=indices,
        energy=_float64(predictions.energy),
        energy_label=_float64(batch.energy),
        forces=_float64(predictions.forces),
        forces_label=_float64(batch.forces),
        stress=_float64(batch.stress * torch.nan if predictions.stress is None else predictions.stress),
        stress_label=_float64(batch.stress),
        n_atoms=batch.n_atoms.long().numpy(),
        numbers=batch.numbers.numpy(),
        has_forces=heads.forces is not None,
        has_stress=(batch.volume > 0).numpy() & stress,
    )


def split_batches(
    reader: SplitReader, dtype: torch.dtype, *, rank: int = 0, world: int = 1
) -> Iterator[tuple[int, NDArray[np.int64], Batch]]:
    """The batches of a split that `rank` of `world` works on: (number in the split, indices, batch)."""
    for turn, (indices, batch) in enumerate(reader.batches(ATOMS_AT_ONCE, dtype, first=rank, step=world)):
        yield rank + turn * world, indices, batch


def add_in_order(parts: Iterable[tuple[int, ArrayLike]]) -> Errors:
    """The errors of a split from (number of the batch, its `Errors.totals`), in whatever order they come."""
    errors = Errors()
    for _, totals in sorted(parts, key=lambda part: part[0]):
        errors.merge(Errors(totals))
    return errors


def read_by(batch: Batch, branch: str) -> Batch:
    """The batch with all its structures in the segment of `branch`."""
    whole = Segment(branch, slice(0, len(batch.n_atoms)), slice(0, len(batch.numbers)))
    return replace(batch, segments=(whole,))


def _float64(tensor: torch.Tensor) -> NDArray[np.float64]:
    return tensor.detach().to("cpu", torch.float64).numpy()
