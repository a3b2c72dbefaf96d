"""The validation metric: exact errors on the validation splits, bit-identical for any number of ranks."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ramify.batches.batch import Batch
from ramify.batches.loader import SplitReader
from ramify.evaluate.metrics import Errors
from ramify.evaluate.predict_split import Numbered, add_in_order, predict_batch, split_batches
from ramify.evaluate.trivial import trivial_errors
from ramify.labels import LABELS, mae, measurable, rmse
from ramify.model.multibranch import MultiBranch
from ramify.parallel.layout import Layout


@dataclass(frozen=True, slots=True)
class Validation:
    """The result of an evaluation.

    Attributes:
        metric: the mean, over datasets and trained labels, of the mean absolute error divided by that of the trivial
            predictor: 0 is perfect, 1 is no better than the trivial predictor. Where every label is left out, errors
            are divided by the floors of their labels instead.
        datasets: by dataset, its branch, its errors and those of the trivial predictor.
        left_out: by dataset, the labels that the metric leaves out, because their trivial error is rounding
            (`Label.floor`).
    """

    metric: float
    datasets: dict[str, dict[str, Any]]
    left_out: dict[str, list[str]] = field(default_factory=dict)


class Validator:
    """Distributes the batches of every validation split over the ranks that host its branch.

    Args:
        readers: of the validation splits of the datasets on this rank.
        branch_of: the branch of every dataset of the run, in the recipe's order.
        layout: of this rank.
        dtype: of the batches.
        labels: the trained labels.
        search: finds the edges of batches that have none, on the device.
    """

    def __init__(
        self,
        readers: Mapping[str, SplitReader],
        branch_of: Mapping[str, str],
        layout: Layout,
        dtype: torch.dtype,
        labels: Sequence[str] = ("energy", "forces"),
        *,
        search: Callable[[Batch], Batch] = lambda batch: batch,
    ) -> None:
        self._search = search
        self._readers, self._branch_of = readers, branch_of
        self._layout, self._dtype, self._labels = layout, dtype, tuple(labels)
        self._trivial: dict[str, Errors] = {}

    def __call__(self, model: MultiBranch) -> Validation:
        """Errors of the current weights of `model`; a collective call."""
        model.eval()
        with self._layout.watchdog.working():
            own = {name: self._own_batches(model, name) for name in self._readers}
        parts = self._layout.gather(own)
        if not self._trivial:
            self._trivial = self._trivial_errors()
        datasets: dict[str, dict[str, Any]] = {}
        left_out: dict[str, list[str]] = {}
        ratios, rounding = [], []
        for name, branch in self._branch_of.items():
            found = add_in_order(batch for part in parts for batch in part.get(name, ()))
            trivial = self._trivial[name]
            errors = {key(label): getattr(found, key.__name__)(label) for key in (mae, rmse) for label in self._labels}
            known = {f"trivial_{mae(label)}": trivial.mae(label) for label in self._labels}
            datasets[name] = {"branch": branch, **errors, **known}
            for label in self._labels:
                error, of_trivial = found.mae(label), trivial.mae(label)
                if error is None or of_trivial is None:
                    continue
                if measurable(label, of_trivial):
                    ratios.append(error / of_trivial)
                else:
                    rounding.append(error / LABELS[label].floor if LABELS[label].floor else error)
                    left_out.setdefault(name, []).append(label)
        counted = ratios or rounding
        return Validation(sum(counted) / len(counted) if counted else math.nan, datasets, left_out)

    def _own_batches(self, model: MultiBranch, dataset: str) -> list[Numbered]:
        """Errors of this rank's batches: every n-th batch for n hosts. The first one differs between datasets, so that
        the additional batches of several datasets do not all fall on the same rank."""
        reader, branch = self._readers[dataset], self._branch_of[dataset]
        hosts = self._layout.placement.hosts[branch]
        first = (hosts.index(self._layout.rank) + list(self._branch_of).index(dataset)) % len(hosts)
        totals = []
        for number, indices, batch in split_batches(reader, self._dtype, rank=first, world=len(hosts)):
            stress = "stress" in self._labels
            device = self._layout.device
            predicted = predict_batch(model, indices, batch, branch, device, stress=stress, search=self._search)
            totals.append((number, predicted.errors().to_dict()))
            self._layout.watchdog.beat()
        return totals

    def _trivial_errors(self) -> dict[str, Errors]:
        """Errors of the trivial predictors: the owner of each dataset's branch computes them once, without a model."""
        owned = [name for name in self._readers if self._layout.owns(self._branch_of[name])]
        with self._layout.watchdog.working():
            own = {name: trivial_errors(self._readers[name]).to_dict() for name in owned}
        gathered = self._layout.gather(own)
        return {name: Errors.from_dict(found) for part in gathered for name, found in part.items()}
