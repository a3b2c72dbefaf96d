"""The second pass of preparing a dataset: staged structures are put down in the order of their splits, and counted."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ramify.data.columns import COLUMNS, Array, NpyFile
from ramify.data.manifest import SPLITS, Column, Labels, References, SplitCounts, SplitName, Statistics
from ramify.data.references import Fit, fit_references
from ramify.data.staging import Staged
from ramify.elements import MAX_NUMBER, SYMBOLS
from ramify.files import sha256
from ramify.structures import Split, atom_rows

ATOMS_AT_ONCE = 200_000


@dataclass(slots=True)
class Tally:
    """What is counted while columns are written.

    Attributes:
        atoms: (3, 119) atoms by split and atomic number.
        structures: (3,) structures by split.
        forces: structures with a force label.
        stress: structures with a stress label.
        components: force components of the training split that carry a label.
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

    def add(self, split: int, pieces: Mapping[str, Array]) -> None:
        """Counts one piece of split number `split`."""
        n_atoms, forces = pieces["n_atoms"], pieces["forces"]
        self.structures[split] += len(n_atoms)
        self.atoms[split] += np.bincount(pieces["numbers"], minlength=MAX_NUMBER + 1)
        labelled = np.isfinite(forces[:, 0])
        starts = np.cumsum(n_atoms, dtype=np.int64) - n_atoms
        self.forces += int(labelled[starts].sum())
        self.stress += int(np.isfinite(pieces["stress"][:, 0, 0]).sum())
        if SPLITS[split] == "train":
            values = forces if labelled.all() else forces[labelled]
            self.components += values.size
            self.absolute += float(np.abs(values).sum(dtype=np.float64))
            self.squared += float(np.einsum("nc,nc->", values, values, dtype=np.float64))


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembled:
    """What the manifest says of the columns written."""

    splits: dict[SplitName, SplitCounts]
    elements: dict[str, dict[SplitName, int]]
    labels: Labels
    references: References
    statistics: Statistics
    columns: dict[str, Column]
    blocks: dict[str, list[int]]
    names_sha256: str
    shared_groups: int


def assemble(staged: Staged, split: NDArray[np.uint8], folder: Path, *, reference_ridge: float = 0.0) -> Assembled:
    """Writes `<column>.npy` and `names.json` into `folder`.

    Args:
        staged: S structures in source order.
        split: (S,) a `Split` each; NONE leaves a structure out.
        folder: of the store.
    """
    rows = [np.flatnonzero(split == Split[name.upper()]) for name in SPLITS]
    kept = np.concatenate(rows)
    tables = {"group": staged.groups, "origin": staged.origins}
    renumber, used = {}, {}
    for name, table in tables.items():
        present = np.unique(staged.columns.map(name)[kept])
        renumber[name] = np.zeros(len(table), np.int64)
        renumber[name][present] = np.arange(len(present))
        used[name] = [table[i] for i in present]
    columns, blocks, tally = _write_columns(staged, rows, renumber, folder)
    names = folder / "names.json"
    with names.open("w", encoding="utf-8") as file:
        json.dump({"groups": used["group"], "origins": used["origin"]}, file)
        file.flush()
        os.fsync(file.fileno())
    groups = [np.unique(staged.columns.map("group")[part]) for part in rows]
    fit = _fit(folder, tally, reference_ridge)
    return Assembled(
        splits={
            name: SplitCounts(structures=len(rows[k]), atoms=int(tally.atoms[k].sum()), groups=len(groups[k]))
            for k, name in enumerate(SPLITS)
        },
        elements={
            SYMBOLS[z]: {name: int(tally.atoms[k, z]) for k, name in enumerate(SPLITS)}
            for z in np.flatnonzero(tally.atoms.sum(axis=0)).tolist()
        },
        labels=Labels(energy=len(kept), forces=tally.forces, stress=tally.stress),
        references=_references(fit),
        statistics=_statistics(fit, tally, staged, kept),
        columns=columns,
        blocks=blocks,
        names_sha256=sha256(names),
        shared_groups=int((np.unique(np.concatenate(groups), return_counts=True)[1] > 1).sum()),
    )


