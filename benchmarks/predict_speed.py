"""Structures per second of batched prediction, compared with a loop over an ASE calculator. Prints JSON.

    OMP_NUM_THREADS=1 python benchmarks/predict_speed.py --model runs/mtl --branch orca_pbe

The structures are molecules of the G2 set of ASE with elements of the branch and up to `--largest` atoms, repeated with
small random displacements. The loop runs over a part of them. Energies and forces are predicted; reading and writing of
files is not included.
"""

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import molecule
from ase.collections import g2

import ramify
from ramify.errors import RamifyWarning
from ramify.inference.model import Model


def make_molecules(elements: set[str], count: int, largest: int) -> list[Atoms]:
    """`count` different molecules."""
    rng = np.random.default_rng(0)
    kinds = [molecule(name) for name in g2.names]
    kinds = [a for a in kinds if 2 <= len(a) <= largest and set(a.get_chemical_symbols()) <= elements]
    images = [kinds[k % len(kinds)].copy() for k in range(count)]
    for atoms in images:
        atoms.positions += rng.normal(0, 0.02, atoms.positions.shape)
    return images


def batched(model: Model, branch: str, images: list[Atoms]) -> tuple[dict[str, float], np.ndarray]:
    """Predicts all structures in batches."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = model.predict(images, branch)
    return _rates(len(images), wall, cpu), found.energy


def one_by_one(model: Model, branch: str, images: list[Atoms]) -> tuple[dict[str, float], np.ndarray]:
    """Predicts one structure after the other with a calculator."""
    calculator = ramify.Calculator(model, branch)
    energies = []
    wall, cpu = time.perf_counter(), time.process_time()
    for atoms in images:
        atoms.calc = calculator
        energies.append(atoms.get_potential_energy())
        atoms.get_forces()
    return _rates(len(images), wall, cpu), np.array(energies)


def _rates(count: int, wall: float, cpu: float) -> dict[str, float]:
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"structures_per_s": count / wall, "structures_per_cpu_s": count / cpu}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--model", type=Path, required=True)
    arguments.add_argument("--branch", required=True)
    arguments.add_argument("--count", type=int, default=10_000)
    arguments.add_argument("--loop", type=int, default=500, help="number of structures in the loop")
    arguments.add_argument("--largest", type=int, default=6, help="atoms")
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--device", default="cpu")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", RamifyWarning)
    model = ramify.load(options.model, device=options.device)
    elements = {e for info in model.branches[options.branch].datasets.values() for e in info.elements}
    images = make_molecules(elements, options.count, options.largest)
    batched(model, options.branch, images[:200])  # warm-up
    one_by_one(model, options.branch, images[:20])
    fast, energies = batched(model, options.branch, images)
    slow, same = one_by_one(model, options.branch, images[: options.loop])
    result: dict[str, Any] = {
        "molecules": len(images),
        "mean_atoms": float(np.mean([len(a) for a in images])),
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "threads": options.threads,
        "batched": fast,
        "one_by_one": slow,
        "ratio": fast["structures_per_s"] / slow["structures_per_s"],
        "ratio_cpu": fast["structures_per_cpu_s"] / slow["structures_per_cpu_s"],
        "largest_difference_ev": float(np.abs(energies[: options.loop] - same).max()),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
