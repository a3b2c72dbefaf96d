"""Two electronic states of the same geometries, learnt by one branch with and without charge and spin as conditions.

    python benchmarks/accuracy/conditions.py --out conditions                               # ions
    python benchmarks/accuracy/conditions.py --out conditions --carbene ase_carbene_2200.db  # and CH2

`ions` are 20 small molecules and their cations, UHF/def2-SVP (tools/ions.py). CH2 is the example of SpookyNet (Unke et
al., doi:10.1038/s41467-021-27504-0) in the repository of SchNetPack, tests/electronic_embedding; its file states
unpaired electrons. A geometry is in one split, with both of its states. Prints JSON: the mean difference between the
energies of the two states of a geometry (`apart`), and the mean absolute error of total energies on the test split, for
each state; eV. 77 s of processor time on one core of an AMD EPYC.
"""

import argparse
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.db import connect
from ase.io import read, write

import ramify
from ramify.prepare.prepare import prepare_dataset
from ramify.recipe import Recipe, parse_recipe
from ramify.store.store import Store
from ramify.structures import Structures, state_text
from ramify.train.reporting import Callbacks
from ramify.train.start import start_run

IONS = Path(__file__).parents[1] / "data/ions.extxyz"
PASSES = {"ions": 100, "carbene": 15}
"""Of the training structures: some hundred steps."""
BATCH = {"ions": 32, "carbene": 64}
MODEL = {
    "encoder": {"kind": "egnn", "layers": 2, "width": 64, "vector_channels": 16, "cutoff": 5.0},
    "energy_head": {"layers": 2, "width": 64},
    "force_head": {"layers": 2, "width": 64, "kind": "conservative"},
}


def ions() -> list[Atoms]:
    """The frames, with a group for each geometry."""
    images = read(IONS, ":")
    assert isinstance(images, list)
    for atoms in images:
        atoms.info["group"] = f"{atoms.info['molecule']}-{atoms.info['geometry']}"
    return images


def carbene(path: Path) -> list[Atoms]:
    """The rows of SchNetPack's database, with a group for each geometry and the multiplicity."""
    images = []
    for row in connect(str(path)).select():
        atoms = Atoms(row.numbers, row.positions)
        atoms.info = {
            "energy": float(np.ravel(row.data["energy"])[0]),
            "charge": round(float(np.ravel(row.data["total_charge"])[0])),
            "spin": 1 + round(float(np.ravel(row.data["spin_multiplicity"])[0])),
            "group": hashlib.sha256(np.round(row.positions, 4).tobytes()).hexdigest()[:16],
        }
        atoms.arrays["forces"] = np.asarray(row.data["forces"])
        images.append(atoms)
    return images


def recipe_of(name: str, file: Path, folder: Path, conditions: list[str]) -> Recipe:
    entry = {
        "format": "extxyz",
        "path": str(file),
        "charge_key": "charge",
        "spin_key": "spin",
        "group_key": "group",
        "gates": {"duplicates": "keep"},
    }
    train = {"batch": BATCH[name], "epochs": PASSES[name], "evaluate_every": 5, "checkpoint_every": 1e6}
    content = {
        "stores": str(folder / "stores"),
        "datasets": {name: entry},
        "model": {**MODEL, "conditions": conditions},
        "optimizer": {"lr": 3e-3, "ema": 0.99},
        "schedule": {"warmup_steps": 50},
        "train": {**train, "threads": 1},
    }
    return parse_recipe(content, "benchmark")


def apart(structures: Structures) -> float:
    """Mean difference of the highest and the lowest energy of a geometry with several states, eV."""
    by_group: dict[int, list[float]] = {}
    for group, energy in zip(structures.group.tolist(), structures.energy.tolist(), strict=True):
        by_group.setdefault(group, []).append(energy)
    return float(np.mean([max(e) - min(e) for e in by_group.values() if len(e) > 1]))


def errors(run: Path, test: Structures) -> dict[str, float]:
    """Mean absolute errors of total energies by state, eV."""
    error = np.abs(ramify.load(run).predict(test).energy - test.energy)
    states = list(map(state_text, test.charge.tolist(), test.spin.tolist()))
    return {s: float(error[[state == s for state in states]].mean()) for s in sorted(set(states))}


def compare(name: str, images: list[Atoms], folder: Path) -> dict[str, Any]:
    """Trains with and without conditions."""
    file = folder / f"{name}.xyz"
    write(file, images, format="extxyz")
    found: dict[str, Any] = {}
    for kind, conditions in (("with", ["charge", "spin"]), ("without", [])):
        recipe = recipe_of(name, file, folder, conditions)
        manifest = prepare_dataset(name, recipe.datasets[name], folder / "stores", base=Path.cwd())
        run = folder / f"{name}-{kind}"
        began = time.monotonic()
        if not run.exists():
            start_run(recipe, run, Callbacks()).fit()
        store = Store.open(folder / "stores" / name)
        test = store.take(np.array(store.range("test")))
        found[kind] = errors(run, test) | {"seconds": round(time.monotonic() - began)}
        found |= {"structures": manifest.structures, "test": len(test), "apart": apart(test)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--carbene", type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    results = {"ions": compare("ions", ions(), options.out)}
    if options.carbene is not None:
        results["carbene"] = compare("carbene", carbene(options.carbene), options.out)
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