def _write_columns(
    staged: Staged, rows: Sequence[NDArray[np.int64]], renumber: Mapping[str, NDArray[np.int64]], folder: Path
) -> tuple[dict[str, Column], dict[str, list[int]], Tally]:
    """One column after the other would read the staged files once more each, so all are written side by side."""
    kept = np.concatenate(rows)
    S, N = len(kept), int(staged.n_atoms[kept].sum(dtype=np.int64))
    tally = Tally(np.zeros((len(SPLITS), MAX_NUMBER + 1), np.int64), np.zeros(len(SPLITS), np.int64))
    files: dict[str, NpyFile] = {}
    try:
        for name, kind in COLUMNS.items():
            files[name] = NpyFile(folder / f"{name}.npy", kind.dtype, kind.shape(S, N))
        for k, part in enumerate(rows):
            for some in _by_atoms(part, staged.n_atoms):
                pieces = _gather(staged, some)
                for name, translate in renumber.items():
                    pieces[name] = translate[pieces[name]]
                tally.add(k, pieces)
                for name, file in files.items():
                    file.append(pieces[name])
        columns = {name: file.finish() for name, file in files.items()}
    finally:
        for file in files.values():
            file.close()
    return columns, {name: file.blocks for name, file in files.items()}, tally


def _gather(staged: Staged, rows: NDArray[np.int64]) -> dict[str, Any]:
    """The columns at `rows`, ascending: as views where they follow one another without a gap."""
    columns = {name: staged.columns.map(name) for name in COLUMNS}
    if rows[-1] - rows[0] + 1 == len(rows):
        structures = slice(int(rows[0]), int(rows[-1]) + 1)
        atoms = slice(int(staged.offsets[rows[0]]), int(staged.offsets[rows[-1] + 1]))
        return {name: columns[name][atoms if kind.per_atom else structures] for name, kind in COLUMNS.items()}
    index = atom_rows(staged.offsets[rows], staged.n_atoms[rows].astype(np.int64))
    return {name: np.take(columns[name], index if kind.per_atom else rows, axis=0) for name, kind in COLUMNS.items()}


def _by_atoms(rows: NDArray[np.int64], n_atoms: NDArray[np.integer]) -> Iterator[NDArray[np.int64]]:
    """`rows` in parts of about `ATOMS_AT_ONCE` atoms."""
    turn = np.cumsum(n_atoms[rows], dtype=np.int64) // ATOMS_AT_ONCE
    for part in np.split(rows, np.flatnonzero(np.diff(turn)) + 1):
        if len(part):
            yield part


def _fit(folder: Path, tally: Tally, ridge: float) -> Fit:
    """References of the training split, from the columns just written."""
    train = int(tally.structures[0])
    n_atoms = np.load(folder / "n_atoms.npy", mmap_mode="r")[:train].astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(n_atoms)])

    def chunks() -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.float64]]]:
        for part in _by_atoms(np.arange(train), n_atoms):
            a, b = int(part[0]), int(part[-1]) + 1
            numbers, energy = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("numbers", "energy"))
            yield n_atoms[a:b], np.asarray(numbers[offsets[a] : offsets[b]]), np.asarray(energy[a:b])

    return fit_references(chunks, np.flatnonzero(tally.atoms[0]), ridge)


def _references(fit: Fit) -> References:
    known = np.flatnonzero(~np.isnan(fit.energies)).tolist()
    return References(
        energies={SYMBOLS[z]: float(fit.energies[z]) for z in known},
        structures=fit.structures,
        residual_mae=fit.residual_mae,
        rank=fit.rank,
    )


def _statistics(fit: Fit, tally: Tally, staged: Staged, kept: NDArray[np.int64]) -> Statistics:
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
    )
