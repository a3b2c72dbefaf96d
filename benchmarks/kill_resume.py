"""Kills a training on several ranks (SIGKILL) repeatedly at random moments, and checks the checkpoints. Prints JSON.

The ranks train on three embedded datasets, one branch per rank if there are enough, with a checkpoint every few steps
of a model so large that writing it takes a large part of the time. Each round waits for a random time, kills one rank
or all, reads the latest and the best checkpoint of the run completely, and continues with another number of ranks.
Finally, the result is compared with an uninterrupted run on one process.

    python benchmarks/kill_resume.py --kills 20

Exits with status 1 if a run could not be read or continued, or if more than one checkpoint interval was lost.
"""

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ramify.checkpoint.checkpoint import open_checkpoint
from ramify.checkpoint.pointers import read_pointers
from ramify.minicorpora import FILES
from ramify.prepare.prepare import prepare_dataset
from ramify.recipe import parse_recipe

EVERY = 3
"""Steps between checkpoints."""
DATASETS: dict[str, dict[str, Any]] = {
    "ani1x": {"format": "ani1x", "path": str(FILES["ani1x_mini"])},
    "qm7x": {"format": "qm7x", "path": str(FILES["qm7x_mini"]), "labels": "pbe0"},
    "mptrj": {"format": "mptrj", "path": str(FILES["mptrj_mini"])},
}


def prepare(folder: Path, steps: int, width: int) -> Path:
    """Prepares the datasets and writes recipe.yaml."""
    content: dict[str, Any] = {
        "stores": str(folder / "stores"),
        "datasets": DATASETS,
        "model": {
            "encoder": {"kind": "egnn", "layers": 1, "width": width, "vector_channels": 8, "message_layers": 1},
            "energy_head": {"layers": 2, "width": width},
            "force_head": {"layers": 2, "width": width},
        },
        "optimizer": {"lr": 1e-3, "ema": 0.9},
        "train": {"batch": 3, "max_steps": steps, "precision": "fp64", "log_every": 1, "evaluate_every": 1000.0},
        "parallel": {"placement": "per-branch"},
    }
    recipe = parse_recipe(content, "benchmark")
    sizes = []
    for name, options in recipe.datasets.items():
        manifest = prepare_dataset(name, options, Path(recipe.stores), base=folder)
        sizes.append(manifest.splits["train"].structures)
    content["train"]["checkpoint_every"] = EVERY * content["train"]["batch"] / sum(sizes)
    (folder / "recipe.yaml").write_text(parse_recipe(content, "benchmark").to_yaml())
    return folder / "recipe.yaml"


def start(folder: Path, recipe: Path, run: Path, world: int) -> list[subprocess.Popen[bytes]]:
    """`ramify train --continue` on `world` ranks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "ramify", "train", str(recipe), "--run", str(run), "--continue"]
    ranks = []
    for rank in range(world):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1"}
        env = os.environ | {"OMP_NUM_THREADS": "1"} | (place | {"MASTER_PORT": port} if world > 1 else {})
        output = (folder / f"output-{rank}").open("wb")
        ranks.append(subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.STDOUT))
    return ranks


def reached(run: Path) -> int:
    """The last step in metrics.jsonl."""
    if not (run / "metrics.jsonl").exists():
        return 0
    steps = []
    for line in (run / "metrics.jsonl").read_text().splitlines():
        try:
            steps.append(json.loads(line)["step"])
        except ValueError:  # an incomplete line
            continue
    return max(steps, default=0)


def read_all(run: Path) -> int:
    """Reads both checkpoints completely; returns the step of the latest, 0 before the first."""
    folder = run / "checkpoints"
    for name in (pointers := read_pointers(folder)):
        checkpoint = open_checkpoint(folder / name)
        checkpoint.weights()
        checkpoint.training()
    return open_checkpoint(folder / "latest").step if pointers else 0


def kill_once(folder: Path, recipe: Path, run: Path, world: int, chance: random.Random) -> dict[str, Any]:
    """One round; returns the killed ranks, the time and the state of the run."""
    began, target = reached(run), chance.randint(1, 3 * EVERY)
    ranks = start(folder, recipe, run, world)
    first, taken = 0.0, 0
    while taken < target and all(rank.poll() is None for rank in ranks):
        time.sleep(0.002)
        taken = reached(run) - began
        first = first or (time.monotonic() if taken > 0 else 0.0)
    # a time within the next two steps, or in the checkpoint between them
    time.sleep(chance.uniform(0, 2) * (time.monotonic() - first) / max(1, taken - 1))
    victims = [chance.choice(ranks)] if chance.random() < 0.5 else ranks
    for victim in victims:
        victim.send_signal(signal.SIGKILL)
    statuses = [rank.wait() for rank in ranks]
    newest = max((int(p.name[5:]) for p in (run / "checkpoints").glob("step-*")), default=0)
    latest = read_all(run)
    return {
        "ranks": world,
        "killed": len(victims),
        "statuses": statuses,
        "step": reached(run),
        "checkpoint": latest,
        "lost": reached(run) - latest,
        "in_a_write": bool(list((run / "checkpoints").glob(".*"))) or newest != latest,
    }


def largest_difference(run: Path, other: Path) -> float:
    """Largest difference of a weight or moment, relative to the largest value in its tensor."""
    found, expected = (open_checkpoint(path / "checkpoints/latest").training() for path in (run, other))
    assert set(found) == set(expected)
    worst = 0.0
    for name, tensor in found.items():
        scale = float(expected[name].abs().max())
        worst = max(worst, float((tensor - expected[name]).abs().max()) / scale if scale else 0.0)
    return worst


def main() -> None:
    """Runs `--kills` rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 3, 1], help="numbers of ranks of successive rounds")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance, began = random.Random(options.seed), time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe, run = prepare(folder, options.steps, options.width), folder / "run"
        rounds = []
        for number in range(options.kills):
            world = options.ranks[number % len(options.ranks)]
            rounds.append(kill_once(folder, recipe, run, world, chance))
            print(json.dumps(rounds[-1]), file=sys.stderr, flush=True)
        ranks = start(folder, recipe, run, options.ranks[0])
        finished = [rank.wait() for rank in ranks]
        start(folder, recipe, folder / "whole", 1)[0].wait()
        result = {
            "kills": len(rounds),
            "in_a_write": sum(r["in_a_write"] for r in rounds),
            "steps_between_checkpoints": EVERY,
            "most_steps_lost": max(r["lost"] for r in rounds),
            "last_session": finished,
            "steps": [reached(run), options.steps],
            "largest_difference": largest_difference(run, folder / "whole"),
            "seconds": round(time.monotonic() - began, 1),
            "rounds": rounds,
        }
    print(json.dumps(result, indent=1))
    if result["most_steps_lost"] > EVERY or any(finished):
        sys.exit(1)


if __name__ == "__main__":
    main()
