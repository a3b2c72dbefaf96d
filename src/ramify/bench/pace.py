"""Seconds per step of a training on one process of this machine, and nothing else of a benchmark: for trainings that
take equal time."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from statistics import median

from ramify.bench.spawn import spawn
from ramify.files import read_json, write_json
from ramify.recipe import Recipe, parse_recipe

WARMUP, STEPS = 2, 10
"""Steps in which memory is allocated and caches fill, and measured steps."""


def step_seconds(recipe: Recipe, stores: Mapping[str, Path]) -> float:
    """Median seconds per step of a new process with `train.threads` threads, or one, loading included.

    Args:
        recipe: its placement and sharding, which are for several processes, are not used.
        stores: paths of the stores by dataset.

    Raises:
        RamifyError: the process failed.
    """
    content = recipe.model_dump(mode="json")
    content["parallel"] |= {"placement": "replicated", "shard": "none"}
    case = {"recipe": content, "stores": {name: str(path) for name, path in stores.items()}}
    return float(spawn("pace", case, 1, threads=recipe.train.threads or 1)["seconds"])


def run_case(source: Path, target: Path) -> None:
    """Measures the case in the file `source` in this process and writes the result."""
    import time

    from ramify.bench.measure import make_trainer, take_steps
    from ramify.parallel.layout import Layout
    from ramify.store.store import Store
    from ramify.train.optimization.product_rates import wait_for
    from ramify.train.start import configure_process, this_process

    case = read_json(source)
    recipe = parse_recipe(case["recipe"], "benchmark")
    with this_process(recipe) as world:
        configure_process(recipe)
        stores = {name: Store.open(Path(path)) for name, path in case["stores"].items()}
        trainer = make_trainer(recipe, stores, Layout.alone(list(recipe.datasets_of_branches()), world.device))
        ends = []
        for _ in take_steps(trainer, WARMUP + STEPS):
            wait_for(world.device)
            ends.append(time.perf_counter())
        seconds = [after - before for before, after in pairwise(ends[WARMUP - 1 :])]
        write_json(target, {"seconds": median(seconds)})
