"""One process and several take the same steps: differences of all weights after a few steps, in float64.

    OMP_NUM_THREADS=1 python -m benchmarks.parity --out parity

Five datasets are those of the demo; seven are these, `ions` (benchmarks/data) and alloys with labels of ASE's EMT. For
each, 2, 3, 5 and 6 processes connected by Gloo train with an explicit placement in which ranks host several branches
and branches several ranks, with a sharded encoder, with micro-batches, and with all of them. The difference is the
largest of any weight, average of weights or moment of the optimizer, relative to the largest number of its tensor.
Prints a table and writes `parity.json`; 22 minutes on two busy cores. Ends with status 1 beyond 1e-12.
"""

import argparse
import json
import multiprocessing
import socket
import sys
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from ramify import minicorpora
from ramify.checkpoint.checkpoint import open_checkpoint
from ramify.parallel.startup.launch import LaunchEnv
from ramify.parallel.startup.rendezvous import connect
from ramify.parallel.world import World
from ramify.prepare.prepare import prepare_dataset
from ramify.recipe import RECIPES, Recipe, parse_recipe
from ramify.train.reporting import Callbacks
from ramify.train.start import start_run

LARGEST = 80
"""Structures of a dataset."""
RANKS = (2, 3, 5, 6)
LIMIT = 1e-12
IONS = Path(__file__).parent / "data/ions.extxyz"
WIDTHS = {"layers": 1, "width": 16, "channels": 8, "vector_channels": 8}
MODEL = {
    "encoder": {"kind": "many_body", **WIDTHS, "cutoff": 4.0, "max_neighbors": 12},
    "energy_head": {"layers": 1, "width": 16},
    "force_head": {"layers": 1, "width": 16, "kind": "conservative"},
}
MICRO_BATCHES = {"micro_batch_atoms": 40, "micro_batch_edges": 400}


def entries(folder: Path) -> dict[str, dict[str, Any]]:
    """Recipe entries of the seven datasets; the first five are those of the demo."""
    found: dict[str, dict[str, Any]] = yaml.safe_load((RECIPES / "demo.yaml").read_text())["datasets"]
    for entry in found.values():
        entry |= {"path": str(minicorpora.FOLDER / entry["path"]), "limit": LARGEST, "split": {"by": "structure"}}
    states = {"charge_key": "charge", "group_key": "molecule", "gates": {"conflicting_labels": "keep"}}
    found["ions"] = {"format": "extxyz", "path": str(IONS), **states}
    found["alloys"] = {"format": "extxyz", "path": str(_alloys(folder)), "split": {"by": "structure"}}
    return found


def _alloys(folder: Path) -> Path:
    images = []
    for k in range(60):
        atoms = bulk(("Cu", "Al", "Ni")[k % 3], cubic=True)
        atoms.symbols[k % 4] = "Au"
        atoms.rattle(0.06, seed=k)
        atoms.calc = EMT()
        labels = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces(), "stress": atoms.get_stress()}
        atoms.calc = SinglePointCalculator(atoms, **labels)
        images.append(atoms)
    write(folder / "alloys.xyz", images, format="extxyz")
    return folder / "alloys.xyz"


def recipe_of(folder: Path, datasets: dict[str, Any], steps: int, parallel: dict[str, Any]) -> Recipe:
    content = {
        "stores": str(folder / "stores"),
        "datasets": datasets,
        "model": MODEL,
        "objective": {"energy": 1.0, "forces": 5.0, "stress": 0.3},
        "optimizer": {"lr": 0.01, "ema": 0.9, "clip": 0.5},
        "schedule": {"warmup_steps": 3},
        "train": {
            "threads": 1,
            "batch": 14,
            "max_steps": steps,
            "precision": "fp64",
            "evaluate_every": 99,
            "checkpoint_every": 99,
        },
        "parallel": parallel,
    }
    return parse_recipe(content, "parity")


def cases(names: list[str], ranks: int) -> dict[str, dict[str, Any]]:
    """Keys of `parallel` by the name of the case."""
    explicit = {"placement": {name: sorted({k % ranks, (2 * k + 1) % ranks}) for k, name in enumerate(names)}}
    return {
        "explicit": explicit,
        "sharded": {"placement": "replicated", "shard": "encoder"},
        "micro-batches": {"placement": "per-branch", **MICRO_BATCHES},
        "all": {**explicit, "shard": "encoder", **MICRO_BATCHES},
    }


