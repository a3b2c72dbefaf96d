"""Synthetic datasets of a stated size, prepared like any other, for benchmarks without data.

A structure is a periodic cube of randomly placed atoms; its side is chosen to give the requested number of
neighbours. Labels are random. Speed and memory depend on the numbers of atoms and edges, not on the labels.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ramify.batches.sampling import sampling_weights
from ramify.neighbors.edges import find_edges
from ramify.planning.workload import StatedSize
from ramify.prepare.prepare import prepare_dataset
from ramify.recipe import Recipe, parse_recipe
from ramify.store.store import Store
from ramify.structures import Structures

STRUCTURES = 256
"""Number of structures of a synthetic dataset; a benchmark uses them repeatedly."""

ALIKE = StatedSize(structures=1_000_000, atoms=20, neighbors=15)
"""Size of every dataset of `--branches N`: between the molecules and the crystals of the paper."""

ELEMENTS = np.array([1, 6, 7, 8, 14, 16, 26, 29], np.uint8)
ROUNDS = 12
"""Bisection steps for the side of the cube: to 1e-3 of the side, 1 % of the neighbours."""


def equal_datasets(recipe: Recipe, branches: int, folder: Path) -> tuple[Recipe, dict[str, Path]]:
    """The recipe with `branches` datasets of the size `ALIKE` instead of its own, each with its own branch.

    Returns:
        The recipe, and the store of every dataset. All datasets use the same store, which saves disk space.
    """
    content = recipe.model_dump(mode="json")
    store = _prepare("alike", ALIKE, recipe, folder)
    names = [f"branch{number:02d}" for number in range(branches)]
    content["datasets"] = {name: _entry(store.with_suffix(".xyz")) for name in names}
    content["branches"], content["objective"]["weights"] = "per-dataset", {}
    content["train"]["sampling"] = "equal"
    return parse_recipe(content, "benchmark"), dict.fromkeys(names, store)


def of_sizes(recipe: Recipe, stated: Mapping[str, StatedSize], folder: Path) -> tuple[Recipe, dict[str, Path]]:
    """The recipe with synthetic structures for every dataset that has a stated size; the others keep their stores.

    A step uses as many structures of each dataset as with datasets of the stated sizes.
    """
    content = recipe.model_dump(mode="json")
    stores = {}
    for name in recipe.datasets:
        if name in stated:
            stores[name] = _prepare(name, stated[name], recipe, folder)
            content["datasets"][name] = _entry(stores[name].with_suffix(".xyz"))
        else:
            stores[name] = Path(recipe.stores) / name
    made = {name: len(Store.open(path).range("train")) for name, path in stores.items()}
    sizes = {name: stated[name].structures if name in stated else made[name] for name in made}
    wanted = sampling_weights(sizes, recipe.train.sampling, recipe.train.temperature)
    content["train"]["sampling"] = {name: wanted[name] / made[name] for name in made}
    return parse_recipe(content, "benchmark"), stores


def make_structures(size: StatedSize, cutoff: float, max_neighbors: int | None, seed: int) -> Structures:
    """`STRUCTURES` cubes with the means of `size`; the number of neighbours is as close as the limits allow."""
    rng = np.random.default_rng(seed)
    n_atoms = np.floor(size.atoms + rng.random(STRUCTURES)).astype(np.int64)
    total = int(n_atoms.sum())
    made = {
        "n_atoms": n_atoms,
        "numbers": rng.choice(ELEMENTS, total),
        "energy": rng.normal(0, 1, STRUCTURES),
        "forces": rng.normal(0, 1, (total, 3)) if size.forces else None,
        "pbc": np.ones((STRUCTURES, 3), bool),
    }
    places = rng.random((total, 3))
    sample = Structures.make(**_placed(made, places, 1.0)).span(0, 32)
    low, high = 1.5, 12.0  # Å, side of a cube with one atom: much denser and much thinner than matter
    for _ in range(ROUNDS):
        side = 0.5 * (low + high)
        found = _neighbors(sample, side, cutoff, max_neighbors)
        low, high = (side, high) if found > size.neighbors else (low, side)
    return Structures.make(**_placed(made, places, high))


def _neighbors(sample: Structures, side: float, cutoff: float, max_neighbors: int | None) -> float:
    """Mean number of neighbours per atom with cubes of another size."""
    scaled = Structures.make(
        n_atoms=sample.n_atoms,
        numbers=sample.numbers,
        positions=sample.positions * side,
        cell=sample.cell * side,
        pbc=sample.pbc,
    )
    return len(find_edges(scaled, cutoff, max_neighbors)) / len(scaled.numbers)


def _placed(made: Mapping[str, Any], places: NDArray[np.float64], side: float) -> dict[str, Any]:
    """Columns with cubes of a volume of `side`³ per atom."""
    sides = side * np.cbrt(made["n_atoms"])
    return {
        **made,
        "positions": places * np.repeat(sides, made["n_atoms"])[:, None],
        "cell": sides[:, None, None] * np.eye(3),
    }


def _prepare(name: str, size: StatedSize, recipe: Recipe, folder: Path) -> Path:
    """The store of a synthetic dataset; an existing store is reused."""
    from ase.io import write

    encoder = recipe.model.encoder
    described = f"{size.atoms}/{size.neighbors}/{size.forces}/{encoder.cutoff}/{encoder.max_neighbors}"
    known_as = f"{name}-{hashlib.blake2b(described.encode(), digest_size=4).hexdigest()}"
    store = folder / known_as
    if not (store / "manifest.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        made = make_structures(size, encoder.cutoff, encoder.max_neighbors, seed=len(name))
        images = [made.to_ase(index) for index in range(len(made))]
        write(store.with_suffix(".xyz"), images, format="extxyz")
        entry = _entry(store.with_suffix(".xyz")) | ({} if size.forces else {"forces_key": None})
        options = parse_recipe({"datasets": {name: entry}}, "benchmark").datasets[name]
        prepare_dataset(known_as, options, folder, base=Path.cwd(), force=store.exists())
    return store


def _entry(path: Path) -> dict[str, Any]:
    """The recipe entry of a synthetic dataset, with open gates, since random positions may be close to each other."""
    return {
        "format": "extxyz",
        "path": str(path.resolve()),
        "energy_key": "REF_energy",
        "forces_key": "REF_forces",
        "split": {"val": 0.02, "test": 0.02},
        "gates": {"min_distance": 0.0, "energy_outlier": 1e9, "max_force": 1e3, "duplicates": "keep"},
    }
