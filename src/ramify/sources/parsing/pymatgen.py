"""Structures in the dictionary form of pymatgen with VASP labels, as in MPtrj, Alexandria and mlearn."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from ase.units import GPa
from numpy.typing import NDArray

from ramify.elements import NUMBERS
from ramify.sources.chunks import (
    MALFORMED_ENERGY,
    MALFORMED_FORCES,
    MALFORMED_STRESS,
    MALFORMED_STRUCTURE,
    NON_FINITE,
    NOT_COMPUTED,
    index_names,
)
from ramify.sources.quarantine import Quarantine
from ramify.structures import Structures

VASP_STRESS = -0.1 * GPa
"""kBar with compression positive (VASP's sign) to eV/Å³ with tension positive."""

BATCH_ATOMS = 500
"""Atoms converted at once: enough to make NumPy's overhead per call small, few enough that the parsed objects are
short-lived (with 4,000, garbage collection takes as long as everything else)."""


class Frame(NamedTuple):
    """One labelled structure as parsed from JSON.

    Attributes:
        structure: dictionary of pymatgen: lattice.matrix, lattice.pbc (absent in old files: periodic along all three),
            sites with species and xyz (or abc).
        energy: total energy, eV.
        forces: one row of three per site, eV/Å; None if the file has none.
        stress: 3x3 kBar in VASP's sign; None if the file has none.
        group: name of the group, which is never split.
        origin: the file and the path inside it.
        row: position inside the origin.
    """

    structure: dict[str, Any]
    energy: float | None
    forces: Sequence[Sequence[float]] | None
    stress: Sequence[Sequence[float]] | None
    group: str
    origin: str
    row: int


def charge_of(structure: Any) -> Any:
    """Charge that a structure states, in e; None if it states none."""
    return structure.get("charge") if isinstance(structure, dict) else None


class _UnusableError(Exception):
    """A frame cannot be used; the arguments are reason and detail."""


def convert(frames: Iterator[Frame], quarantine: Quarantine) -> Iterator[Structures]:
    """Converts frames to `Structures` (small parts, to be merged); unusable frames are added to the quarantine."""
    waiting: list[Frame] = []
    atoms = 0
    for frame in frames:
        waiting.append(frame)
        atoms += len(frame.forces or ()) or 100
        if atoms >= BATCH_ATOMS:
            yield from _convert(waiting, quarantine)
            waiting, atoms = [], 0
    yield from _convert(waiting, quarantine)


def _convert(frames: list[Frame], quarantine: Quarantine) -> Iterator[Structures]:
    """Converts all frames at once, or each alone if one of them is unusable."""
    if not frames:
        return
    try:
        yield _structures(frames)
    except _UnusableError as error:
        if len(frames) == 1:
            quarantine.add(f"{frames[0].origin}[{frames[0].row}]", *error.args)
            return
        for frame in frames:
            yield from _convert([frame], quarantine)


def _structures(frames: list[Frame]) -> Structures:
    try:
        sites = [frame.structure["sites"] for frame in frames]
        n_atoms = np.array([len(s) for s in sites], np.int64)
        if n_atoms.min() == 0:
            raise _UnusableError(MALFORMED_STRUCTURE, "no sites")
        lattices = [frame.structure["lattice"] for frame in frames]
        pbc = [lattice.get("pbc") or (True, True, True) for lattice in lattices]
        if any(len(lattice["matrix"]) != 3 or len(flags) != 3 for lattice, flags in zip(lattices, pbc, strict=True)):
            raise _UnusableError(MALFORMED_STRUCTURE, "lattice.matrix is not 3x3, or lattice.pbc not three flags")
        if any(flag not in (False, True) for flags in pbc for flag in flags):  # a non-empty string would be true
            raise _UnusableError(MALFORMED_STRUCTURE, f"lattice.pbc holds other than true and false: {pbc[0]}")
        cell = _rows([row for lattice in lattices for row in lattice["matrix"]], MALFORMED_STRUCTURE, "lattice.matrix")
        every_site = list(chain.from_iterable(sites))
        numbers = _numbers(every_site)
        positions = _positions(every_site, cell.reshape(-1, 3, 3), n_atoms)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise _UnusableError(MALFORMED_STRUCTURE, f"{type(error).__name__}: {error}") from error
    group, group_names = index_names(frame.group for frame in frames)
    origin, origin_names = index_names(frame.origin for frame in frames)
    return Structures.make(
        n_atoms=n_atoms,
        numbers=numbers,
        positions=positions,
        cell=cell.reshape(-1, 3, 3),
        pbc=pbc,
        energy=_energies(frames),
        forces=_forces(frames, n_atoms),
        stress=_stresses(frames),
        group=group,
        origin=origin,
        row=[frame.row for frame in frames],
        group_names=group_names,
        origin_names=origin_names,
    )


def _numbers(sites: list[dict[str, Any]]) -> NDArray[np.uint8]:
    species = [site["species"] for site in sites]
    if set(map(len, species)) != {1} or {s[0]["occu"] for s in species} != {1}:
        raise _UnusableError("partial occupancy", "a site that is not fully occupied by one element")
    symbols = [s[0]["element"] for s in species]
    try:
        return np.array([NUMBERS[symbol] for symbol in symbols], np.uint8)
    except KeyError as error:
        raise _UnusableError("unknown element", str(error)) from error


def _positions(
    sites: list[dict[str, Any]], cell: NDArray[np.float64], n_atoms: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Positions from xyz if given (abc may refer to another image), else from abc and the lattice."""
    if "xyz" in sites[0]:
        return _rows([site["xyz"] for site in sites], MALFORMED_STRUCTURE, "xyz")
    abc = _rows([site["abc"] for site in sites], MALFORMED_STRUCTURE, "abc")
    return np.asarray(np.einsum("ni,nij->nj", abc, np.repeat(cell, n_atoms, axis=0)))


def _energies(frames: list[Frame]) -> NDArray[np.float64]:
    energies = [frame.energy for frame in frames]
    if None in energies:
        raise _UnusableError(NOT_COMPUTED, "the energy is null or absent")
    for energy in energies:
        if type(energy) not in (int, float):  # neither text, which cannot be multiplied by the atoms, nor true or false
            raise _UnusableError(MALFORMED_ENERGY, f"energy {str(energy)[:60]!r} is not a number")
    array = np.array(energies, np.float64)
    if not np.isfinite(array).all():
        raise _UnusableError(NON_FINITE, "energy")
    return array


def _forces(frames: list[Frame], n_atoms: NDArray[np.int64]) -> NDArray[np.float64]:
    blank = [(np.nan, np.nan, np.nan)]
    given = [frame.forces for frame in frames]
    absent = [f is None for f in given]
    counts = [n if f is None else _length(f) for f, n in zip(given, n_atoms.tolist(), strict=True)]
    if counts != n_atoms.tolist():
        raise _UnusableError(MALFORMED_FORCES, f"{counts} rows of forces for {n_atoms.tolist()} atoms")
    if not any(absent):
        return _rows(list(chain.from_iterable(f for f in given if f is not None)), MALFORMED_FORCES, "forces")
    parts = [
        np.array(blank * n) if f is None else _rows(list(f), MALFORMED_FORCES, "forces")
        for f, n in zip(given, counts, strict=True)
    ]
    return np.concatenate(parts)


def _stresses(frames: list[Frame]) -> NDArray[np.float64]:
    stress = np.full((len(frames), 3, 3), np.nan)
    given = [i for i, frame in enumerate(frames) if frame.stress is not None]
    rows = [row for i in given for row in (frames[i].stress or ())]
    if any(_length(frames[i].stress) != 3 for i in given):
        raise _UnusableError(MALFORMED_STRESS, "not three rows")
    stress[given] = _rows(rows, MALFORMED_STRESS, "stress").reshape(-1, 3, 3) * VASP_STRESS
    return stress


def _length(value: Any) -> int:
    return len(value) if isinstance(value, list) else -1


def _rows(rows: list[Any], reason: str, name: str) -> NDArray[np.float64]:
    """Converts rows of three finite numbers each to (n, 3) float64."""
    try:
        lengths = set(map(len, rows))
        if not lengths <= {3}:
            raise _UnusableError(reason, f"{name}: rows of {sorted(lengths)} numbers instead of 3")
        array = np.fromiter(chain.from_iterable(rows), np.float64, 3 * len(rows)).reshape(-1, 3)
    except (TypeError, ValueError) as error:
        raise _UnusableError(reason, f"{name}: not a number ({error})") from error
    if not np.isfinite(array).all():
        if any(None in row for row in rows):  # NumPy converts null to NaN
            raise _UnusableError(reason, f"{name}: a null")
        raise _UnusableError(NON_FINITE if reason != MALFORMED_STRUCTURE else reason, f"{name}: NaN or infinite")
    return array
