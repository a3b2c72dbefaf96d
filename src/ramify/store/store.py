"""`Store`: a prepared dataset as flat columns, memory-mapped or in memory shared by the processes of a run."""

import builtins
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ramify.elements import MAX_NUMBER, NUMBERS
from ramify.errors import RamifyError
from ramify.files import parse_json
from ramify.labels import BUILT_IN
from ramify.notebook import html_table
from ramify.recipe import Scale
from ramify.store.columns import COLUMNS, STATE_COLUMNS
from ramify.store.files import MappedFiles, damaged
from ramify.store.files import verify as verify_files
from ramify.store.manifest import REBUILD, SPLITS, Manifest
from ramify.store.open_files import open_files
from ramify.store.shared.node_memory import NodeMemory
from ramify.store.shared.shard import shared_n_atoms
from ramify.store.storage import TAKEN, ArrayStorage, ChecksumOnRead, ColumnStorage, LazyStorage, Rows
from ramify.structures import Split, Structures


@dataclass(frozen=True, slots=True)
class LabelCounts:
    """Numbers of labels of some structures of a dataset, as counted by the objective.

    Attributes:
        energy: number of structures with an energy.
        forces: number of atoms with a force.
        stress: number of structures with a stress and a cell; 0 if it is not trained on.
        labels: number of structures with each further label of the dataset.
    """

    energy: int
    forces: int
    stress: int
    labels: Mapping[str, int] = field(default_factory=dict)

    def of(self, label: str) -> int:
        """Number of a label by its name."""
        return int(getattr(self, label)) if label in BUILT_IN else self.labels.get(label, 0)


