"""Conversion of records or small parts to chunks of `Structures`, with the checks common to all records."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from ase.formula import Formula
from numpy.typing import NDArray

from ramify.elements import MAX_NUMBER, SYMBOLS
from ramify.sources.base import CHUNK_ATOMS
from ramify.sources.quarantine import Quarantine
from ramify.structures import Structures

# Reasons common to the formats; records left out are counted by reason.
NOT_COMPUTED = "label not computed"
NON_FINITE = "non-finite label"
MALFORMED_ENERGY = "malformed energy"
MALFORMED_FORCES = "malformed forces"
MALFORMED_STRESS = "malformed stress"
MALFORMED_STRUCTURE = "malformed structure"
NO_CELL = "periodic without a cell"
NO_GROUP = "group not stated"
STRESS_WITHOUT_CELL = "stress without a cell, left out"


class UnusableError(Exception):
    """A record cannot be used.

    Args:
        reason: short fixed phrase, by which records are counted.
        detail: values that explain it.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def as_floats(value: Any, reason: str, name: str) -> NDArray[np.float64]:
    """Converts numbers of any shape to float64.

    Raises:
        UnusableError: with `reason`; `value` is text (`None`, `1.5D+01`), a boolean, ragged, or not a number.
    """
    try:
        array = np.asarray(value)
        if array.dtype.kind in "iuf":
            return array.astype(np.float64)
        if array.dtype.kind == "O":  # ragged, or with a null
            return np.asarray(value, np.float64)
    except (TypeError, ValueError) as error:
        raise UnusableError(reason, f"{name}: {error}") from error
    raise UnusableError(reason, f"{name} {str(value)[:60]!r} is not a number")


def check_numbers(numbers: NDArray[Any]) -> None:
    """Checks that (n,) atomic numbers are integers and belong to elements.

    Raises:
        UnusableError: invalid atomic numbers, or none.
    """
    if not len(numbers):
        raise UnusableError(MALFORMED_STRUCTURE, "no atoms")
    wrong = (numbers < 1) | (numbers > MAX_NUMBER) | (numbers != np.floor(numbers))
    if wrong.any():
        found = ", ".join(map(str, np.unique(numbers[wrong])[:5].tolist()))
        raise UnusableError(MALFORMED_STRUCTURE, f"atomic number {found} is not an element (1 to {MAX_NUMBER})")


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One structure of a format that stores structures individually, in eV, eV/Å, Å and eV/Å³ (tension positive).

    Attributes:
        numbers: (n,) atomic numbers.
        positions: (n, 3).
        energy: total energy; None where the file has none.
        forces: (n, 3); None where the file has none.
        stress: (3, 3); None where the file has none.
        charge: e; None where the file states none.
        spin: multiplicity; None where the file states none.
        cell: (3, 3), rows are lattice vectors; None for none.
        pbc: three booleans; None for no periodic axis.
        group: name of the group, which is never split.
        origin: the file and the path inside it.
        row: position inside the origin.
        labels: further labels by name, in the units of `ramify.labels`.
    """

    numbers: NDArray[np.integer]
    positions: NDArray[np.floating]
    energy: float | None
    forces: NDArray[np.floating] | None = None
    stress: NDArray[np.floating] | None = None
    charge: float | None = None
    spin: float | None = None
    cell: NDArray[np.floating] | None = None
    pbc: Any = None
    group: str
    origin: str
    row: int
    labels: Mapping[str, float] = field(default_factory=dict)

    def problem(self) -> tuple[str, str] | None:
        """Reason and detail if the record cannot be used, else None."""
        n = len(self.numbers)
        if n == 0 or np.shape(self.positions) != (n, 3) or not np.isfinite(self.positions).all():
            return MALFORMED_STRUCTURE, f"{n} atoms, positions of shape {np.shape(self.positions)}"
        if self.numbers.min() < 1 or self.numbers.max() > MAX_NUMBER:
            return MALFORMED_STRUCTURE, f"atomic numbers {self.numbers.min()} to {self.numbers.max()}"
        if np.any(self.pbc) and (self.cell is None or not np.any(self.cell, axis=1)[np.asarray(self.pbc)].all()):
            return NO_CELL, f"pbc {list(map(bool, self.pbc))} but no lattice vector along every periodic axis"
        if self.energy is None:
            return NOT_COMPUTED, "no energy"
        if self.forces is not None and np.shape(self.forces) != (n, 3):
            return MALFORMED_FORCES, f"{n} atoms, forces of shape {np.shape(self.forces)}"
        if self.stress is not None and np.shape(self.stress) != (3, 3):
            return MALFORMED_STRESS, f"stress of shape {np.shape(self.stress)}"
        built_in = (("energy", self.energy), ("forces", self.forces), ("stress", self.stress))
        for name, label in (*built_in, *self.labels.items()):
            if label is not None and not np.isfinite(label).all():
                return NON_FINITE, name
        return None


def chunked(records: Iterable[Record], quarantine: Quarantine) -> Iterator[Structures]:
    """Joins records to chunks of at most `CHUNK_ATOMS` atoms; unusable records are added to the quarantine."""
    waiting: list[Record] = []
    atoms = 0
    for record in records:
        if problem := record.problem():
            quarantine.add(f"{record.origin}[{record.row}]", *problem)
            continue
        if waiting and atoms + len(record.numbers) > CHUNK_ATOMS:
            yield _gather(waiting)
            waiting, atoms = [], 0
        waiting.append(record)
        atoms += len(record.numbers)
    if waiting:
        yield _gather(waiting)


def merged(parts: Iterable[Structures]) -> Iterator[Structures]:
    """Joins consecutive small parts to chunks of at most `CHUNK_ATOMS` atoms; empty parts are skipped."""
    waiting: list[Structures] = []
    atoms = 0
    for part in parts:
        if not len(part):
            continue
        if waiting and atoms + len(part.numbers) > CHUNK_ATOMS:
            yield waiting[0] if len(waiting) == 1 else Structures.concatenate(waiting)
            waiting, atoms = [], 0
        waiting.append(part)
        atoms += len(part.numbers)
    if waiting:
        yield waiting[0] if len(waiting) == 1 else Structures.concatenate(waiting)


def index_names(names: Iterable[str]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Converts names to indices into a table without repeats, e.g. the `group` and `group_names` of a chunk."""
    position: dict[str, int] = {}
    index = np.array([position.setdefault(name, len(position)) for name in names], np.int64)
    return index, tuple(position) or ("",)


