"""The form of errors in tables: mean absolute or root mean square; of energies per atom or of whole structures."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ramify.errors import RamifyError
from ramify.evaluate.results import Means, Results
from ramify.labels import ENERGY, FORCES, LABELS

MILLI = 1000.0


@dataclass(frozen=True, slots=True)
class Measure:
    """The form of the errors in a table.

    Attributes:
        rmse: root mean square errors instead of mean absolute errors.
        total: energies of whole structures in meV and forces in meV/Å, as in most papers, instead of eV/atom and eV/Å.
    """

    rmse: bool = False
    total: bool = False

    @property
    def name(self) -> str:
        """Abbreviation of the mean."""
        return "RMSE" if self.rmse else "MAE"

    def unit(self, quantity: str) -> str:
        """Unit of the errors of a label."""
        units = {ENERGY.name: "meV", FORCES.name: "meV/Å"} if self.total else {}
        return units.get(quantity, LABELS[quantity].error_unit)

    def title(self, quantity: str) -> str:
        """The quantities over which errors are averaged."""
        return "total energy" if self.total and quantity == ENERGY.name else LABELS[quantity].components

    def errors(self, run: Results, means: Means, quantity: str) -> tuple[float | None, float | None]:
        """MAE and RMSE of the branch that predicts a dataset, in `unit`; None where there is no label or no head.

        Raises:
            RamifyError: total energies are wanted, and the run has no saved predictions.
        """
        mae, rmse = means.mae(quantity), means.rmse(quantity)
        if not self.total or quantity not in (ENERGY.name, FORCES.name) or mae is None:
            return mae, rmse
        if quantity == ENERGY.name:
            return self._totals(run, means.dataset, trivial=False)
        return MILLI * mae, None if rmse is None else MILLI * rmse

    def trivial(self, run: Results, dataset: str, quantity: str) -> float | None:
        """The error of the trivial predictor, in `unit`."""
        means = run.evaluation.trivial_of(dataset)
        found = means.rmse(quantity) if self.rmse else means.mae(quantity)
        if found is None or not self.total or quantity not in (ENERGY.name, FORCES.name):
            return found
        if quantity == ENERGY.name:
            return self._totals(run, dataset, trivial=True)[self.rmse]
        return MILLI * found

    def _totals(self, run: Results, dataset: str, *, trivial: bool) -> tuple[float, float]:
        """MAE and RMSE of total energies, meV: errors per atom alone do not give them where sizes differ."""
        stored = run.predictions(dataset)
        if stored is None:
            raise RamifyError(
                f"{run.path} has no saved predictions of {dataset}, from which total energies are computed",
                fix=f"ramify evaluate {run.path}",
            )
        true = stored.true[ENERGY.name].astype(np.float64)
        error = stored.energy_trivial - true if trivial else stored.error(ENERGY.name)
        total = MILLI * (error * stored.n_atoms)[~np.isnan(true)]
        return float(np.abs(total).mean()), math.sqrt(float(np.square(total).mean()))


DEFAULT = Measure()
"""Mean absolute errors in eV/atom and eV/Å, as in the paper."""


def format_milli(value: float) -> str:
    """Four significant digits, for errors in meV and meV/Å."""
    return f"{value:.4g}" if math.isfinite(value) else "not finite"
