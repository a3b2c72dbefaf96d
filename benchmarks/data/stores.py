"""Stores of synthetic structures of any size, written at the speed of the disk, for the data benchmarks.

Geometries are about as dense as molecules (points of a grid, 1.45 Å wide) or crystals (8 atoms, 18 Å³ each, in cells
sheared at random), so that atoms have realistic numbers of neighbours. A few thousand are made and then repeated.
"""

import platform
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import ramify
from ramify.elements import MAX_NUMBER, SYMBOLS
from ramify.files import sha256, write_json
from ramify.store.columns import COLUMNS, NpyFile
from ramify.store.manifest import (
    Consistency,
    Labels,
    Manifest,
    References,
    SplitCounts,
    Statistics,
    Versions,
)
from ramify.store.replace import replaced_store

Kind = Literal["molecules", "crystals"]
Columns = dict[str, NDArray[Any]]

DISTINCT = 4096
"""Number of different structures, which the store repeats."""
GRID = 1.45
"""Å, about the length of a bond."""
ELEMENTS = {"molecules": (1, 6, 7, 8), "crystals": (3, 8, 13, 22, 26, 29, 38, 56)}
MOLECULE_ATOMS = (14, 27)
"""Smallest number of atoms, and largest plus one: 20 on average."""
ATOM_VOLUME = 18.0
"""Å³ for each atom of a crystal."""
GROUPS = 1000
PIECE_ROWS = 1 << 20
"""Number of rows per write."""


def make_store(path: Path, kind: Kind, structures: int, *, validation: float = 0.05, seed: int = 0) -> Manifest:
    """Writes a store of `structures` molecules (20 atoms on average) or crystals (8 atoms).

    Raises:
        RamifyError: another process writes it, or the disk is full.
    """
    base = _molecules(seed) if kind == "molecules" else _crystals(seed)
    train = structures - int(structures * validation)
    val = structures - train
    atoms_of_train, atoms = (_total(base["n_atoms"], rows) for rows in (train, structures))
    with replaced_store(path) as folder:
        columns, blocks = {}, {}
        for name, column in COLUMNS.items():
            file = NpyFile(folder / f"{name}.npy", column.dtype, column.shape(structures, atoms))
            try:
                for piece in _pieces(name, base[name], atoms if column.per_atom else structures):
                    file.append(piece)
                columns[name] = file.finish()
            finally:
                file.close()
            blocks[name] = file.blocks
        write_json(folder / "names.json", {"groups": [f"g{k}" for k in range(GROUPS)], "origins": ["synthetic"]})
        counted = np.stack([_counted(base["numbers"], rows) for rows in (atoms_of_train, atoms)])
        manifest = Manifest(
            dataset=path.name,
            theory="none, synthetic",
            options={"format": "synthetic", "kind": kind, "seed": seed},
            splits={
                "train": SplitCounts(structures=train, atoms=atoms_of_train, groups=min(GROUPS, train)),
                "val": SplitCounts(structures=val, atoms=atoms - atoms_of_train, groups=min(GROUPS, val)),
                "test": SplitCounts(structures=0, atoms=0, groups=0),
            },
            elements={
                SYMBOLS[z]: {"train": int(counted[0, z]), "val": int(counted[1, z] - counted[0, z]), "test": 0}
                for z in ELEMENTS[kind]
            },
            labels=Labels(energy=structures, forces=structures, stress=structures if kind == "crystals" else 0),
            references=References(
                energies={SYMBOLS[z]: 0.0 for z in ELEMENTS[kind]}, structures=train, residual_mae=0.8, rank=0
            ),
            statistics=Statistics(
                energy_std=1.0,
                energy_mae=0.8,
                forces_rms=1.0,
                forces_mae=0.8,
                mean_atoms=atoms_of_train / train,
                max_force=None,
                min_distance=None,
            ),
            consistency=Consistency(slope=None, pairs=0, correlation=None),
            dropped={},
            read=structures,
            moved_to_train=[],
            sources=[],
            columns=columns,
            blocks=blocks,
            names_sha256=sha256(folder / "names.json"),
            versions=Versions(ramify=ramify.__version__, numpy=np.__version__, python=platform.python_version()),
        )
        write_json(folder / "manifest.json", manifest.to_json())
    return manifest


