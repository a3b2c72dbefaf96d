"""`ramify bench step`: cost of a training step on one process, compared with the limits of the machine.

Every case gets a new process, so that its peak memory is measured separately. Steps alternate with matrix products,
since the speed of a machine varies when other programs use it.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ramify.batches.loader import StepBatches
from ramify.bench.limits import product_rate, product_size
from ramify.bench.measure import amounts, describe, make_trainer
from ramify.bench.profiling.phases import Phases
from ramify.bench.profiling.resident import forget_peak, peak_bytes, resident_bytes
from ramify.bench.profiling.trace import profile_step
from ramify.bench.spawn import spawn
from ramify.bench.synthetic import of_sizes
from ramify.errors import RamifyError
from ramify.files import read_json, write_json
from ramify.model.build import LabelSpread
from ramify.parallel.layout import Layout
from ramify.planning.model_profile import ModelProfile, profile_model
from ramify.planning.workload import StatedSize
from ramify.recipe import Recipe, parse_recipe
from ramify.store.store import Store
from ramify.system import process_memory
from ramify.train.loop import Trainer
from ramify.train.optimization.product_rates import wait_for
from ramify.train.start import configure_process, this_process

RESULT = "step.json"
TRACE = "trace-{precision}-{forces}.json"

CONTENTS = ("structures", "atoms", "edges", "operations", "atoms_padded", "edges_padded")
"""Quantities counted in every step."""

UPDATE = ("clipping", "optimizer", "averages")
"""The phases whose time does not grow with the batch."""


@dataclass(frozen=True)
class StepBench:
    """What `ramify bench step` measures.

    Attributes:
        recipe: recipe of the training.
        datasets: datasets of the recipe to use; empty for all.
        sizes: sizes of synthetic datasets; the others need stores.
        precisions, forces: a case for every pair of them; empty for those of the recipe.
        warmup, steps: numbers of untimed and timed steps of each case.
        profile: also write a trace and the most expensive operations.
    """

    recipe: Recipe
    datasets: Sequence[str] = ()
    sizes: Mapping[str, StatedSize] = field(default_factory=dict)
    precisions: Sequence[str] = ()
    forces: Sequence[str] = ()
    warmup: int = 2
    steps: int = 7
    profile: bool = False

    def cases(self, out: Path) -> Iterator[dict[str, Any]]:
        """The cases as plain data, for the processes that measure them.

        Raises:
            RamifyError: the recipe has no such dataset, precision or kind of forces.
        """
        recipe, stores = of_sizes(chosen(self.recipe, self.datasets), self.sizes, out / "stores")
        for precision in self.precisions or (recipe.train.precision,):
            for forces in self.forces or (recipe.model.force_head.kind,):
                content = recipe.model_dump(mode="json")
                content["train"]["precision"] = precision
                content["model"]["force_head"]["kind"] = forces
                trace = out / TRACE.format(precision=precision, forces=forces) if self.profile else None
                yield {
                    "recipe": parse_recipe(content, "benchmark").model_dump(mode="json"),
                    "stores": {name: str(path) for name, path in stores.items()},
                    "warmup": self.warmup,
                    "steps": self.steps,
                    "trace": str(trace) if trace else None,
                }


def chosen(recipe: Recipe, datasets: Sequence[str]) -> Recipe:
    """The recipe with only these datasets, each with its own branch; the whole recipe if none are named."""
    if not datasets:
        return recipe
    if unknown := [name for name in datasets if name not in recipe.datasets]:
        raise RamifyError(f"--datasets {','.join(unknown)}: the recipe has {', '.join(recipe.datasets)}")
    content = recipe.content_with(datasets) | {"branches": "per-dataset"}
    return parse_recipe(content, "benchmark")


def run_bench(bench: StepBench, out: Path, say: Callable[[dict[str, Any]], None], limit: float) -> dict[str, Any]:
    """Measures all cases, each in a process of its own; writes `step.json` into `out` after every one.

    Args:
        bench: the cases.
        out: a folder; its `step.json` is replaced.
        say: called with every measured case.
        limit: time limit of a case in seconds.
    """
    out.mkdir(parents=True, exist_ok=True)
    threads = bench.recipe.train.threads or 1
    cases: list[dict[str, Any]] = []
    for case in bench.cases(out):
        cases.append(spawn("step-case", case, 1, threads=threads, limit=limit))
        write_json(out / RESULT, {"cases": cases})
        say(cases[-1])
    return {"cases": cases}


def run_case(source: Path, target: Path) -> None:
    """Measures the case in the file `source` in this process and writes the results."""
    case = read_json(source)
    recipe = parse_recipe(case["recipe"], "benchmark")
    with this_process(recipe) as world:
        configure_process(recipe)
        stores = {name: Store.open(Path(path)) for name, path in case["stores"].items()}
        spreads = {name: LabelSpread.of_manifest(s.manifest) for name, s in stores.items()}
        cost = profile_model(_plain(recipe), spreads)
        before = process_memory()
        trainer = make_trainer(recipe, stores, Layout.alone(list(recipe.datasets_of_branches()), world.device))
        found = measure_steps(trainer, cost, case["warmup"], case["steps"], before)
        if case["trace"]:
            found["most_expensive"] = profile_step(trainer, Path(case["trace"]))
            found["trace"] = case["trace"]
        write_json(target, found)


def _plain(recipe: Recipe) -> Recipe:
    """The recipe without activation checkpointing, whose operations are counted."""
    content = recipe.model_dump(mode="json")
    content["train"]["checkpointing"] = "none"
    return parse_recipe(content, "benchmark")


def measure_steps(trainer: Trainer, cost: ModelProfile, warmup: int, steps: int, before: int = 0) -> dict[str, Any]:
    """Takes steps, each followed by a measurement of the matrix product.

    Args:
        trainer: trainer on one process.
        cost: profile with the operations to count, those of the cheapest form of the model.
        warmup, steps: numbers of untimed and timed steps.
        before: bytes of the process before the trainer was created.
    """
    device, precision = trainer.layout.device, trainer.recipe.train.precision
    phases, rows = Phases(device), list[dict[str, Any]]()
    with trainer.loader() as loader:
        forget_peak()
        for _ in range(warmup):
            _one_step(trainer, next(loader), phases)
        if trainer.recipe.train.compile != "none":
            forget_peak()  # memory of the compiler in the first step
        rate = product_rate(device, precision)
        for _ in range(steps):
            work = next(loader)
            seconds = _one_step(trainer, work, phases)
            after = product_rate(device, precision)
            rows.append({**_contents(work, cost), "seconds": seconds, "product": 0.5 * (rate + after)})
            rate = after
        peak = peak_bytes(device)  # includes later steps, since the first allocates the optimizer state
        stop = phases.listen(trainer)
        split = [_split_step(trainer, loader, phases) for _ in range(steps)]
        stop()
    return _summary(trainer, rows, split, {"before": before, "peak": peak, "resident": resident_bytes(trainer)})


def _one_step(trainer: Trainer, work: StepBatches, phases: Phases) -> float:
    phases.begin()
    began = time.perf_counter()
    trainer.step(work)
    wait_for(trainer.layout.device)
    return time.perf_counter() - began


def _split_step(trainer: Trainer, loader: Iterator[StepBatches], phases: Phases) -> dict[str, float]:
    phases.begin()
    work = next(loader)
    phases.mark("data")
    trainer.step(work)
    trainer.finish_step()  # updates the averages now, not in the next step
    phases.mark("averages")
    return phases.taken()


def _contents(work: StepBatches, cost: ModelProfile) -> dict[str, int]:
    """Contents of all micro-batches of a step, and numbers of atoms and edges with padding."""
    found = [
        amounts(batch, cost) | {"atoms_padded": len(batch.numbers), "edges_padded": len(batch.receiver)}
        for batch in work.batches
    ]
    return {what: sum(part[what] for part in found) for what in CONTENTS}


def _summary(
    trainer: Trainer, rows: list[dict[str, Any]], split: list[dict[str, float]], memory: dict[str, Any]
) -> dict[str, Any]:
    recipe = trainer.recipe
    seconds = _quantiles([row["seconds"] for row in rows])
    phases = {phase: _quantiles([taken[phase] for taken in split])[1] for phase in split[0]}
    whole = _quantiles([sum(taken.values()) for taken in split])[1]
    mean = {what: sum(r[what] for r in rows) / len(rows) for what in CONTENTS}
    total = sum(row["seconds"] for row in rows)
    return {
        "precision": recipe.train.precision,
        "forces": recipe.model.force_head.kind,
        "checkpointing": recipe.train.checkpointing,
        "compile": recipe.train.compile,
        "threads": torch.get_num_threads(),
        "device": describe(trainer.layout.device),
        "torch": torch.__version__,
        "batch": recipe.train.batch,
        **mean,
        "padding": {of: 1.0 - mean[of] / mean[f"{of}_padded"] for of in ("atoms", "edges")},
        "steps": len(rows),
        "seconds": seconds[1],
        "quartiles": [seconds[0], seconds[2]],
        "structures_per_second": sum(r["structures"] for r in rows) / total,
        "edges_per_second": sum(r["edges"] for r in rows) / total,
        "flops": _quantiles([r["operations"] / r["seconds"] for r in rows])[1],
        "product_size": product_size(trainer.layout.device, recipe.train.precision),
        "product_flops": _quantiles([r["product"] for r in rows])[1],
        "ratio": _quantiles([r["operations"] / r["seconds"] / r["product"] for r in rows])[1],
        "phases": phases,
        "update_share": sum(phases[phase] for phase in UPDATE) / whole,
        "memory": {**memory, "step": memory["peak"] - memory["before"]},
        "rows": rows,
    }


def _quantiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median and third quartile."""
    found = torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
    low, middle, high = found.tolist()
    return low, middle, high
