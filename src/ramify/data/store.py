"""`Store`: a prepared dataset on disk, as flat columns that are mapped into memory, never loaded whole."""

import builtins
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ramify.data.columns import COLUMNS, ColumnType
from ramify.data.manifest import REBUILD, SPLITS, Column, Manifest, read_manifest
from ramify.elements import MAX_NUMBER, NUMBERS
from ramify.errors import RamifyError
from ramify.files import sha256
from ramify.recipe import Scale
from ramify.structures import Split, Structures, atom_rows


@dataclass(frozen=True, slots=True)
class LabelCounts:
    """How many labels some structures of a dataset have, by the rule that the objective counts them by.

    Attributes:
        energy: structures with an energy.
        forces: atoms with a force.
        stress: structures with a stress and a cell; 0 where it is not trained on.
    """

    energy: int
    forces: int
    stress: int


class Store:
    """One prepared dataset. Structures lie in the order of their splits, so that a split is a range of rows.

    Use `Store.open`.

    Attributes:
        path: the folder.
        manifest: its `manifest.json`.
        n_atoms: (S,) int64, atoms of each structure, in memory.
        references: (119,) eV by atomic number, NaN where the training split does not hold the element.
        fitted: the references were fitted to this dataset; False where they are those of a branch, see `on_scale`.
    """

    def __init__(
        self, path: Path, manifest: Manifest, columns: dict[str, NDArray[Any]], *, fitted: bool = True
    ) -> None:
        self.path, self.fitted = path, fitted
        self.manifest = manifest
        self.n_atoms: NDArray[np.int64] = columns["n_atoms"].astype(np.int64)
        self.references = np.full(MAX_NUMBER + 1, np.nan)
        for symbol, energy in manifest.references.energies.items():
            self.references[NUMBERS[symbol]] = energy
        self._columns = columns
        self._offsets = np.concatenate([[0], np.cumsum(self.n_atoms)])

    @classmethod
    def open(cls, path: Path | str, *, verify: bool = False) -> Self:
        """Maps the store in folder `path`.

        Args:
            path: the folder.
            verify: read every file and compare its checksum (as fast as the disk); without it only the sizes, types
                and shapes are compared.

        Raises:
            RamifyError: no store there, a newer version, or damaged.
        """
        path = Path(path)
        manifest = read_manifest(path)
        if set(manifest.columns) != set(COLUMNS):
            odd = ", ".join(sorted(set(manifest.columns) ^ set(COLUMNS)))
            raise RamifyError(f"{path}: the manifest names other columns than a store has ({odd})", fix=REBUILD)
        S = manifest.structures
        N = sum(split.atoms for split in manifest.splits.values())
        columns = {name: _map(path, name, manifest.columns[name], COLUMNS[name], S, N) for name in COLUMNS}
        if verify:
            checksums = {f"{name}.npy": column.sha256 for name, column in manifest.columns.items()}
            for file, expected in (checksums | {"names.json": manifest.names_sha256}).items():
                if not (path / file).is_file() or sha256(path / file) != expected:
                    raise RamifyError(f"{path / file}: damaged, its checksum is not the manifest's", fix=REBUILD)
        store = cls(path, manifest, columns)
        if (store.n_atoms < 1).any() or store._offsets[-1] != N:
            raise RamifyError(f"{path / 'n_atoms.npy'}: damaged, its atoms do not add up to {N}", fix=REBUILD)
        return store

    def __len__(self) -> int:
        return len(self.n_atoms)

    def range(self, split: str) -> builtins.range:
        """Rows of the split `train`, `val` or `test`."""
        if split not in SPLITS:
            raise RamifyError(f"'{split}' is not a split; accepted: {', '.join(SPLITS)}")
        at = list(SPLITS).index(split)
        counts = [self.manifest.splits[name].structures for name in SPLITS]
        return builtins.range(sum(counts[:at]), sum(counts[: at + 1]))

    def take(self, rows: NDArray[np.integer] | Sequence[int]) -> Structures:
        """The structures at `rows` (T,), in that order; positions, forces, cell and stress in float32."""
        row = np.asarray(rows, np.int64)
        n_atoms = self.n_atoms[row]
        atoms = atom_rows(self._offsets[row], n_atoms)
        column = self._columns
        return Structures(
            n_atoms=n_atoms,
            numbers=np.take(column["numbers"], atoms),
            positions=np.take(column["positions"], atoms, axis=0),
            cell=np.take(column["cell"], row, axis=0),
            pbc=np.take(column["pbc"], row, axis=0),
            energy=np.take(column["energy"], row),
            forces=np.take(column["forces"], atoms, axis=0),
            stress=np.take(column["stress"], row, axis=0),
            split=np.searchsorted(self._split_ends, row, side="right").astype(np.uint8) + np.uint8(Split.TRAIN),
            group=np.take(column["group"], row).astype(np.int64),
            origin=np.take(column["origin"], row).astype(np.int64),
            row=np.take(column["row"], row),
            group_names=self._names["groups"],
            origin_names=self._names["origins"],
        )

    def on_scale(self, scale: Scale) -> Self:
        """The same structures, measured by the references and units of a branch that was trained before.

        What else the manifest says of references and statistics stays that of the references fitted to these data.

        Raises:
            RamifyError: the store holds an element that the scale has no reference energy of.
        """
        if strange := sorted(set(self.manifest.elements) - set(scale.references)):
            raise RamifyError(
                f"dataset '{self.manifest.dataset}' holds {', '.join(strange)}; the branch that it is to go on with "
                f"has reference energies of {' '.join(scale.references)} only",
                fix="give the dataset a branch of its own (--mode new-branch), or take those structures out",
            )
        stated = self.manifest.references.model_copy(update={"energies": dict(scale.references)})
        units = {"energy_std": scale.energy, "forces_mae": scale.forces}
        statistics = self.manifest.statistics.model_copy(update=units)
        update = {"references": stated, "statistics": statistics}
        return type(self)(self.path, self.manifest.model_copy(update=update), self._columns, fitted=False)

    def label_counts(self, rows: NDArray[np.int64], *, stress: bool) -> LabelCounts:
        """How many labels the structures at `rows` (T,) have; where all or none of the store have one, nothing is read.

        Args:
            rows: of the store, repeats count again.
            stress: whether to count those of stress, for which cells are read.
        """
        labels, whole = self.manifest.labels, len(self)
        energy, n_atoms = len(rows), self.n_atoms[rows]
        if labels.energy < whole:
            energy = int((~np.isnan(self._columns["energy"][rows])).sum())
        forces = int(n_atoms.sum()) if labels.forces else 0
        if 0 < labels.forces < whole:  # whole or absent (`ramify.data.gates`): the first atom stands for all
            forces = int(n_atoms[~np.isnan(self._columns["forces"][self._offsets[rows], 0])].sum())
        if not stress or not labels.stress:
            return LabelCounts(energy, forces, 0)
        known = ~np.isnan(self._columns["stress"][rows]).any(axis=(1, 2))
        has_cell = np.linalg.det(self._columns["cell"][rows].astype(np.float64)) != 0
        return LabelCounts(energy, forces, int((known & has_cell).sum()))

    @cached_property
    def _split_ends(self) -> NDArray[np.int64]:
        return np.array([self.range(name).stop for name in SPLITS])

    @cached_property
    def _names(self) -> dict[str, tuple[str, ...]]:
        """Tables that the columns `group` and `origin` point into."""
        try:
            content = json.loads((self.path / "names.json").read_text(encoding="utf-8"))
            return {key: tuple(content[key]) for key in ("groups", "origins")}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RamifyError(f"{self.path / 'names.json'}: damaged ({error})", fix=REBUILD) from None


def _map(folder: Path, name: str, stated: Column, kind: ColumnType, structures: int, atoms: int) -> NDArray[Any]:
    """One column as a read-only map, if its file is what the manifest says."""
    path = folder / f"{name}.npy"
    shape = kind.shape(structures, atoms)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise RamifyError(f"{path}: damaged or missing ({error})", fix=REBUILD) from None
    for shape_found, dtype in ((array.shape, array.dtype), (stated.shape, np.dtype(stated.dtype))):
        if shape_found != shape or dtype != np.dtype(kind.dtype):
            raise RamifyError(
                f"{path}: damaged, holds {dtype} {shape_found} instead of {np.dtype(kind.dtype)} {shape}", fix=REBUILD
            )
    size = path.stat().st_size
    if size != array.nbytes + int(getattr(array, "offset", 0)):
        raise RamifyError(f"{path}: damaged, {size} bytes are not what its header announces", fix=REBUILD)
    return np.asarray(array)  # a plain view of the map: indexing np.memmap itself is slower
