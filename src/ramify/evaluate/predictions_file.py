"""predictions/DATASET.npz: predictions of a dataset's own branch, the labels, and the structures they belong to.

It is written in one part per rank. It contains the structures because a run is often moved without its stores.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ramify.batches.loader import SplitReader
from ramify.errors import RamifyError
from ramify.evaluate.metrics import PREDICTED, TRUE
from ramify.evaluate.predict_split import Labelled
from ramify.evaluate.trivial import Trivial
from ramify.files import disk_full_named
from ramify.labels import LABELS
from ramify.references import reference_energy


def write_part(
    folder: Path, dataset: str, rank: int, kept: Sequence[tuple[int, Labelled]], labels: Sequence[str]
) -> None:
    """Writes the predictions of `rank`, if any, with the number of each batch in its split.

    Args:
        folder: the folder of all parts.
        dataset: its name.
        rank: this rank.
        kept: number of each batch, and its predictions.
        labels: the labels to write; energies in float64, since their errors are small differences.

    Raises:
        RamifyError: the disk is full.
    """
    if not kept:
        return
    arrays: dict[str, NDArray[Any]] = {
        "batch": np.array([number for number, _ in kept]),
        "structures": np.array([len(seen.indices) for _, seen in kept]),
        "atoms": np.array([len(seen.numbers) for _, seen in kept]),
    }
    for name in labels:
        kind = np.float64 if LABELS[name].extensive else np.float32
        arrays[name + TRUE] = np.concatenate([seen.labels[name] for _, seen in kept]).astype(kind)
        arrays[name + PREDICTED] = np.concatenate([seen.predicted[name] for _, seen in kept]).astype(kind)
    with disk_full_named(folder):
        folder.mkdir(exist_ok=True)
        np.savez(_part(folder, dataset, rank), **arrays)  # type: ignore[arg-type]  # the stubs lack keyword names


def merge_parts(parts: Path, folder: Path, reader: SplitReader, trivial: Trivial, world: int) -> None:
    """Joins the parts of all ranks in the order of the split, and adds the structures with their names and groups.

    Raises:
        RamifyError: a part is missing.
    """
    pieces: dict[str, dict[int, NDArray[Any]]] = {}
    for rank in range(world):
        path = _part(parts, reader.dataset, rank)
        if path.is_file():
            with np.load(path) as part:
                _collect(part, pieces)
    joined = {name: np.concatenate([found[k] for k in sorted(found)]) for name, found in pieces.items()}
    if len(joined.get("energy_true", ())) != len(reader):
        raise RamifyError(
            f"some predictions of {reader.dataset} are not in {parts}",
            fix="the run directory must lie on a file system that all ranks share",
        )
    structures = reader.store.take(np.arange(reader.rows.start, reader.rows.stop))
    shift = reference_energy(structures, trivial.references) - reference_energy(structures, reader.store.references)
    joined["energy_trivial"] = shift / structures.n_atoms
    joined |= {"n_atoms": structures.n_atoms, "numbers": structures.numbers, "total_energy": structures.energy}
    joined |= {"positions": structures.positions.astype(np.float32), "cell": structures.cell, "pbc": structures.pbc}
    joined["groups"] = np.array([structures.group_names[group] for group in structures.group])
    joined["names"] = np.array([structures.name(i) for i in range(len(structures))])
    np.savez_compressed(folder / f"{reader.dataset}.npz", **joined)  # type: ignore[arg-type]  # the stubs lack keyword names


def _part(folder: Path, dataset: str, rank: int) -> Path:
    return folder / f"{dataset}.{rank}.npz"


def _collect(part: Any, pieces: dict[str, dict[int, NDArray[Any]]]) -> None:
    """Splits the arrays of a part into batches."""
    for name in set(part.files) - {"batch", "structures", "atoms"}:
        label = LABELS[name.removesuffix(TRUE).removesuffix(PREDICTED)]
        sizes = part["atoms" if label.per_atom else "structures"]
        for number, piece in zip(part["batch"], np.split(part[name], np.cumsum(sizes)[:-1]), strict=True):
            pieces.setdefault(name, {})[int(number)] = piece