class Store:
    """A prepared dataset. Structures are sorted by split, so that a split is a range of rows.

    Use `Store.open`, or `ramify.store.shared.distributed.open_distributed`.

    Args:
        path: folder of the store.
        manifest: its `manifest.json`.
        n_atoms: (S,) int32, number of atoms of each structure.
        storage: of the columns.

    Attributes:
        path: folder of the store.
        manifest: its `manifest.json`.
        n_atoms: (S,) int32, number of atoms of each structure; read-only.
        references: (119,) eV by atomic number, NaN for elements that are absent from the training split.
        fitted: whether the references were fitted to this dataset; False if they are those of a branch, see `on_scale`.

    Raises:
        RamifyError: the numbers of atoms do not match the manifest.
    """

    def __init__(
        self, path: Path, manifest: Manifest, n_atoms: NDArray[np.int32], storage: ColumnStorage, *, fitted: bool = True
    ) -> None:
        self.path, self.fitted = path, fitted
        self.manifest = manifest
        self.n_atoms = n_atoms
        self.references = np.full(MAX_NUMBER + 1, np.nan)
        for symbol, energy in manifest.references.energies.items():
            self.references[NUMBERS[symbol]] = energy
        self._storage = storage
        self._states = tuple(name for name in STATE_COLUMNS if name in manifest.columns)
        self._further = tuple(name for name in manifest.columns if name not in COLUMNS | STATE_COLUMNS)
        if n_atoms.min(initial=1) < 1 or n_atoms.sum(dtype=np.int64) != manifest.atoms:
            raise damaged(path, f"the atoms of its structures do not add up to {manifest.atoms}")

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        verify: bool = False,
        preload: bool = False,
        later: bool = False,
        progress: Callable[[int], None] = lambda done: None,
    ) -> Self:
        """Opens the store in folder `path`.

        A store of the form `mapped` is memory-mapped, and every block is verified on first read. A store of the form
        `adios` is read as a whole into memory that the processes of the node share.

        Args:
            path: folder of the store.
            verify: first read all files and verify all checksums (at the speed of the disk).
            preload: read also a mapped store sequentially into shared memory.
            later: read into shared memory on first access or by `load`, not now.
            progress: called with the number of bytes read into shared memory.

        Raises:
            RamifyError: no store, a newer version, damaged, or not enough memory.
        """
        with open_files(path) as files:
            if verify:
                verify_files(files)
            if isinstance(files, MappedFiles) and not preload:
                columns = {name: files.map(name) for name in files.manifest.columns}
                return cls(
                    files.path,
                    files.manifest,
                    columns["n_atoms"],
                    ArrayStorage(columns, checksums_on_read(files, columns)),
                )
            n_atoms, release = shared_n_atoms(files)
            storage = LazyStorage(lambda: _read(files.path, n_atoms, progress), release)
            try:
                store = cls(files.path, files.manifest, n_atoms, storage)
                if not later:
                    store.load()
            except BaseException:
                storage.close()  # the exception would otherwise keep the numbers of atoms in shared memory
                raise
        return store

    def __len__(self) -> int:
        return len(self.n_atoms)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _repr_html_(self) -> str:
        """In Jupyter: the splits, with the level of theory and the elements."""
        rows = [(name, c.structures, c.atoms, c.groups) for name, c in self.manifest.splits.items()]
        title = f"Store {self.manifest.dataset}: {self.manifest.theory}; {', '.join(self.manifest.elements)}"
        return html_table(title, ("split", "structures", "atoms", "groups"), rows)

    def load(self) -> None:
        """Reads the data into shared memory now rather than on first access.

        Raises:
            RamifyError: damaged, or not enough memory.
        """
        self._storage.load()

    def close(self) -> None:
        """Releases shared memory; structures taken before remain valid."""
        self._storage.close()

    def range(self, split: str) -> builtins.range:
        """Rows of the split `train`, `val` or `test`."""
        if split not in SPLITS:
            raise RamifyError(f"'{split}' is not a split; accepted: {', '.join(SPLITS)}")
        at = list(SPLITS).index(split)
        counts = [self.manifest.splits[name].structures for name in SPLITS]
        return builtins.range(sum(counts[:at]), sum(counts[: at + 1]))

    def take(self, rows: NDArray[np.integer] | Sequence[int]) -> Structures:
        """Reads the structures at `rows` (T,), in that order; positions, forces, cell and stress in float32.

        Raises:
            RamifyError: damaged data.
        """
        row = np.asarray(rows, np.int64)
        n_atoms = self.n_atoms.take(row).astype(np.int64)
        taken = self._storage.take(row, n_atoms, (*TAKEN, *self._states, *self._further))
        for name in STATE_COLUMNS:
            stated = taken.get(name)
            taken[name] = np.full(len(row), np.nan) if stated is None else stated.astype(np.float64)
        labels = {name: taken.pop(name) for name in self._further}
        if taken["numbers"].max(initial=1) > MAX_NUMBER or taken["numbers"].min(initial=1) < 1:
            raise damaged(self.path, f"column numbers has values outside 1 to {MAX_NUMBER}")
        for name, table in (("group", "groups"), ("origin", "origins")):
            taken[name] = taken[name].astype(np.int64)
            if len(row) and not 0 <= taken[name].min() <= taken[name].max() < len(self._names[table]):
                raise damaged(self.path, f"column {name} has an index outside the {table} of names.json")
        return Structures(
            n_atoms=n_atoms,
            split=np.searchsorted(self._split_ends, row, side="right").astype(np.uint8) + np.uint8(Split.TRAIN),
            group_names=self._names["groups"],
            origin_names=self._names["origins"],
            labels=labels,
            **taken,
        )

    def on_scale(self, scale: Scale) -> Self:
        """Returns the same structures with the references and scales of a pretrained branch.

        Other references and statistics in the manifest stay those fitted to this dataset.

        Raises:
            RamifyError: an element of the store has no reference energy in the scale.
        """
        if strange := sorted(set(self.manifest.elements) - set(scale.references)):
            raise RamifyError(
                f"dataset '{self.manifest.dataset}' holds {', '.join(strange)}; the branch that it continues "
                f"has reference energies of {' '.join(scale.references)} only",
                fix="use a new branch for the dataset (--mode new-branch), or remove those structures",
            )
        stated = self.manifest.references.model_copy(update={"energies": dict(scale.references)})
        units = {"energy_std": scale.energy, "forces_mae": scale.forces}
        statistics = self.manifest.statistics.model_copy(update=units)
        update = {"references": stated, "statistics": statistics}
        return type(self)(self.path, self.manifest.model_copy(update=update), self.n_atoms, self._storage, fitted=False)

    def label_counts(self, rows: NDArray[np.int64], *, stress: bool) -> LabelCounts:
        """Counts the labels of the structures at `rows` (T,); reads nothing if all or none of the store have a label.

        Args:
            rows: rows of the store; repeated rows are counted repeatedly.
            stress: whether to count stresses, which needs cells.
        """
        labels, whole = self.manifest.labels, len(self)
        energy, n_atoms = len(rows), self.n_atoms[rows]
        if labels.energy < whole:
            energy = int((~np.isnan(self._some(rows, "energy")["energy"])).sum())
        forces = int(n_atoms.sum()) if labels.forces else 0
        if 0 < labels.forces < whole:  # all or none of its atoms: the first is sufficient
            first = np.cumsum(n_atoms, dtype=np.int64) - n_atoms
            forces = int(n_atoms[~np.isnan(self._some(rows, "forces")["forces"][first, 0])].sum())
        further = {name: int((~np.isnan(self._some(rows, name)[name])).sum()) for name in self._further}
        if not stress or not labels.stress:
            return LabelCounts(energy, forces, 0, further)
        found = self._some(rows, "stress", "cell")
        known = ~np.isnan(found["stress"]).any(axis=(1, 2))
        has_cell = np.linalg.det(found["cell"].astype(np.float64)) != 0
        return LabelCounts(energy, forces, int((known & has_cell).sum()), further)

    def _some(self, rows: NDArray[np.int64], *columns: str) -> dict[str, NDArray[Any]]:
        """Reads some columns of the structures at `rows`."""
        return self._storage.take(rows, self.n_atoms.take(rows).astype(np.int64), columns)

    @cached_property
    def _split_ends(self) -> NDArray[np.int64]:
        return np.array([self.range(name).stop for name in SPLITS])

    @cached_property
    def _names(self) -> dict[str, tuple[str, ...]]:
        """Tables of names for the columns `group` and `origin`."""
        try:
            content = parse_json((self.path / "names.json").read_bytes())
            return {key: tuple(map(str, content[key])) for key in ("groups", "origins")}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RamifyError(f"{self.path / 'names.json'}: damaged ({error})", fix=REBUILD) from None


def checksums_on_read(files: MappedFiles, columns: Mapping[str, NDArray[Any]]) -> Callable[[Rows, Rows, Rows], None]:
    """Creates the check of mapped columns on read; the numbers of atoms, which define offsets, are verified at once.

    Older stores without checksums of blocks are only checked by `verify`.
    """
    if files.manifest.blocks is None:
        return lambda rows, starts, n_atoms: None
    check = ChecksumOnRead(files, columns)
    check.whole("n_atoms")
    return check


def _read(path: Path, n_atoms: NDArray[np.int32], progress: Callable[[int], None]) -> ColumnStorage:
    """Reads all columns except the numbers of atoms into shared memory."""
    with open_files(path) as files:
        names = [name for name in files.manifest.columns if name != "n_atoms"]
        memory = NodeMemory(files, names, progress)
    return ArrayStorage({**memory.columns, "n_atoms": n_atoms}, release=memory.close)
