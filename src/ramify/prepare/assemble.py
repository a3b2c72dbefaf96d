"""Second pass of preparing a dataset: writes staged structures in the order of their splits, and counts them."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ramify.elements import MAX_NUMBER, SYMBOLS
from ramify.files import sha256
from ramify.labels import LABELS, further
from ramify.packing import pieces_of
from ramify.prepare.staging import Staged
from ramify.references import Chunks, Fit, fit_references
from ramify.store.columns import COLUMNS, STATE_COLUMNS, Array, NpyFile, column_type
from ramify.store.manifest import (
    SPLITS,
    Column,
    Labels,
    LabelStatistics,
    References,
    SplitCounts,
    SplitName,
    StateCount,
    Statistics,
)
from ramify.structures import Split, atom_rows

ATOMS_AT_ONCE = 200_000


@dataclass(slots=True)
class Tally:
    """Counts and sums accumulated while columns are written.

    Attributes:
        atoms: (3, 119) number of atoms by split and atomic number.
        structures: (3,) number of structures by split.
        forces: number of structures with a force label.
        stress: number of structures with a stress label.
        components: number of labelled force components of the training split.
        absolute: eV/Å, sum of their absolute values.
        squared: (eV/Å)², sum of their squares.
    """

    atoms: NDArray[np.int64]
    structures: NDArray[np.int64]
    forces: int = 0
    stress: int = 0
    components: int = 0
    absolute: float = 0.0
    squared: float = 0.0

    def add(self, split: int, column: str, piece: Array, n_atoms: NDArray[np.int32]) -> None:
        """Counts one piece of a column in split number `split`; different columns update different attributes."""
        if column == "n_atoms":
            self.structures[split] += len(piece)
        elif column == "numbers":
            self.atoms[split] += np.bincount(piece, minlength=MAX_NUMBER + 1)
        elif column == "stress":
            self.stress += int(np.isfinite(piece[:, 0, 0]).sum())
        elif column == "forces":
            labelled = np.isfinite(piece[:, 0])
            self.forces += int(labelled[np.cumsum(n_atoms, dtype=np.int64) - n_atoms].sum())
            if SPLITS[split] == "train":
                values = piece if labelled.all() else piece[labelled]
                self.components += values.size
                self.absolute += float(np.abs(values).sum(dtype=np.float64))
                self.squared += float(np.einsum("nc,nc->", values, values, dtype=np.float64))


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembled:
    """Content of the manifest that describes the written columns."""

    splits: dict[SplitName, SplitCounts]
    elements: dict[str, dict[SplitName, int]]
    labels: Labels
    references: References
    statistics: Statistics
    columns: dict[str, Column]
    blocks: dict[str, list[int]]
    names_sha256: str
    shared_groups: int
    states: tuple[StateCount, ...]


def assemble(
    staged: Staged,
    split: NDArray[np.uint8],
    folder: Path,
    *,
    fit: Callable[[Chunks, NDArray[np.integer]], Fit] = fit_references,
    threads: int = 1,
) -> Assembled:
    """Writes `<column>.npy` and `names.json` into `folder`.

    Args:
        staged: S structures in source order.
        split: (S,) a `Split` each; structures with NONE are left out.
        folder: folder of the store.
        fit: the reference energies of the training structures and of the elements in them.
        threads: number of threads that write columns; the files do not depend on it.
    """
    rows = [np.flatnonzero(split == Split[name.upper()]) for name in SPLITS]
    kept = np.concatenate(rows)
    tables = {"group": staged.groups, "origin": staged.origins}
    renumber, used = {}, {}
    for name, table in tables.items():
        present = np.unique(staged.column(name)[kept])
        renumber[name] = np.zeros(len(table), np.int64)
        renumber[name][present] = np.arange(len(present))
        used[name] = [table[i] for i in present]
    counts = {name: int((~np.isnan(staged.column(name)[kept])).sum()) for name in further()}
    states = [name for name in STATE_COLUMNS if not np.isnan(staged.column(name)[kept]).all()]
    further_labels = {name: count for name, count in counts.items() if count}
    columns, blocks, tally = _write_columns(
        staged, (*COLUMNS, *states, *further_labels), rows, renumber, folder, threads
    )
    names = folder / "names.json"
    with names.open("w", encoding="utf-8") as file:
        json.dump({"groups": used["group"], "origins": used["origin"]}, file)
        file.flush()
        os.fsync(file.fileno())
    groups = [np.unique(staged.column("group")[part]) for part in rows]
    fitted = fit(_training_energies(folder, tally), np.flatnonzero(tally.atoms[0]))
    return Assembled(
        splits={
            name: SplitCounts(structures=len(rows[k]), atoms=int(tally.atoms[k].sum()), groups=len(groups[k]))
            for k, name in enumerate(SPLITS)
        },
        elements={
            SYMBOLS[z]: {name: int(tally.atoms[k, z]) for k, name in enumerate(SPLITS)}
            for z in np.flatnonzero(tally.atoms.sum(axis=0)).tolist()
        },
        labels=Labels(energy=len(kept), forces=tally.forces, stress=tally.stress, **further_labels),
        references=_references(fitted),
        statistics=_statistics(fitted, tally, staged, kept, _label_statistics(folder, len(rows[0]), further_labels)),
        columns=columns,
        blocks=blocks,
        names_sha256=sha256(names),
        shared_groups=int((np.unique(np.concatenate(groups), return_counts=True)[1] > 1).sum()),
        states=_states(staged, rows) if states else (),
    )


def _states(staged: Staged, rows: Sequence[NDArray[np.int64]]) -> tuple[StateCount, ...]:
    """Structures of each charge and spin, in ascending order, by split; states that are not stated come last."""
    counts: dict[tuple[float, float], dict[SplitName, int]] = {}
    for name, part in zip(SPLITS, rows, strict=True):
        stated = np.stack([staged.column("charge")[part], staged.column("spin")[part]], axis=1)
        values, number = np.unique(np.where(np.isnan(stated), np.inf, stated), axis=0, return_counts=True)
        for (charge, spin), count in zip(values.tolist(), number.tolist(), strict=True):
            counts.setdefault((charge, spin), dict.fromkeys(SPLITS, 0))[name] = count
    return tuple(
        StateCount(
            charge=None if np.isinf(charge) else int(charge),
            spin=None if np.isinf(spin) else int(spin),
            structures=counts[charge, spin],
        )
        for charge, spin in sorted(counts)
    )


def _write_columns(
    staged: Staged,
    names: Sequence[str],
    rows: Sequence[NDArray[np.int64]],
    renumber: Mapping[str, NDArray[np.int64]],
    folder: Path,
    threads: int,
) -> tuple[dict[str, Column], dict[str, list[int]], Tally]:
    """Writes each column as one task, the largest first."""
    tally = Tally(np.zeros((len(SPLITS), MAX_NUMBER + 1), np.int64), np.zeros(len(SPLITS), np.int64))
    kinds = {name: column_type(name) for name in names}
    largest_first = sorted(names, key=lambda name: (not kinds[name].per_atom, -len(kinds[name].row)))
    with ThreadPoolExecutor(threads, "ramify-assemble") as pool:
        written = {
            name: pool.submit(_write_column, name, staged, rows, renumber.get(name), folder, tally)
            for name in largest_first
        }
        try:
            found = {name: written[name].result() for name in names}
        finally:
            pool.shutdown(cancel_futures=True)
    columns = {name: column for name, (column, _) in found.items()}
    return columns, {name: sums for name, (_, sums) in found.items()}, tally


def _write_column(
    name: str,
    staged: Staged,
    rows: Sequence[NDArray[np.int64]],
    renumber: NDArray[np.int64] | None,
    folder: Path,
    tally: Tally,
) -> tuple[Column, list[int]]:
    """Writes one column; returns its manifest entry and the checksums of its blocks."""
    kept = np.concatenate(rows)
    kind = column_type(name)
    shape = kind.shape(len(kept), int(staged.n_atoms[kept].sum(dtype=np.int64)))
    file = NpyFile(folder / f"{name}.npy", kind.dtype, shape)
    try:
        for k, part in enumerate(rows):
            for some in (part[p] for p in pieces_of(staged.n_atoms[part], ATOMS_AT_ONCE)):
                piece = _gather(staged, name, some)
                piece = piece if renumber is None else renumber[piece]
                tally.add(k, name, piece, staged.n_atoms[some])
                file.append(piece)
        return file.finish(), file.blocks
    finally:
        file.close()


def _gather(staged: Staged, name: str, rows: NDArray[np.int64]) -> Array:
    """Rows of a column, ascending; a view if they are consecutive."""
    column, per_atom = staged.column(name), column_type(name).per_atom
    if rows[-1] - rows[0] + 1 == len(rows):
        atoms = slice(int(staged.offsets[rows[0]]), int(staged.offsets[rows[-1] + 1]))
        return column[atoms if per_atom else slice(int(rows[0]), int(rows[-1]) + 1)]
    index = atom_rows(staged.offsets[rows], staged.n_atoms[rows].astype(np.int64)) if per_atom else rows
    return np.take(column, index, axis=0)


def _training_energies(folder: Path, tally: Tally) -> Chunks:
    """The written columns of the training split, to fit references."""
    train = int(tally.structures[0])
    n_atoms = np.load(folder / "n_atoms.npy", mmap_mode="r")[:train].astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(n_atoms)])

    def chunks() -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.float64]]]:
        for part in pieces_of(n_atoms, ATOMS_AT_ONCE):
            a, b = part.start, part.stop
            numbers, energy = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("numbers", "energy"))
            yield n_atoms[a:b], np.asarray(numbers[offsets[a] : offsets[b]]), np.asarray(energy[a:b])

    return chunks


def _references(fit: Fit) -> References:
    known = np.flatnonzero(~np.isnan(fit.energies)).tolist()
    return References(
        energies={SYMBOLS[z]: float(fit.energies[z]) for z in known},
        structures=fit.structures,
        residual_mae=fit.residual_mae,
        rank=fit.rank,
    )


def _label_statistics(folder: Path, train: int, names: Iterable[str]) -> dict[str, LabelStatistics]:
    """Statistics of the further labels of the training split, from the written columns."""
    found = {}
    n_atoms = np.load(folder / "n_atoms.npy", mmap_mode="r")[:train]
    for name in names:
        values = np.load(folder / f"{name}.npy", mmap_mode="r")[:train]
        if LABELS[name].extensive:
            values = values / n_atoms
        if (known := ~np.isnan(values)).any():
            mean = float(values[known].mean())
            found[name] = LabelStatistics(mean=mean, mad=float(np.abs(values[known] - mean).mean()))
    return found


def _statistics(
    fit: Fit, tally: Tally, staged: Staged, kept: NDArray[np.int64], labels: Mapping[str, LabelStatistics]
) -> Statistics:
    max_force, closest = staged.scalars["max_force"][kept], staged.scalars["closest"][kept]
    labelled = tally.components > 0
    return Statistics(
        energy_std=fit.residual_std,
        energy_mae=fit.residual_mae,
        forces_rms=float(np.sqrt(tally.squared / tally.components)) if labelled else None,
        forces_mae=tally.absolute / tally.components if labelled else None,
        mean_atoms=float(tally.atoms[0].sum() / tally.structures[0]),
        max_force=float(np.nanmax(max_force)) if np.isfinite(max_force).any() else None,
        min_distance=float(closest.min()) if np.isfinite(closest).any() else None,
        labels=dict(labels),
        energy_mean=fit.residual_mean if fit.stated else 0.0,
    )
