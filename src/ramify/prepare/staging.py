"""First pass of preparing a dataset: writes measured chunks to temporary files in source order.

About 50 bytes per structure stay in memory (for later decisions about all structures), none per atom.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import covalent_radii
from numpy.typing import NDArray

from ramify.labels import further
from ramify.prepare.checks.consistency import SlopeMeter
from ramify.prepare.checks.fingerprints import formula_hash
from ramify.prepare.read import Measured
from ramify.prepare.split import Elements, element_bits
from ramify.store.columns import Array, RawColumns, possible_columns
from ramify.structures import Structures, atom_rows

SCALARS: dict[str, Any] = {
    "sequence": np.uint64,
    "projection": np.float64,
    "composition": np.int32,
    "split": np.uint8,
    "max_force": np.float32,
    "closest": np.float32,
}


class Names:
    """Table of names in the order of first occurrence."""

    def __init__(self) -> None:
        self._position: dict[str, int] = {}

    def translate(self, index: NDArray[np.int64], names: tuple[str, ...]) -> NDArray[np.int64]:
        """Converts indices into `names` to indices into this table, to which the used names are added."""
        used, inverse = np.unique(index, return_inverse=True)
        numbers = [self._position.setdefault(names[u], len(self._position)) for u in used.tolist()]
        return np.array(numbers, np.int64)[inverse]

    def table(self) -> list[str]:
        """All names so far."""
        return list(self._position)


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """All structures that passed the gates for single structures, in source order.

    Columns are mapped on each access: copy the required rows and drop the map, to release its pages.

    Attributes:
        columns: the columns of the store on disk.
        n_atoms: (S,) int32, number of atoms of each structure.
        offsets: (S + 1,) index of the first atom of each structure.
        scalars: (S, ...) `sequence`, `projection` (see `Fingerprints`), `composition` (index), `split`, `max_force`
            (eV/Å), `closest` (Å).
        elements: (C, 2) the elements of each composition, see `element_bits`.
        formulas: (C,) hash of the reduced formula of each composition.
        radii: (C,) Å, radius of a sphere with the mean volume of the spheres with the covalent radii of its atoms.
        groups: names of the groups.
        origins: names of the origins.
    """

    columns: RawColumns
    n_atoms: NDArray[np.int32]
    offsets: NDArray[np.int64]
    scalars: dict[str, Array]
    elements: Elements
    formulas: NDArray[np.uint64]
    radii: NDArray[np.float64]
    groups: list[str]
    origins: list[str]

    def __len__(self) -> int:
        return len(self.n_atoms)

    def column(self, name: str) -> Array:
        """A column of all structures or atoms, with the units of `Structures`; NaN where there is no label."""
        return self.columns.map(name)

    def numbers_of(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Concatenated atomic numbers of the structures at `rows`."""
        return np.take(self.column("numbers"), atom_rows(self.offsets[rows], self.n_atoms[rows].astype(np.int64)))

    def name(self, index: int) -> str:
        """Origin and row of structure `index`, as in `Structures.name`."""
        return f"{self.origins[self.column('origin')[index]]}[{self.column('row')[index]}]"


class Staging:
    """Collects chunks.

    Args:
        folder: an empty folder for the columns.
    """

    def __init__(self, folder: Path) -> None:
        self.slope = SlopeMeter()
        self._columns = RawColumns(folder)
        self._scalars: dict[str, list[Array]] = {name: [] for name in SCALARS}
        self._groups, self._origins = Names(), Names()
        self._compositions: dict[int, int] = {}
        self._elements: list[Elements] = []
        self._formulas: list[NDArray[np.uint64]] = []
        self._radii: list[NDArray[np.float64]] = []

    def add(self, measured: Measured) -> None:
        """Appends a chunk, in source order."""
        chunk, prints = measured.structures, measured.prints
        if not len(chunk):
            return
        if self.slope.searching:
            self.slope.add(chunk, prints)
        else:
            self.slope.take_over(measured.sampled)
        scalars: dict[str, Array] = {
            "sequence": prints.sequence,
            "projection": prints.projection,
            "composition": self._composition_index(prints.composition, chunk),
            "split": chunk.split,
            "max_force": measured.max_force,
            "closest": measured.closest,
        }
        for name, values in scalars.items():
            self._scalars[name].append(values.astype(SCALARS[name]))
        pieces = {name: chunk.label(name) if name in further() else getattr(chunk, name) for name in possible_columns()}
        pieces["group"] = self._groups.translate(chunk.group, chunk.group_names)
        pieces["origin"] = self._origins.translate(chunk.origin, chunk.origin_names)
        self._columns.append(pieces)

    def close(self) -> None:
        """Closes the files."""
        self._columns.close()

    def finish(self) -> Staged:
        """Returns all collected structures, memory-mapped."""
        self.close()
        n_atoms = np.array(self._columns.map("n_atoms"))
        scalars = {}
        for name, kind in SCALARS.items():  # one at a time, to limit the memory for pieces and joined arrays
            scalars[name] = _joined(self._scalars.pop(name), kind)
        return Staged(
            columns=self._columns,
            n_atoms=n_atoms,
            offsets=np.concatenate([[0], np.cumsum(n_atoms, dtype=np.int64)]),
            scalars=scalars,
            elements=np.concatenate(self._elements) if self._elements else np.zeros((0, 2), np.uint64),
            formulas=_joined(self._formulas, np.uint64),
            radii=_joined(self._radii, np.float64),
            groups=self._groups.table(),
            origins=self._origins.table(),
        )

    def _composition_index(self, hashes: NDArray[np.uint64], chunk: Structures) -> NDArray[np.int64]:
        """(S,) index of each composition; stores the elements of new ones."""
        unique, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
        known = len(self._compositions)
        index = np.array([self._compositions.setdefault(h, len(self._compositions)) for h in unique.tolist()])
        new = index >= known
        if new.any():
            examples = chunk.take(first[new])
            bits = element_bits(examples.numbers)
            self._elements.append(np.bitwise_or.reduceat(bits, examples.offsets[:-1], axis=0))
            self._formulas.append(formula_hash(examples))
            cubes = np.add.reduceat(covalent_radii[examples.numbers] ** 3, examples.offsets[:-1])
            self._radii.append(np.cbrt(cubes / examples.n_atoms))
        numbered: NDArray[np.int64] = index[inverse]
        return numbered


def _joined(pieces: Iterable[Array], kind: Any) -> Array:
    pieces = list(pieces)
    return np.concatenate(pieces) if pieces else np.zeros(0, kind)
