"""Plausibility of the data given the recipe: units, total energies or energies per atom, placeholders.

The energy scale is compared with isolated atoms. All-electron total energies (`ramify.elements`) are a lower bound.
Energies with pseudopotentials are between it and zero, and their ratio to it differs between elements; a ratio that is
the same for all, and equals the ratio of two units, reveals the unit (`ramify.sources.units`).
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ramify.elements import all_electron_energy
from ramify.errors import RamifyError
from ramify.packing import evenly
from ramify.prepare.checks.gates import LARGE_FORCE, TOO_CLOSE
from ramify.prepare.staging import Staged
from ramify.sources.units import BELOW_ALL, ENERGY_UNITS, same_ratio, unit_of_ratio
from ramify.store.manifest import Finding
from ramify.structures import atom_rows

Floats = NDArray[np.float64]

SAMPLE = 5000
"""Maximum number of structures examined."""
ENOUGH = 20
"""Minimum number of structures for a judgement."""
PER_ATOM_FIT = 0.1
"""Relative spread below which energies are considered independent of size."""
SOME = 0.01
"""Minimum fraction of exact zeros for a warning: fewer are dissociated pairs, or rounded to zero."""
CLEARER = 4
"""Factor by which one explanation must be better than the other."""
RESOLVED = 1e-4
"""eV/atom, spacing of energies above which single precision is a finding: a tenth of an accurate model's error."""
UNBALANCED = 0.1
"""Maximum ratio of the mean force of a structure to the root mean square force: the mean is zero if all forces are
present (two dozen datasets have up to 3e-4)."""
DISTANCE = (0.6, 1.6)
"""Median distance of the closest atoms over twice the mean covalent radius. Lengths in bohr read as Å give 1.5 to 2.1,
the reverse about 0.5; two dozen datasets give 0.80 to 1.00."""
MANY = 0.2
"""Fraction of records failing a gate for single structures above which the unit is doubtful."""


def findings(dataset: str, staged: Staged, keep: NDArray[np.bool_], dropped: dict[str, int]) -> list[Finding]:
    """Finds implausible data; one finding each, with the recipe key that corrects it.

    Args:
        dataset: name of the dataset.
        staged: all structures that passed the gates for single structures.
        keep: (S,) whether each is kept.
        dropped: number of records left out, by reason.

    Raises:
        RamifyError: energies are below those of all-electron atoms, which is impossible.
    """
    found = [*_left_out(dropped, len(staged))]
    kept = np.flatnonzero(keep)
    rows = kept[evenly(len(kept), SAMPLE)]
    if len(rows) < ENOUGH:
        return found
    found += _energies(dataset, staged, rows)
    for check in (_forces, _stress, _lengths):
        found += check(staged, rows)
    return found


def _left_out(dropped: dict[str, int], passed: int) -> Iterator[Finding]:
    total = passed + sum(dropped.values())
    for reason, unit, example in ((LARGE_FORCE, "forces", "kcal/mol/Å"), (TOO_CLOSE, "length", "Å")):
        count = dropped.get(reason, 0)
        if count >= ENOUGH and count > MANY * total:
            yield Finding(
                text=f"{count} of {total} records were left out for '{reason}': the unit of the {unit} may be another",
                fix=f"state it, e.g. `units: {{{unit}: {example}}}`, or correct `gates`",
            )


def _energies(dataset: str, staged: Staged, rows: NDArray[np.int64]) -> Iterator[Finding]:
    energy, n_atoms = staged.column("energy")[rows].astype(np.float64), staged.n_atoms[rows].astype(np.float64)
    numbers = staged.numbers_of(rows)
    first = np.cumsum(staged.n_atoms[rows].astype(np.int64)) - staged.n_atoms[rows]
    atoms = np.add.reduceat(all_electron_energy()[numbers], first)
    zeros = int(((energy == 0) & (n_atoms > 1)).sum())
    if zeros > max(1, SOME * len(rows)):
        yield Finding(
            text=f"{zeros} of {len(rows)} energies are exactly 0: they may not have been computed",
            fix="`zeros_are_absent: [energy]` leaves them out; or state the right `energy_key`",
        )
    yield from _precision(energy, n_atoms)
    elements = len(np.unique(numbers))
    part = np.where(energy == 0, 1e-12, energy / atoms)  # its inverse is looked at too
    middle = float(np.median(part))
    if middle > BELOW_ALL:
        unit = unit_of_ratio(1 / part) or unit_of_ratio(n_atoms / part)
        raise RamifyError(
            f"dataset '{dataset}': energies are {middle:.4g} times the total energies of all atoms with all their "
            f"electrons (median of {len(rows)} structures); nothing lies below those",
            fix=f"units: {{energy: {unit}}}" if unit else "check `units` and `energy_is_per_atom`",
        )
    if elements > 1:
        if unit := unit_of_ratio(1 / part):
            yield Finding(
                text=f"energies are those of all-electron atoms in {unit} ({middle:.4g} of those in eV)",
                fix=f"units: {{energy: {unit}}}",
            )
            return
        if same_ratio(part * n_atoms, 1.0) and not same_ratio(part, 1.0):
            yield Finding(
                text="energies are those of all-electron atoms over the number of atoms", fix="energy_is_per_atom: true"
            )
            return
        if same_ratio(part / n_atoms, 1.0) and not same_ratio(part, 1.0):
            yield Finding(
                text="energies are those of all-electron atoms times the number of atoms",
                fix="energy_is_per_atom: false",
            )
            return
    yield from _extensive(energy, n_atoms, numbers, first)


