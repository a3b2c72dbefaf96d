"""Compiled training steps compared with plain ones, alternating, on the same batches. Prints JSON.

    OMP_NUM_THREADS=1 python -m benchmarks.step.compiled five --stores stores
    OMP_NUM_THREADS=1 python -m benchmarks.step.compiled paper --datasets qm7x --stores stores train.batch=32

The model is compiled in the first step, which is reported separately. Both models start with the same weights; the
final difference of their weights is reported as well. After the timed steps, PyTorch's profiler counts the operations
of a step that no other operation calls, and the fraction of its time in matrix products.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from ramify.batches.loader import StepBatches
from ramify.bench.measure import amounts, make_trainer
from ramify.bench.step import chosen
from ramify.model.build import LabelSpread
from ramify.parallel.layout import Layout
from ramify.planning.model_profile import profile_model
from ramify.recipe import Recipe, load_recipe, parse_recipe
from ramify.store.store import Store
from ramify.train.loop import Trainer
from ramify.train.optimization.product_rates import wait_for
from ramify.train.start import alone, configure_process

WARMUP = 3
PROFILED = 5
"""Steps under the profiler."""
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")


def make(recipe: Recipe, mode: str) -> Trainer:
    """A trainer at step 0."""
    content = recipe.model_dump(mode="json")
    content["train"]["compile"] = mode
    changed = parse_recipe(content, "benchmark")
    stores = {name: Store.open(Path(recipe.stores) / name) for name in recipe.datasets}
    return make_trainer(changed, stores, Layout.alone(list(recipe.datasets_of_branches()), alone(changed).device))


def steps_in_turn(
    trainers: dict[str, Trainer], loaders: dict[str, Iterator[StepBatches]], steps: int
) -> Iterator[tuple[str, StepBatches, float]]:
    """Takes steps of all trainers in turn; yields the name of each, its batches, and its seconds: of the processor, or
    with an accelerator by the clock."""
    for _ in range(steps):
        for name, trainer in trainers.items():
            device = trainer.layout.device
            clock = time.process_time if device.type == "cpu" else time.perf_counter
            work = next(loaders[name])
            began = clock()
            trainer.step(work)
            wait_for(device)
            yield name, work, clock() - began


def measure(recipe: Recipe, modes: list[str], steps: int) -> dict[str, Any]:
    """Seconds of every mode with alternating steps, and the fraction of padding."""
    trainers = {mode: make(recipe, mode) for mode in modes}
    spreads = {name: LabelSpread.of_manifest(data) for name, data in trainers[modes[0]].data.items()}
    cost = profile_model(recipe, spreads)
    seconds: dict[str, list[float]] = {mode: [] for mode in modes}
    real, rows = {"atoms": 0, "edges": 0}, {mode: {"atoms": 0, "edges": 0} for mode in modes}
    with ExitStack() as stack:
        loaders = {mode: stack.enter_context(trainer.loader()) for mode, trainer in trainers.items()}
        for mode, work, taken in steps_in_turn(trainers, loaders, WARMUP + steps):
            seconds[mode].append(taken)
            for batch in work.batches:
                rows[mode]["atoms"] += len(batch.numbers)
                rows[mode]["edges"] += len(batch.receiver)
                for of in real if mode == modes[0] else ():
                    real[of] += amounts(batch, cost)[of]
        profiles = {mode: profiled(trainer, loaders[mode]) for mode, trainer in trainers.items()}
    plain, *others = (trainer.model.state_dict() for trainer in trainers.values())
    apart = [max(float((a - b).abs().max()) for a, b in zip(plain.values(), o.values(), strict=True)) for o in others]
    counted = {mode: taken[WARMUP:] for mode, taken in seconds.items()}
    ratios = {m: [a / b for a, b in zip(counted[modes[0]], counted[m], strict=True)] for m in modes[1:]}
    return {
        "device": trainers[modes[0]].layout.device.type,
        "threads": torch.get_num_threads(),
        "seconds": {mode: statistics.median(taken) for mode, taken in counted.items()},
        "first_step": {mode: taken[0] for mode, taken in seconds.items()},
        "times_faster_than_plain": {mode: statistics.median(ratio) for mode, ratio in ratios.items()},
        "profiles": profiles,
        "padding": {mode: {of: 1 - real[of] / rows[mode][of] for of in real} for mode in modes[1:]},
        "weights_apart": dict(zip(modes[1:], apart, strict=True)),
    }


def profiled(trainer: Trainer, loader: Iterator[StepBatches]) -> dict[str, float]:
    """Operations per step, and the fraction of the processor time in products."""
    work = [next(loader) for _ in range(PROFILED)]
    with profile(activities=[ProfilerActivity.CPU]) as record:
        for one in work:
            trainer.step(one)
    own = [event for event in record.events() or [] if event.name.startswith("aten::")]
    first = [event for event in own if event.cpu_parent is None or not event.cpu_parent.name.startswith("aten::")]
    totals = {event.key: event.self_cpu_time_total for event in record.key_averages()}
    products = sum(totals.get(name, 0.0) for name in PRODUCTS)
    return {"operations": len(first) / PROFILED, "products": products / sum(totals.values())}


def main() -> None:
    """Parses the arguments, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--datasets", default="", help="only these datasets, separated by commas")
    parser.add_argument("--stores", required=True)
    parser.add_argument("--modes", default="default", help="values of train.compile: default,cuda-graphs")
    parser.add_argument("--steps", type=int, default=20)
    given = parser.parse_intermixed_args()
    recipe = load_recipe(given.recipe, [*given.overrides, f"stores={given.stores}"])
    recipe = chosen(recipe, [name for name in given.datasets.split(",") if name])
    configure_process(recipe)
    print(json.dumps(measure(recipe, ["none", *given.modes.split(",")], given.steps), indent=1))


if __name__ == "__main__":
    main()
