"""Trivial predictors, which use only the composition: the baseline for every model.

Forces and stress: zero. Further labels: their mean over the training split. Energies: one energy per element, of two
kinds where they differ: the reference energies of the store, and plain least squares on the same training split. They
differ if a recipe regularises the references (`reference_ridge`), which makes the references alone a weaker baseline,
and if the references are those of a pretrained branch. The better of the two on the evaluated split is the baseline.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ramify.batches.loader import SplitReader
from ramify.evaluate.metrics import LEAST_SQUARES, REFERENCES, Errors
from ramify.labels import further
from ramify.packing import pieces_of
from ramify.references import fit_references, reference_energy
from ramify.store.store import Store
from ramify.structures import Structures

ATOMS_AT_ONCE = 200_000


@dataclass(frozen=True, slots=True)
class Trivial:
    """The trivial predictors on one split.

    Attributes:
        errors: of zero forces, zero stress, and of the better predictor of energies (by mean absolute error).
        predictor: its name, `REFERENCES` or `LEAST_SQUARES`.
        references: (119,) eV per element, those of `predictor`.
        energy_mae: eV/atom by predictor; only `REFERENCES` where plain least squares gives the same energies.
    """

    errors: Errors
    predictor: str
    references: NDArray[np.float64]
    energy_mae: dict[str, float | None]


def trivial_predictors(reader: SplitReader) -> Trivial:
    """The trivial predictors on the split of `reader`.

    Raises:
        RamifyError: the split contains an element that the training split does not.
    """
    references = {REFERENCES: reader.store.references}
    options = reader.store.manifest.options
    if options.get("reference_ridge") or options.get("references") or not reader.store.fitted:
        references[LEAST_SQUARES] = least_squares_references(reader.store)
    found = {name: Errors() for name in references}
    means = reader.store.manifest.statistics.labels
    for structures in _pieces(reader.store, reader.rows):
        solid = np.abs(np.linalg.det(structures.cell.astype(np.float64))) > 0
        for name, errors in found.items():
            energy = (reference_energy(structures, references[name]) - structures.energy) / structures.n_atoms
            errors.count(len(structures), len(structures.numbers))
            errors.add("energy", energy)
            errors.add("forces", -structures.forces.astype(np.float64))
            errors.add("stress", -np.where(solid[:, None, None], structures.stress.astype(np.float64), np.nan))
            for label in further():
                if label in means:
                    errors.add(label, means[label].mean - structures.compared(label))
    mae = {name: errors.mae("energy") for name, errors in found.items()}
    known = [(error, name) for name, error in mae.items() if error is not None]
    best = min(known)[1] if known else REFERENCES
    return Trivial(found[best], best, references[best], mae)


def trivial_errors(reader: SplitReader) -> Errors:
    """Errors of the trivial predictors on the split of `reader`, the better one for energies."""
    return trivial_predictors(reader).errors


def least_squares_references(store: Store) -> NDArray[np.float64]:
    """(119,) eV by atomic number: references without regularisation, fitted on the training split of the store."""
    rows = store.range("train")

    def chunks() -> Iterable[tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.float64]]]:
        return ((piece.n_atoms, piece.numbers, piece.energy) for piece in _pieces(store, rows))

    return fit_references(chunks, np.flatnonzero(~np.isnan(store.references))).energies


def _pieces(store: Store, rows: range) -> Iterator[Structures]:
    """The structures at `rows` in chunks of about `ATOMS_AT_ONCE` atoms."""
    n_atoms = store.n_atoms[rows.start : rows.stop]
    for part in pieces_of(n_atoms, ATOMS_AT_ONCE):
        yield store.take(np.arange(rows.start + part.start, rows.start + part.stop))
