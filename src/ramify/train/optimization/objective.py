"""The loss of a batch, dataset by dataset, and the logged errors.

A batch may be any part of a step: the means in the loss are taken over the labels of the whole step, so that the losses
of all micro-batches, and their gradients, add up to those of the step.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ramify.batches.batch import Batch, Segment
from ramify.labels import BUILT_IN, in_order, mae
from ramify.model.multibranch import BatchPredictions
from ramify.recipe import ObjectiveOptions
from ramify.store.store import LabelCounts
from ramify.train.optimization.loss_terms import FORMS, Compared, Rows, compare, weight_of

LOSS = "loss"
"""Name of a dataset's loss among its errors."""


@dataclass(frozen=True, slots=True)
class Loss:
    """The contribution of a batch to the loss of its step; tensors stay on the device until they are logged.

    Attributes:
        total: scalar to differentiate.
        datasets: by dataset, the contributions to its loss before weighting and to its mean absolute errors, under the
            names `Objective.names`; NaN where the step has no such labels.
    """

    total: Tensor
    datasets: dict[str, dict[str, Tensor]]


class Objective:
    """The objective of a run; see `ObjectiveOptions` for the equation.

    Args:
        options: of the recipe.
        scales: eV and eV/Å by dataset, the unit of its errors with `normalise`.
        forceless: datasets whose branch has no force head.
        further: mean absolute deviations of further labels, by dataset and label; these labels are trained besides
            energies, forces and stress.

    Attributes:
        labels: the logged labels, in the order of the table.
        names: of the logged values of every dataset.
    """

    def __init__(
        self,
        options: ObjectiveOptions,
        scales: Mapping[str, float],
        forceless: Collection[str] = (),
        further: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        self._options = options
        self._forceless = frozenset(forceless)
        self._scales = dict(scales) if options.normalise else dict.fromkeys(scales, 1.0)
        self._further = dict(further or {})
        self._weights = {name: options.weights.get(name, 1.0) for name in scales}
        self._weight_sum = sum(self._weights.values())
        self.labels = trained_labels(options, [label for found in self._further.values() for label in found])
        self.names = (LOSS, *map(mae, self.labels))

    def __call__(self, predictions: BatchPredictions, batch: Batch, labels: Mapping[str, LabelCounts]) -> Loss:
        """The contribution of `batch` to the loss of a step with `labels` by dataset; absent labels (NaN) are ignored.

        A NaN prediction where there is a label makes the loss NaN, so that a broken model is noticed.
        """
        total = predictions.energy.new_zeros(())
        datasets = {}
        for segment in batch.datasets:
            loss, errors = self._dataset(segment, predictions, batch, labels[segment.name])
            total = total + self._weights[segment.name] / self._weight_sum * loss
            datasets[segment.name] = {LOSS: loss.detach()} | errors
        return Loss(total, datasets)

    def _dataset(
        self, segment: Segment, predictions: BatchPredictions, batch: Batch, labels: LabelCounts
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one dataset, and its mean absolute errors."""
        has_forces = segment.name not in self._forceless
        rows = Rows(predictions, batch, segment, has_forces)
        loss = predictions.energy.new_zeros(())
        errors = {}
        for label in self.labels:
            if label == "stress" and predictions.stress is None:
                continue
            found, count = compare(label, rows), labels.of(label)
            loss = loss + weight_of(label, self._options) * self._mean(found, self._unit(segment.name, label), count)
            possible = has_forces or label not in ("forces", "stress")
            per_row = found.error.detach().abs().reshape(len(found.error), -1).mean(1)
            errors[mae(label)] = (per_row * found.known).sum() / (count if possible else 0)
        return loss, errors

    def _unit(self, dataset: str, label: str) -> float:
        """The unit of errors; that of a further label is always its own spread, since its physical unit differs."""
        return self._scales[dataset] if label in BUILT_IN else self._further.get(dataset, {}).get(label) or 1.0

    def _mean(self, found: Compared, scale: float, labels: int) -> Tensor:
        """Sum of the row errors over known rows, divided by the number of labels of the step."""
        error = found.error.reshape(len(found.error), -1)
        scaled = error / scale if found.factor is None else error * (found.factor / scale)
        row = FORMS[self._options.form](scaled, self._options)
        return (row * found.known).sum() / max(labels, 1)


def trained_labels(options: ObjectiveOptions, further: Sequence[str]) -> tuple[str, ...]:
    """Trained labels, in the order of the table; energies and forces are always included."""
    others = [name for name in ("stress", *further) if weight_of(name, options) > 0]
    return in_order(["energy", "forces", *others])
