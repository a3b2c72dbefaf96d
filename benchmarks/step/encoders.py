"""Alternating training steps of several encoders, plain and compiled, on the same structures. Prints JSON.

    OMP_NUM_THREADS=1 python benchmarks/step/encoders.py five --stores stores --steps 40 \\
        '{kind: egnn, vector_channels: 16, message_layers: 1}' '{kind: many_body}' --modes none default

Ratios are to the first encoder with the first mode: medians over steps of the time on the same batch.
"""

import argparse
import json
import statistics
import time
from contextlib import ExitStack
from typing import Any

import yaml
from compiled import WARMUP, make

from ramify.recipe import Recipe, load_recipe, parse_recipe
from ramify.train.optimization.product_rates import wait_for


def with_encoder(recipe: Recipe, encoder: dict[str, Any]) -> Recipe:
    """The recipe with another encoder."""
    content = recipe.model_dump(mode="json")
    content["model"]["encoder"] = encoder
    return parse_recipe(content, "benchmark")


def main() -> None:
    """Parses the arguments, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("encoders", nargs="+", help="keys of `model.encoder` as YAML")
    parser.add_argument("--stores", default="stores")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--modes", nargs="+", default=["none"])
    given = parser.parse_args()
    recipe = load_recipe(given.recipe, [f"stores={json.dumps(given.stores)}"])
    trainers = {
        f"{text} {mode}": make(with_encoder(recipe, yaml.safe_load(text)), mode)
        for text in given.encoders
        for mode in given.modes
    }
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    with ExitStack() as stack:
        loaders = {name: stack.enter_context(trainer.loader()) for name, trainer in trainers.items()}
        for _ in range(WARMUP + given.steps):
            for name, trainer in trainers.items():
                work = next(loaders[name])
                began = time.perf_counter()
                trainer.step(work)
                wait_for(trainer.layout.device)
                seconds[name].append(time.perf_counter() - began)
    first, *_ = seconds
    result = {
        name: {
            "parameters": sum(p.numel() for p in trainers[name].model.encoder.parameters()),
            "seconds": statistics.median(taken[WARMUP:]),
            "ratio": statistics.median(a / b for a, b in zip(taken[WARMUP:], seconds[first][WARMUP:], strict=True)),
            "first_step": taken[0],
        }
        for name, taken in seconds.items()
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
