"""The loss of a batch, dataset by dataset, and the errors worth logging.

A batch may be any part of a step: the means that the loss is made of are taken over the labels of the whole step, so
that the losses of all parts, and their gradients, add up to those of the step.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ramify.batches.batch import Batch, Segment
from ramify.model.multibranch import BatchPredictions
from ramify.recipe import ObjectiveOptions
from ramify.store.store import LabelCounts


@dataclass(frozen=True, slots=True)
class Loss:
    """What a batch adds to the loss of its step; tensors stay on the device until someone logs them.

    Attributes:
        total: scalar to differentiate.
        datasets: by dataset: (3,) what it adds to its loss before weighting, to its mean absolute error of energies
            (eV/atom) and to that of force components (eV/Å); NaN where the step has no such labels.
    """

    total: Tensor
    datasets: dict[str, Tensor]


class Objective:
    """See `ObjectiveOptions` for the equation.

    Args:
        options: of the recipe.
        scales: eV and eV/Å by dataset, the unit that its errors are measured in when `normalise` is set.
        forceless: datasets whose branch has no force head.
    """

    def __init__(self, options: ObjectiveOptions, scales: Mapping[str, float], forceless: Collection[str] = ()) -> None:
        self._options = options
        self._forceless = frozenset(forceless)
        self._scales = dict(scales) if options.normalise else dict.fromkeys(scales, 1.0)
        self._weights = {name: options.weights.get(name, 1.0) for name in scales}
        self._weight_sum = sum(self._weights.values())

    def __call__(self, predictions: BatchPredictions, batch: Batch, labels: Mapping[str, LabelCounts]) -> Loss:
        """What `batch` adds to the loss of a step that has `labels` by dataset; absent labels (NaN) count nowhere.

        A prediction that is NaN where there is a label makes the loss NaN: a broken model must not pass for a good one.
        """
        total = predictions.energy.new_zeros(())
        datasets = {}
        for segment in batch.datasets:
            loss, energy_mae, forces_mae = self._dataset(segment, predictions, batch, labels[segment.name])
            total = total + self._weights[segment.name] / self._weight_sum * loss
            datasets[segment.name] = torch.stack([loss.detach(), energy_mae, forces_mae])
        return Loss(total, datasets)

    def _dataset(
        self, segment: Segment, predictions: BatchPredictions, batch: Batch, labels: LabelCounts
    ) -> tuple[Tensor, Tensor, Tensor]:
        o, scale = self._options, self._scales[segment.name]
        has_forces = segment.name not in self._forceless
        energy, energy_known = _difference(predictions.energy, batch.energy, segment.structures)
        forces, forces_known = _difference(predictions.forces, batch.forces, segment.atoms, has_forces)
        loss = o.energy * self._mean(energy[:, None] / scale, energy_known, labels.energy)
        loss = loss + o.forces * self._mean(forces / scale, forces_known, labels.forces)
        if o.stress > 0 and predictions.stress is not None:
            possible = has_forces & (batch.volume[segment.structures] > 0)
            found, label = predictions.stress.flatten(1), batch.stress.flatten(1)
            stress, stress_known = _difference(found, label, segment.structures, possible)
            # eV/Å³ x Å³ per atom: the energy that goes with unit strain, comparable with an energy per atom
            per_atom = (batch.volume / batch.n_atoms)[segment.structures, None] / scale
            loss = loss + o.stress * self._mean(stress * per_atom, stress_known, labels.stress)
        energy_mae = (energy.detach().abs() * energy_known).sum() / labels.energy
        forces_mae = (forces.detach().abs().mean(1) * forces_known).sum() / (labels.forces if has_forces else 0)
        return loss, energy_mae, forces_mae

    def _mean(self, error: Tensor, known: Tensor, labels: int) -> Tensor:
        """Sum over known rows of the error of one row, over the labels of the step; (rows, components) -> scalar."""
        o = self._options
        if o.form == "mae":
            row = error.abs().mean(1)
        elif o.form == "l2norm":
            row = torch.sqrt(error.square().sum(1) + 1e-12) / error.shape[1] ** 0.5  # the root is not smooth at 0
        elif o.form == "huber":
            zero = torch.zeros_like(error)
            row = torch.nn.functional.huber_loss(error, zero, delta=o.huber_delta, reduction="none").mean(1)
            row = row / o.huber_delta  # slope 1 far out, as the absolute error has
        else:
            row = error.square().mean(1)
        return (row * known).sum() / max(labels, 1)


def _difference(predicted: Tensor, label: Tensor, rows: slice, possible: Tensor | bool = True) -> tuple[Tensor, Tensor]:
    """Prediction minus label, 0 in rows that do not count; and which rows count, (rows,) bool: those whose label is
    whole and where a prediction is `possible`."""
    p, q = predicted[rows], label[rows]
    known = ~torch.isnan(q).reshape(len(q), -1).any(1) & possible
    counted = known if q.ndim == 1 else known[:, None]
    return torch.where(counted, p - torch.nan_to_num(q), 0.0), known
