"""The loss of a batch, dataset by dataset, and the errors worth logging."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ramify.data.batch import Batch, Segment
from ramify.model.multibranch import Predictions
from ramify.recipe import ObjectiveOptions


@dataclass(frozen=True, slots=True)
class Loss:
    """What a batch costs; tensors stay on the device until someone logs them.

    Attributes:
        total: scalar to differentiate.
        datasets: by dataset: (3,) its loss before weighting, its mean absolute error of energies (eV/atom) and of force
            components (eV/Å); NaN where it has no such labels here.
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

    def __call__(self, predictions: Predictions, batch: Batch) -> Loss:
        """The loss of `predictions` for the labels in `batch`; absent labels (NaN) count nowhere.

        A prediction that is NaN where there is a label makes the loss NaN: a broken model must not pass for a good one.
        """
        total = predictions.energy.new_zeros(())
        datasets = {}
        for segment in batch.datasets:
            loss, energy_mae, forces_mae = self._dataset(segment, predictions, batch)
            total = total + self._weights[segment.name] / self._weight_sum * loss
            datasets[segment.name] = torch.stack([loss.detach(), energy_mae, forces_mae])
        return Loss(total, datasets)

    def _dataset(self, segment: Segment, predictions: Predictions, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        o, scale = self._options, self._scales[segment.name]
        has_forces = segment.name not in self._forceless
        energy, energy_known = _difference(predictions.energy, batch.energy, segment.structures)
        forces, forces_known = _difference(predictions.forces, batch.forces, segment.atoms, has_forces)
        loss = o.energy * self._mean(energy[:, None] / scale, energy_known)
        loss = loss + o.forces * self._mean(forces / scale, forces_known)
        if o.stress > 0 and predictions.stress is not None:
            possible = has_forces & (batch.volume[segment.structures] > 0)
            found, label = predictions.stress.flatten(1), batch.stress.flatten(1)
            stress, stress_known = _difference(found, label, segment.structures, possible)
            # eV/Å³ x Å³ per atom: the energy that goes with unit strain, comparable with an energy per atom
            per_atom = (batch.volume / batch.n_atoms)[segment.structures, None] / scale
            loss = loss + o.stress * self._mean(stress * per_atom, stress_known)
        energy_mae = _labelled_mean(energy.detach().abs(), energy_known)
        return loss, energy_mae, _labelled_mean(forces.detach().abs().mean(1), forces_known)

    def _mean(self, error: Tensor, known: Tensor) -> Tensor:
        """Mean over labelled rows of the error of one row; (rows, components) -> scalar, 0 without labels."""
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
        return (row * known).sum() / known.sum().clamp(min=1)


def _difference(predicted: Tensor, label: Tensor, rows: slice, possible: Tensor | bool = True) -> tuple[Tensor, Tensor]:
    """Prediction minus label, 0 in rows that do not count; and which rows count, (rows,) bool: those whose label is
    whole and where a prediction is `possible`."""
    p, q = predicted[rows], label[rows]
    known = ~torch.isnan(q).reshape(len(q), -1).any(1) & possible
    counted = known if q.ndim == 1 else known[:, None]
    return torch.where(counted, p - torch.nan_to_num(q), 0.0), known


def _labelled_mean(error: Tensor, known: Tensor) -> Tensor:
    return (error * known).sum() / known.sum()
