"""Reference energies: one energy per element and dataset, which removes the composition from total energies.

Fitted by least squares in float64 on the training split only: energy per atom against the fractions of the elements.
Total energies stay in float64 until the references are subtracted: at -29944 eV the spacing of float32 is 2 meV.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ramify.elements import MAX_NUMBER, SYMBOLS, element_features
from ramify.errors import RamifyError
from ramify.structures import Structures

Floats = NDArray[np.float64]
Chunks = Callable[[], Iterable[tuple[NDArray[np.int64], NDArray[np.uint8], Floats]]]
"""Starts one pass over (n_atoms (S,), numbers (N,), energy (S,) in eV)."""

CUTOFF = 1e-10
"""Singular values below this fraction of the largest are treated as zero. Rounding gives about 1e-15; an element that
occurs in one of ten million structures, as one of a hundred atoms, gives 3e-6."""

OWN_PART = 0.1
"""Variance of the element's own part of a reference, relative to 1 for its period and 1 for its group. Chosen on the
training and validation splits of the embedded crystals, each material predicted from the others: 0.1 to 0.3 was best
on one set, 0 to 0.1 on the other."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Fitted references.

    Attributes:
        energies: (119,) eV by atomic number, NaN for elements that did not occur.
        structures: number of structures fitted on.
        rank: number of independent compositions; if it is smaller than the number of elements, the solution closest to
            the mean energy per atom is taken (minimum norm).
        residual_mae: eV/atom, mean absolute residual.
        residual_std: eV/atom, standard deviation of the residuals.
        residual_mean: eV/atom, mean of the residuals.
        stated: whether the energies were stated instead of fitted.
    """

    energies: Floats
    structures: int
    rank: int
    residual_mae: float
    residual_std: float
    residual_mean: float
    stated: bool = False


def fit_references(chunks: Chunks, elements: NDArray[np.integer], ridge: float = 0.0) -> Fit:
    """Fits the references of `elements` (E,) (atomic numbers) in two passes, with memory for one chunk.

    The normal equations would square the condition number, so a QR factorisation is updated instead: the triangular
    factor of the previous chunks is stacked on each new chunk and factorised again (sequential TSQR,
    doi:10.1137/080731992).

    Args:
        chunks: the training structures.
        elements: elements that occur in them.
        ridge: adds ridge x (e - m)ᵀ K⁻¹ (e - m) to the mean squared residual, with the references e, the mean energy
            per atom m and the covariance K of `prior_covariance`; 0 is ordinary least squares.
    """
    column = np.zeros(MAX_NUMBER + 1, np.int64)
    column[elements] = np.arange(len(elements))
    triangle = np.zeros((0, len(elements) + 1))
    count, total = 0, 0.0
    for n_atoms, numbers, energy in chunks():
        fractions = _fractions(n_atoms, column[numbers], len(elements))
        per_atom = energy / n_atoms
        count, total = count + len(per_atom), total + float(per_atom.sum())
        rows = np.concatenate([fractions, per_atom[:, None]], axis=1)
        triangle = np.asarray(np.linalg.qr(np.concatenate([triangle, rows]), mode="r"))
    mean = total / count
    # PᵀP = ridge count K⁻¹
    penalty = np.sqrt(ridge * count) * np.linalg.inv(np.linalg.cholesky(prior_covariance(elements)))
    factor = np.concatenate([triangle[:, :-1], penalty])
    # fractions add up to 1, so subtracting the mean from the target subtracts it from every element
    target = np.concatenate([triangle[:, -1] - triangle[:, :-1].sum(axis=1) * mean, np.zeros(len(elements))])
    from_mean = np.linalg.lstsq(factor, target, rcond=CUTOFF)[0]
    rank = np.linalg.matrix_rank(triangle[:, :-1], rtol=CUTOFF)
    energies = np.full(MAX_NUMBER + 1, np.nan)
    energies[elements] = mean + from_mean
    return _with_residuals(chunks, energies, int(rank))


def stated_fit(chunks: Chunks, elements: NDArray[np.integer], stated: Floats) -> Fit:
    """References of `elements` (E,) that are stated, (119,) eV, instead of fitted; their rank is that of a unique
    solution."""
    energies = np.full(MAX_NUMBER + 1, np.nan)
    energies[elements] = stated[elements]
    return replace(_with_residuals(chunks, energies, len(elements)), stated=True)


def _with_residuals(chunks: Chunks, energies: Floats, rank: int) -> Fit:
    """The residuals of references, in one pass."""
    count, total, absolute, squared = 0, 0.0, 0.0, 0.0
    for n_atoms, numbers, energy in chunks():
        count += len(energy)
        residual = (energy - _sum_per_structure(energies[numbers], n_atoms)) / n_atoms
        total += float(residual.sum())
        absolute += float(np.abs(residual).sum())
        squared += float(residual @ residual)
    variance = max(squared / count - (total / count) ** 2, 0.0)
    return Fit(energies, count, rank, absolute / count, float(np.sqrt(variance)), total / count)


def prior_covariance(elements: NDArray[np.integer]) -> Floats:
    """(E, E) prior covariance of the references of `elements`, in units of their common variance.

    A reference is modelled as a sum of effects of period, group and covalent radius (`element_features`), which
    related elements share, and an independent effect of the element with variance `OWN_PART`.
    """
    features = element_features()[elements]
    shared: Floats = features @ features.T
    return shared + OWN_PART * np.eye(len(elements))


def reference_energy(structures: Structures, references: Floats) -> Floats:
    """(S,) eV, sum of the references (119,) over the atoms of each structure, in float64.

    Raises:
        RamifyError: an element without a reference.
    """
    energy = _sum_per_structure(references[structures.numbers], structures.n_atoms)
    if np.isnan(energy).any():
        unknown = np.unique(structures.numbers[np.isnan(references[structures.numbers])])
        names = ", ".join(SYMBOLS[number] for number in unknown)
        example = structures.name(int(np.flatnonzero(np.isnan(energy))[0]))
        raise RamifyError(
            f"no reference energy for {names} (e.g. in {example}): the training split does not contain it",
            fix="predict only structures of elements in the training data",
        )
    return energy


def _fractions(n_atoms: NDArray[np.int64], column: NDArray[np.int64], elements: int) -> Floats:
    """(S, E) fraction of each element among the atoms of each structure."""
    structure = np.repeat(np.arange(len(n_atoms)), n_atoms)
    counts = np.bincount(structure * elements + column, minlength=len(n_atoms) * elements)
    fractions: Floats = counts.reshape(len(n_atoms), elements) / n_atoms[:, None]
    return fractions


def _sum_per_structure(values: Floats, n_atoms: NDArray[np.integer]) -> Floats:
    """(S,) sums over atoms; structures without atoms are allowed."""
    structure = np.repeat(np.arange(len(n_atoms)), n_atoms)
    total: Floats = np.bincount(structure, weights=values, minlength=len(n_atoms)).astype(np.float64, copy=False)
    return total
