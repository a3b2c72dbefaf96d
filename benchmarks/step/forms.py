"""Ramify's training step compared with a naive form of its layer (`naive_egnn.py`), in one run. Prints JSON.

    OMP_NUM_THREADS=1 python -m benchmarks.step.forms paper --datasets qm7x --stores stores

Steps of both forms and matrix products alternate on the same batches. Memory is measured in a new process for each
form: the peak minus the memory before the model is built.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from benchmarks.step.naive_egnn import make_naive

from ramify.bench.limits import product_rate
from ramify.bench.measure import make_trainer
from ramify.bench.profiling.resident import forget_peak, peak_bytes
from ramify.bench.step import chosen
from ramify.model.build import LabelSpread, build_model
from ramify.parallel.layout import Layout
from ramify.planning.model_profile import profile_model
from ramify.recipe import Recipe, load_recipe, parse_recipe
from ramify.store.store import Store
from ramify.system import process_memory
from ramify.train import loop
from ramify.train.loop import Trainer
from ramify.train.start import configure_process

FORMS = ("product", "product-bf16", "naive")


def make(form: str, recipe: Recipe) -> Trainer:
    """A trainer with the layers of that form."""
    content = recipe.model_dump(mode="json")
    content["train"]["precision"] = "bf16" if form.endswith("bf16") else "fp32"
    changed = parse_recipe(content, "benchmark")
    stores = {name: Store.open(Path(recipe.stores) / name) for name in recipe.datasets}
    layout = Layout.alone(list(recipe.datasets_of_branches()), torch.device("cpu"))
    if not form.startswith("naive"):
        return make_trainer(changed, stores, layout)
    with mock.patch.object(loop, "build_model", lambda *given: make_naive(build_model(*given))):
        return make_trainer(changed, stores, layout)


def measure_memory(form: str, recipe: Recipe) -> int:
    """Bytes of model and step, in this process."""
    stores = {name: Store.open(Path(recipe.stores) / name) for name in recipe.datasets}
    profile_model(recipe, {n: LabelSpread.of_manifest(s.manifest) for n, s in stores.items()})
    before = process_memory()  # after loading all libraries
    forget_peak()
    trainer = make(form, recipe)
    with trainer.loader() as loader:
        for _ in range(3):
            trainer.step(next(loader))
    return peak_bytes(torch.device("cpu")) - before


def measure_times(recipe: Recipe, steps: int) -> dict[str, dict[str, Any]]:
    """Seconds of every form with alternating steps, and of matrix products."""
    trainers = {form: make(form, recipe) for form in FORMS}
    seconds: dict[str, list[float]] = {form: [] for form in FORMS}
    rates: dict[str, list[float]] = {"fp32": [], "bf16": []}
    with trainers["product"].loader() as loader:
        works = [next(loader) for _ in range(steps)]
    for number, work in enumerate([works[0], *works]):
        for form, trainer in trainers.items():
            began = time.perf_counter()
            trainer.step(work)
            if number:  # the first step is a warm-up
                seconds[form].append(time.perf_counter() - began)
        for precision, found in rates.items():
            found.append(product_rate(torch.device("cpu"), precision))
    ratios = {
        form: [n / own for n, own in zip(seconds["naive"], times, strict=True)] for form, times in seconds.items()
    }
    return {
        "seconds": {form: statistics.median(times) for form, times in seconds.items()},
        "times_faster_than_naive": {form: statistics.median(r) for form, r in ratios.items() if form != "naive"},
        "product_gflops": {precision: statistics.median(found) / 1e9 for precision, found in rates.items()},
    }


def main() -> None:
    """Parses the arguments, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--datasets", required=True)
    parser.add_argument("--stores", required=True)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--memory-of", choices=FORMS, help=argparse.SUPPRESS)
    given = parser.parse_intermixed_args()
    recipe = load_recipe(given.recipe, [*given.overrides, f"stores={given.stores}", f"train.batch={given.batch}"])
    recipe = chosen(recipe, given.datasets.split(","))
    configure_process(recipe)
    if given.memory_of:
        print(measure_memory(given.memory_of, recipe))
        return
    memory = {}
    for form in FORMS:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.step.forms", *sys.argv[1:], "--memory-of", form],
            capture_output=True,
            text=True,
            check=True,
        )
        memory[form] = int(done.stdout)
    shares = {form: memory[form] / memory["naive"] for form in FORMS}
    found = {**measure_times(recipe, given.steps), "memory": memory, "memory_of_naive": shares}
    print(json.dumps(found | {"threads": torch.get_num_threads(), "batch": given.batch}, indent=1))


if __name__ == "__main__":
    main()