def column_bytes(manifest: Manifest) -> int:
    """Bytes of all columns of a store."""
    return sum(
        int(np.prod(column.shape, dtype=np.int64)) * np.dtype(column.dtype).itemsize
        for column in manifest.columns.values()
    )


def _pieces(name: str, base: NDArray[Any], rows: int) -> Iterator[NDArray[Any]]:
    """Repeats `base` to `rows` rows; columns that identify structures are numbered."""
    if name in ("row", "group"):
        for start in range(0, rows, PIECE_ROWS):
            number = np.arange(start, min(start + PIECE_ROWS, rows))
            yield number if name == "row" else number % GROUPS
        return
    tiled = np.concatenate([base] * max(1, PIECE_ROWS // len(base)))
    for start in range(0, rows, len(tiled)):
        yield tiled[: rows - start]


def _total(n_atoms: NDArray[np.integer], rows: int) -> int:
    """Atoms of the first `rows` structures."""
    times, rest = divmod(rows, len(n_atoms))
    return times * int(n_atoms.sum()) + int(n_atoms[:rest].sum())


def _counted(numbers: NDArray[np.integer], atoms: int) -> NDArray[np.int64]:
    """(119,) number of atoms of each element among the first `atoms`."""
    times, rest = divmod(atoms, len(numbers))
    whole, part = (np.bincount(some, minlength=MAX_NUMBER + 1) for some in (numbers, numbers[:rest]))
    return times * whole + part


def _molecules(seed: int) -> Columns:
    """A third of the grid points in an ellipsoid with random axes, with small displacements."""
    rng = np.random.default_rng(seed)
    n_atoms = rng.integers(*MOLECULE_ATOMS, DISTINCT)
    grid = np.array(list(product(range(-3, 4), repeat=3))) * GRID
    distance = ((grid / rng.uniform(0.7, 1.6, (DISTINCT, 1, 3))) ** 2).sum(axis=2)
    nearest = np.argsort(distance, axis=1)
    positions = np.concatenate(
        [grid[rng.choice(row[: 3 * n], n, False)] for row, n in zip(nearest, n_atoms, strict=True)]
    )
    positions += rng.normal(0, 0.12, positions.shape)
    return _labelled(rng, n_atoms, positions, ELEMENTS["molecules"])


def _crystals(seed: int) -> Columns:
    """Eight atoms about the points of a 2 x 2 x 2 grid of fractional coordinates."""
    rng = np.random.default_rng(seed)
    edge = (8 * ATOM_VOLUME) ** (1 / 3)
    cell = np.eye(3) * rng.uniform(0.85, 1.2, (DISTINCT, 1, 3)) * edge
    cell += np.tril(rng.uniform(-0.15, 0.15, (DISTINCT, 3, 3)), -1) * edge
    grid = np.array(list(product((0.0, 0.5), repeat=3)))
    positions = (grid + rng.normal(0, 0.04, (DISTINCT, 8, 3))) @ cell
    columns = _labelled(rng, np.full(DISTINCT, 8), positions.reshape(-1, 3), ELEMENTS["crystals"])
    columns["cell"], columns["pbc"] = cell, np.ones((DISTINCT, 3), np.bool_)
    columns["stress"] = rng.normal(0, 0.01, (DISTINCT, 3, 3))
    return columns


def _labelled(
    rng: np.random.Generator, n_atoms: NDArray[np.int64], positions: NDArray[np.float64], elements: tuple[int, ...]
) -> Columns:
    """Columns of structures without cell or stress, with random labels."""
    S, N = len(n_atoms), len(positions)
    return {
        "n_atoms": n_atoms,
        "numbers": rng.choice(elements, N),
        "positions": positions,
        "forces": rng.normal(0, 1, (N, 3)),
        "cell": np.zeros((S, 3, 3)),
        "pbc": np.zeros((S, 3), np.bool_),
        "energy": rng.normal(0, 1, S) * n_atoms,
        "stress": np.full((S, 3, 3), np.nan),
        "group": np.zeros(S),
        "origin": np.zeros(S, np.int32),
        "row": np.zeros(S),
    }
