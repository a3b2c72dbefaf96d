"""Alternating training steps of several encoders, plain and compiled, on the same structures. Prints JSON.

    OMP_NUM_THREADS=1 python benchmarks/step/encoders.py five --stores stores --steps 40 \\
        '{kind: egnn, vector_channels: 16, message_layers: 1}' '{kind: many_body}' --modes none default

Ratios are to the first encoder with the first mode: medians over steps of the time on the same batch. Times are of the
processor (on an accelerator, by the clock). Memory is the largest amount that a step adds to what the process holds
between steps (weights, optimizer, compiled programs), each in a process of its own.
"""

import argparse
import json
import statistics
import subprocess
import sys
from contextlib import ExitStack
from typing import Any

import torch
import yaml
from compiled import WARMUP, make, steps_in_turn

from ramify.bench.profiling.resident import forget_peak, peak_bytes
from ramify.recipe import Recipe, load_recipe, parse_recipe
from ramify.system import process_memory
from ramify.train.loop import Trainer
from ramify.train.start import configure_process

MEASURED = 10
"""Steps of which the memory is measured: batches differ."""


def with_encoder(recipe: Recipe, encoder: dict[str, Any]) -> Recipe:
    """The recipe with another encoder."""
    content = recipe.model_dump(mode="json")
    content["model"]["encoder"] = encoder
    return parse_recipe(content, "benchmark")


def memory_of(trainer: Trainer) -> int:
    """Bytes that a step needs beyond those that this process keeps between steps."""
    with trainer.loader() as loader:
        for _ in range(WARMUP):
            trainer.step(next(loader))
        work = [next(loader) for _ in range(MEASURED)]
        device = trainer.layout.device
        before = process_memory() if device.type == "cpu" else int(torch.get_device_module(device).memory_allocated())
        forget_peak()
        for one in work:
            trainer.step(one)
    return peak_bytes(device) - before


def main() -> None:
    """Parses the arguments, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("encoders", nargs="+", help="keys of `model.encoder` as YAML")
    parser.add_argument("--stores", default="stores")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--modes", nargs="+", default=["none"])
    parser.add_argument("--memory-only", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    recipe = load_recipe(given.recipe, [f"stores={json.dumps(given.stores)}"])
    configure_process(recipe)
    if given.memory_only:
        print(memory_of(make(with_encoder(recipe, yaml.safe_load(given.encoders[0])), given.modes[0])))
        return
    cases = {f"{text} {mode}": (text, mode) for text in given.encoders for mode in given.modes}
    trainers = {name: make(with_encoder(recipe, yaml.safe_load(text)), mode) for name, (text, mode) in cases.items()}
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    with ExitStack() as stack:
        loaders = {name: stack.enter_context(trainer.loader()) for name, trainer in trainers.items()}
        for name, _, taken in steps_in_turn(trainers, loaders, WARMUP + given.steps):
            seconds[name].append(taken)
    first = next(iter(seconds.values()))[WARMUP:]
    result = {}
    for name, (text, mode) in cases.items():
        own = [sys.executable, __file__, given.recipe, text, "--stores", given.stores, "--modes", mode, "--memory-only"]
        done = subprocess.run(own, stdout=subprocess.PIPE, text=True, check=True)
        counted = seconds[name][WARMUP:]
        result[name] = {
            "parameters": sum(p.numel() for p in trainers[name].model.encoder.parameters()),
            "seconds": statistics.median(counted),
            "ratio": statistics.median(a / b for a, b in zip(counted, first, strict=True)),
            "first_step": seconds[name][0],
            "memory": int(done.stdout.split()[-1]),
        }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