def _precision(energy: Floats, n_atoms: Floats) -> Iterator[Finding]:
    """Finds total energies that were stored in single precision in any of the units, if its spacing matters."""
    for value in ENERGY_UNITS.values():
        stored = energy / value
        single = stored.astype(np.float32)
        apart = float(np.median(np.spacing(np.abs(single)).astype(np.float64) * value / n_atoms))
        if apart > RESOLVED and (np.abs(stored - single) <= 4 * np.spacing(np.abs(stored))).all():
            yield Finding(
                text=f"energies were stored in single precision (float32), whose steps are {apart:.2g} eV/atom here",
                fix="write them in double precision (float64), or relative to isolated atoms",
            )
            return


def _extensive(
    energy: Floats, n_atoms: Floats, numbers: NDArray[np.uint8], first: NDArray[np.int64]
) -> Iterator[Finding]:
    """Checks that energies are proportional to the number of atoms, if sizes differ."""
    if np.quantile(n_atoms, 0.9) < 1.5 * np.quantile(n_atoms, 0.1):
        return
    present, column = np.unique(numbers, return_inverse=True)
    if len(n_atoms) < 3 * len(present):
        return
    structure = np.repeat(np.arange(len(n_atoms)), np.diff(np.append(first, len(numbers))))
    counts = np.bincount(structure * len(present) + column, minlength=len(n_atoms) * len(present))
    fractions = counts.reshape(len(n_atoms), -1) / n_atoms[:, None]
    spread = {}
    for power in (0, 1, 2):
        scaled = energy / n_atoms**power
        residual = scaled - fractions @ np.linalg.lstsq(fractions, scaled, rcond=None)[0]
        spread[power] = float(np.median(np.abs(residual)) / max(np.median(np.abs(scaled)), 1e-12))
    for power, what, value in ((0, "do not grow with", "true"), (2, "grow with the square of", "false")):
        if spread[power] < PER_ATOM_FIT and CLEARER * spread[power] < spread[1]:
            yield Finding(text=f"energies {what} the number of atoms", fix=f"energy_is_per_atom: {value}")


def _forces(staged: Staged, rows: NDArray[np.int64]) -> Iterator[Finding]:
    n_atoms = staged.n_atoms[rows].astype(np.int64)
    forces = np.take(staged.column("forces"), atom_rows(staged.offsets[rows], n_atoms), axis=0).astype(np.float64)
    first = np.cumsum(n_atoms) - n_atoms
    square = np.add.reduceat(np.einsum("nc,nc->n", forces, forces), first)
    labelled = np.isfinite(square)
    if labelled.sum() < ENOUGH:
        return
    zero = labelled & (square == 0) & (n_atoms > 1)
    periodic = staged.column("pbc")[rows].any(axis=1)
    molecules = int((zero & ~periodic).sum())
    many = labelled.sum() >= ENOUGH and zero.sum() > 0.9 * labelled.sum()
    if molecules > max(1, SOME * labelled.sum()) or many:
        count = int(zero.sum()) if many else molecules
        yield Finding(
            text=f"all forces of {count} of {int(labelled.sum())} structures are exactly 0, where no symmetry explains "
            "it: they may not have been computed",
            fix="`zeros_are_absent: [forces]` leaves them out; or state the right `forces_key` (null reads none)",
        )
    usable = labelled & (square > 0) & (n_atoms > 1)
    if usable.sum() < ENOUGH:
        return
    net = np.linalg.norm(np.add.reduceat(forces, first, axis=0), axis=1)[usable] / n_atoms[usable]
    share = float(np.median(net / np.sqrt(square[usable] / n_atoms[usable])))
    if share > UNBALANCED:
        yield Finding(
            text=f"the forces of a structure do not add up to zero (their mean is {share:.2g} of a typical force): "
            "some are missing, changed, or of other atoms",
            fix="state the `forces_key` of the unconstrained forces",
        )


def _stress(staged: Staged, rows: NDArray[np.int64]) -> Iterator[Finding]:
    stress = staged.column("stress")[rows]
    labelled, zero = np.isfinite(stress).all(axis=(1, 2)), (stress == 0).all(axis=(1, 2))
    count = int(zero.sum())
    if count > 1:
        yield Finding(
            text=f"{count} of {int(labelled.sum())} stresses are exactly 0: they may not have been computed",
            fix="`zeros_are_absent: [stress]` leaves them out; `stress_key: null` reads none",
        )


def _lengths(staged: Staged, rows: NDArray[np.int64]) -> Iterator[Finding]:
    closest = staged.scalars["closest"][rows].astype(np.float64)
    bonds = (closest / (2 * staged.radii[staged.scalars["composition"][rows]]))[np.isfinite(closest)]
    numbers = np.unique(staged.numbers_of(rows))
    if len(bonds) < ENOUGH or np.isin(numbers, (2, 10, 18, 36, 54, 86)).any():  # noble gases do not bind
        return
    middle = float(np.median(bonds))
    if not DISTANCE[0] <= middle <= DISTANCE[1]:
        unit = "bohr" if middle > 1 else "Å"
        yield Finding(
            text=f"the closest atoms of a structure are {middle:.2g} times as far apart as covalent radii say (median)",
            fix=f"check the unit of lengths, e.g. `units: {{length: {unit}}}`",
        )