def train_each(world: World, recipes: dict[str, Recipe], folder: Path) -> None:
    """Trains one run after the other on this rank."""
    for name, recipe in recipes.items():
        trainer = start_run(recipe, folder / name, Callbacks(), world=world)
        trainer.fit()
        trainer.run.unlock()


def tensors(run: Path) -> dict[str, torch.Tensor]:
    """All numbers of the last checkpoint of a run."""
    checkpoint = open_checkpoint(run / "checkpoints/latest")
    kept = {f"training {name}": tensor for name, tensor in checkpoint.training().items()}
    return kept | {f"weights {name}": tensor for name, tensor in checkpoint.weights().items()}


def difference(found: dict[str, torch.Tensor], alone: dict[str, torch.Tensor]) -> float:
    """Largest difference, relative to the largest number of its tensor."""
    if found.keys() != alone.keys():
        raise ValueError(f"the checkpoints differ in {sorted(found.keys() ^ alone.keys())[:5]}")
    scales = {name: float(tensor.abs().max()) or 1.0 for name, tensor in alone.items()}
    return max(float((found[name] - tensor).abs().max()) / scales[name] for name, tensor in alone.items())


def _rank(pipe: Connection, site: LaunchEnv, recipes: dict[str, Recipe], folder: Path) -> None:
    torch.set_num_threads(1)
    try:
        with connect(site, torch.device("cpu"), 120.0):
            train_each(World(rank=site.rank, size=site.world), recipes, folder)
        pipe.send("")
    except BaseException:
        pipe.send(traceback.format_exc())


def on_ranks(ranks: int, recipes: dict[str, Recipe], folder: Path) -> None:
    """Trains all recipes on `ranks` connected processes.

    Raises:
        RuntimeError: a process failed, with its traceback.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ramify.train.start"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = []
    for rank in range(ranks):
        ours, theirs = context.Pipe(duplex=False)
        site = LaunchEnv(rank, ranks, rank, "127.0.0.1", port, "benchmarks.parity")
        process = context.Process(target=_rank, args=(theirs, site, recipes, folder), daemon=True)
        process.start()
        theirs.close()
        started.append((process, ours))
    for process, pipe in started:
        failure = pipe.recv()
        if failure:
            raise RuntimeError(failure)
        process.join()


def measure(folder: Path, steps: int) -> list[dict[str, Any]]:
    """Prepares the datasets, trains all cases, and returns one row for each."""
    torch.set_num_threads(1)
    seven, rows = entries(folder), []
    for name, options in recipe_of(folder, seven, steps, {}).datasets.items():
        prepare_dataset(name, options, folder / "stores", base=folder)
    for count in (5, 7):
        datasets = dict(list(seven.items())[:count])
        train_each(World(rank=0, size=1), {"alone": recipe_of(folder, datasets, steps, {})}, folder / f"{count}-1")
        alone = tensors(folder / f"{count}-1/alone")
        for ranks in RANKS:
            chosen = {k: recipe_of(folder, datasets, steps, v) for k, v in cases(list(datasets), ranks).items()}
            begun = time.perf_counter()
            on_ranks(ranks, chosen, folder / f"{count}-{ranks}")
            sys.stderr.write(f"{count} datasets, {ranks} ranks: {time.perf_counter() - begun:.0f} s\n")
            for case in chosen:
                found = difference(tensors(folder / f"{count}-{ranks}/{case}"), alone)
                rows.append({"datasets": count, "ranks": ranks, "case": case, "difference": found})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Differences by number of datasets and ranks, with one column for each case."""
    names = list(dict.fromkeys(row["case"] for row in rows))
    lines = [f"{'datasets':>8} {'ranks':>5}" + "".join(f"{name:>15}" for name in names)]
    for count, ranks in dict.fromkeys((row["datasets"], row["ranks"]) for row in rows):
        found = {row["case"]: row["difference"] for row in rows if (row["datasets"], row["ranks"]) == (count, ranks)}
        lines.append(f"{count:>8} {ranks:>5}" + "".join(f"{found[name]:>15.1e}" for name in names))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--steps", type=int, default=6)
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True)
    rows = measure(chosen.out.resolve(), chosen.steps)
    largest = float(np.max([row["difference"] for row in rows]))
    (chosen.out / "parity.json").write_text(json.dumps({"steps": chosen.steps, "rows": rows}, indent=1))
    sys.stdout.write(f"{table(rows)}\nlargest difference {largest:.1e}, limit {LIMIT:g}\n")
    sys.exit(0 if largest <= LIMIT else 1)


if __name__ == "__main__":
    main()