def composition(numbers: NDArray[np.integer]) -> str:
    """Chemical formula in Hill order, e.g. `C2H6O`: the group of structures whose file states none."""
    return _hill(np.bincount(numbers).tobytes())


@lru_cache(maxsize=65536)
def _hill(counts: bytes) -> str:
    elements = enumerate(np.frombuffer(counts, np.int64).tolist())
    return str(Formula.from_dict({SYMBOLS[z]: n for z, n in elements if n}).format("hill"))


def _gather(records: list[Record]) -> Structures:
    group, group_names = index_names(r.group for r in records)
    origin, origin_names = index_names(r.origin for r in records)
    no_stress, no_cell, no_pbc = np.full((3, 3), np.nan), np.zeros((3, 3)), np.zeros(3, bool)
    forces = [np.full(np.shape(r.positions), np.nan) if r.forces is None else r.forces for r in records]
    named = dict.fromkeys(name for r in records for name in r.labels)
    return Structures.make(
        n_atoms=[len(r.numbers) for r in records],
        numbers=np.concatenate([r.numbers for r in records]),
        positions=np.concatenate([r.positions for r in records]),
        cell=np.array([no_cell if r.cell is None else r.cell for r in records]),
        pbc=np.array([no_pbc if r.pbc is None else r.pbc for r in records]),
        energy=[r.energy for r in records],
        forces=np.concatenate(forces),
        stress=np.array([no_stress if r.stress is None else r.stress for r in records]),
        charge=[np.nan if r.charge is None else r.charge for r in records],
        spin=[np.nan if r.spin is None else r.spin for r in records],
        group=group,
        origin=origin,
        row=[r.row for r in records],
        group_names=group_names,
        origin_names=origin_names,
        labels={name: [r.labels.get(name, np.nan) for r in records] for name in named},
    )
