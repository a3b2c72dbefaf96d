"""Error bars of energies for structures unlike the training data: compressed, broken, with an element never trained on.

    python benchmarks/accuracy/error_bars.py RUN five

For every dataset of a calibrated run, takes structures of `five/DATASET/test.extxyz`, changes them, and prints the
median error bar (eV/atom) of each kind as JSON, and its ratio to that of the unchanged structures.
"""

import argparse
import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.io import read

from ramify.errors import RamifyWarning
from ramify.inference.memory import budget_for
from ramify.inference.model import Model, load
from ramify.structures import Structures

MOST = 40
"""Structures of each dataset."""
ABSENT = {
    "wb97x": ("C", "Si"),
    "qm7x": ("C", "Si"),
    "orca_pbe": ("C", "Si"),
    "mlearn": ("Si", "Ge"),
    "mad": ("O", "Se"),
}
"""An element of each dataset, and one of the same group that replaces it; not of mad, which has both."""


def scaled(factor: float) -> Callable[[Atoms], Atoms]:
    """All distances times a factor."""

    def change(atoms: Atoms) -> Atoms:
        atoms.positions *= factor
        atoms.cell = atoms.cell * factor
        return atoms

    return change


def broken(atoms: Atoms) -> Atoms:
    """One atom moved by 1.5 Å."""
    rng = np.random.default_rng(len(atoms))
    direction = rng.normal(size=3)
    atoms.positions[rng.integers(len(atoms))] += 1.5 * direction / np.linalg.norm(direction)
    return atoms


def replaced(old: str, new: str) -> Callable[[Atoms], Atoms]:
    """One element in the place of another."""

    def change(atoms: Atoms) -> Atoms:
        atoms.symbols = [new if symbol == old else symbol for symbol in atoms.symbols]
        return atoms

    return change


def error_bars(model: Model, dataset: str, images: list[Atoms]) -> float:
    """Median error bar, eV/atom. References of absent elements are zero, which no error bar depends on."""
    (branch,) = (b for b in model.branches.values() if dataset in b.datasets)
    info = branch.datasets[dataset]
    extended = replace(info, references={s: 0.0 for _, s in ABSENT.values()} | dict(info.references))
    predictor = replace(model.predictor(branch.name, dataset), dataset=extended)
    found = predictor.predict(Structures.from_ase(images), budget_for(model.options, branch.forces, model.device, 4e9))
    if found.energy_std is None:
        raise SystemExit("the run has no error bars: ramify calibrate RUN")
    return float(np.nanmedian(found.energy_std / found.n_atoms))


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("five", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", RamifyWarning)
    model, results = load(arguments.run), {}
    for branch in model.branches.values():
        for dataset in branch.datasets:
            test = read(arguments.five / dataset / "test.extxyz", ":")
            test = [test[k] for k in np.unique(np.linspace(0, len(test) - 1, MOST).astype(int))]
            old, new = ABSENT[dataset]
            kinds: dict[str, tuple[list[Atoms], Callable[[Atoms], Atoms]]] = {
                "test": (test, lambda atoms: atoms),
                "distances x 0.9": (test, scaled(0.9)),
                "distances x 0.8": (test, scaled(0.8)),
                "one atom moved": (test, broken),
                f"{new} for {old}": ([a for a in test if old in a.symbols], replaced(old, new)),
            }
            medians = {k: error_bars(model, dataset, [f(a.copy()) for a in of]) for k, (of, f) in kinds.items() if of}
            results[dataset] = {k: {"median": v, "ratio": v / medians["test"]} for k, v in medians.items()}
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
