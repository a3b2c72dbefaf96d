"""The terms of a dataset's loss: the compared quantities, their units, and the error of one row.

To add a term, define a function and list it in `TERMS`; to add a form of error, define a function, list it in `FORMS`
and add its name to `ObjectiveOptions.form`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ramify.batches.batch import Batch, Segment
from ramify.labels import LABELS
from ramify.model.multibranch import BatchPredictions
from ramify.recipe import ObjectiveOptions

Form = Callable[[Tensor, ObjectiveOptions], Tensor]
"""Errors (rows, components) in units of the dataset -> error of each row (rows,)."""


def mae(error: Tensor, options: ObjectiveOptions) -> Tensor:
    """Mean absolute error of the components."""
    return error.abs().mean(1)


def mse(error: Tensor, options: ObjectiveOptions) -> Tensor:
    """Mean squared error of the components."""
    return error.square().mean(1)


def l2norm(error: Tensor, options: ObjectiveOptions) -> Tensor:
    """Norm of the error vector, divided by the square root of the number of components. Not smooth at 0."""
    return torch.sqrt(error.square().sum(1) + 1e-12) / error.shape[1] ** 0.5


def huber(error: Tensor, options: ObjectiveOptions) -> Tensor:
    """Quadratic below `huber_delta`, with slope 1 above it, as the absolute error."""
    zero, delta = torch.zeros_like(error), options.huber_delta
    return torch.nn.functional.huber_loss(error, zero, delta=delta, reduction="none").mean(1) / delta


FORMS: dict[str, Form] = {"mae": mae, "mse": mse, "l2norm": l2norm, "huber": huber}


@dataclass(frozen=True, slots=True)
class Compared:
    """Differences between predictions and labels of one dataset in a batch.

    Attributes:
        label: name.
        error: (rows, ...) prediction minus label in the label's unit of errors; 0 in rows that do not count.
        known: (rows,) bool, the rows that count: those with a complete label and a possible prediction.
        factor: (rows, 1) multiplies `error` before the conversion to units of the dataset; None for 1.
    """

    label: str
    error: Tensor
    known: Tensor
    factor: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Rows:
    """One dataset in a batch, and its predictions."""

    predictions: BatchPredictions
    batch: Batch
    segment: Segment
    has_forces: bool


Term = Callable[[Rows], Compared]


def energy(rows: Rows) -> Compared:
    """Energies per atom."""
    error, known = difference(rows.predictions.energy, rows.batch.energy, rows.segment.structures)
    return Compared("energy", error, known)


def forces(rows: Rows) -> Compared:
    """Force components."""
    error, known = difference(rows.predictions.forces, rows.batch.forces, rows.segment.atoms, rows.has_forces)
    return Compared("forces", error, known)


def stress(rows: Rows) -> Compared:
    """Stress x volume / atoms: the energy per atom of unit strain, comparable with an energy per atom."""
    batch, structures = rows.batch, rows.segment.structures
    possible = rows.has_forces & (batch.volume[structures] > 0)
    assert rows.predictions.stress is not None
    found, label = rows.predictions.stress.flatten(1), batch.stress.flatten(1)
    error, known = difference(found, label, structures, possible)
    return Compared("stress", error, known, (batch.volume / batch.n_atoms)[structures, None])


TERMS: dict[str, Term] = {"energy": energy, "forces": forces, "stress": stress}
"""By label; all further labels use `further`."""


def further(rows: Rows, label: str) -> Compared:
    """A further label. A branch has a head for every label that its datasets have in their training splits."""
    missing = torch.full_like(rows.batch.energy, torch.nan)
    found, is_predicted = rows.predictions.further.get(label, missing), label in rows.predictions.further
    error, known = difference(found, rows.batch.further.get(label, missing), rows.segment.structures, is_predicted)
    return Compared(label, error, known)


def compare(label: str, rows: Rows) -> Compared:
    """Compares predictions with labels of one kind."""
    return TERMS[label](rows) if label in TERMS else further(rows, label)


def weight_of(label: str, options: ObjectiveOptions) -> float:
    """The factor of a label's error in the loss."""
    if label in TERMS:
        return float(getattr(options, label))
    return options.labels.get(label, LABELS[label].weight)


def difference(predicted: Tensor, label: Tensor, rows: slice, possible: Tensor | bool = True) -> tuple[Tensor, Tensor]:
    """Prediction minus label, 0 in rows that do not count; and a mask of the rows that count, (rows,): those with a
    complete label where a prediction is `possible`."""
    p, q = predicted[rows], label[rows]
    known = ~torch.isnan(q).reshape(len(q), -1).any(1) & possible
    counted = known if q.ndim == 1 else known[:, None]
    return torch.where(counted, p - torch.nan_to_num(q), 0.0), known
