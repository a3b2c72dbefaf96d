"""The validation metric: exact errors on the validation splits, the same to the bit however many ranks look at them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ramify.batches.loader import SplitReader
from ramify.evaluate.metrics import Errors
from ramify.evaluate.predict_split import add_in_order, predict_batch, split_batches
from ramify.evaluate.trivial import trivial_errors
from ramify.model.multibranch import MultiBranch
from ramify.parallel.layout import Layout

Totals = list[tuple[int, list[float]]]
"""(number of a batch in its split, its `Errors.totals`) of some batches, as plain data."""


@dataclass(frozen=True, slots=True)
class Validation:
    """What an evaluation found.

    Attributes:
        metric: the mean, over datasets and over energy and forces, of the mean absolute error divided by that of the
            trivial predictor: 0 is perfect, 1 is no better than knowing nothing.
        datasets: by dataset, its branch, its errors and those of the trivial predictor.
    """

    metric: float
    datasets: dict[str, dict[str, Any]]


class Validator:
    """Shares the batches of every validation split out among the ranks that host its branch.

    Args:
        readers: of the validation splits of the datasets on this rank.
        branch_of: the branch of every dataset of the run, in the recipe's order.
        layout: of this rank.
        dtype: of the batches.
    """

    def __init__(
        self,
        readers: Mapping[str, SplitReader],
        branch_of: Mapping[str, str],
        layout: Layout,
        dtype: torch.dtype,
    ) -> None:
        self._readers, self._branch_of = readers, branch_of
        self._layout, self._dtype = layout, dtype
        self._trivial: dict[str, Errors] = {}

    def __call__(self, model: MultiBranch) -> Validation:
        """Errors of the weights that `model` has now; all ranks must ask."""
        model.eval()
        with self._layout.watchdog.working():
            own = {name: self._own_batches(model, name) for name in self._readers}
        shares = self._layout.gather(own)
        if not self._trivial:
            self._trivial = self._trivial_errors()
        datasets, ratios = {}, []
        for name, branch in self._branch_of.items():
            found = add_in_order(part for share in shares for part in share.get(name, ()))
            trivial = self._trivial[name]
            known = {"trivial_energy_mae": trivial.energy_mae, "trivial_forces_mae": trivial.forces_mae}
            datasets[name] = {"branch": branch, **found.means(), **known}
            ratios += _ratios(found, trivial)
        return Validation(sum(ratios) / len(ratios) if ratios else math.nan, datasets)

    def _own_batches(self, model: MultiBranch, dataset: str) -> Totals:
        """Every so many-th batch is this rank's; where to begin differs from dataset to dataset, so that ranks that
        share several do not all get their odd ones."""
        reader, branch = self._readers[dataset], self._branch_of[dataset]
        hosts = self._layout.placement.hosts[branch]
        first = (hosts.index(self._layout.rank) + list(self._branch_of).index(dataset)) % len(hosts)
        totals = []
        for number, indices, batch in split_batches(reader, self._dtype, rank=first, world=len(hosts)):
            seen = predict_batch(model, indices, batch, branch, self._layout.device)
            totals.append((number, seen.errors().totals.tolist()))
            self._layout.watchdog.beat()
        return totals

    def _trivial_errors(self) -> dict[str, Errors]:
        """They need no model: the owner of each dataset's branch works them out, once."""
        owned = [name for name in self._readers if self._layout.owns(self._branch_of[name])]
        with self._layout.watchdog.working():
            own = {name: trivial_errors(self._readers[name]).totals.tolist() for name in owned}
        gathered = self._layout.gather(own)
        return {name: Errors(totals) for share in gathered for name, totals in share.items()}


def _ratios(found: Errors, trivial: Errors) -> list[float]:
    """Errors over trivial errors, for whatever has labels."""
    pairs = ((found.energy_mae, trivial.energy_mae), (found.forces_mae, trivial.forces_mae))
    return [f / t for f, t in pairs if f is not None and t]
