"""Measures real training steps in this process and the other ranks."""

import gc
import platform
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ramify.batches.batch import Batch
from ramify.batches.loader import StepBatches
from ramify.batches.open import open_split
from ramify.bench.case import Case
from ramify.bench.limits import measure_limits
from ramify.bench.profiling.resident import peak_bytes, resident_bytes
from ramify.parallel.layout import Layout
from ramify.parallel.world import CONTROL, World
from ramify.planning.model_profile import ModelProfile
from ramify.planning.plan import make_plan
from ramify.planning.workload import measure
from ramify.recipe import Recipe
from ramify.run.run import Run
from ramify.run.stop import Stop
from ramify.store.store import Store
from ramify.train.loop import Trainer
from ramify.train.optimization.product_rates import wait_for
from ramify.train.start import configure_process

NOWHERE = "benchmark"
"""Name of the run of a benchmark; nothing is written to it."""

UPDATES = 5
"""Number of separate timings of the optimizer update."""


def make_trainer(recipe: Recipe, stores: dict[str, Store], layout: Layout) -> Trainer:
    """A trainer at step 0 as in `ramify train`, without a run directory; with `train.compile: auto`, of plain steps."""
    if recipe.train.compile == "auto":
        recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"compile": "none"})})
    branch_of = recipe.branch_of_datasets()
    readers = open_split(recipe, {n: s for n, s in stores.items() if branch_of[n] in layout.hosted}, "train")
    data = {name: store.manifest for name, store in stores.items()}
    return Trainer(recipe, Run(Path(NOWHERE)), data, readers, {}, layout, Stop())


def take_steps(trainer: Trainer, steps: int) -> Iterator[StepBatches]:
    """Takes `steps` steps; yields the batches of this rank after each step."""
    with trainer.loader() as loader:
        for _ in range(steps):
            work = next(loader)
            trainer.step(work)
            yield work


def measure_case(case: Case, world: World) -> dict[str, Any]:
    """Measures a case; returns the results of all ranks on every rank, and must be called by all.

    Raises:
        RamifyError: the placement is not possible on these ranks.
    """
    recipe = case.recipe
    configure_process(recipe)
    stores = case.open_stores()
    limits = measure_limits(world.device, recipe.train.precision, world.size)
    plan = make_plan(recipe, {name: measure(store, recipe) for name, store in stores.items()}, world.size, case.model)
    placement = plan.chosen.placement
    layout = Layout.spread(placement, world)
    trainer = make_trainer(recipe, stores, layout)
    took = _time_steps(trainer, case, plan.model)
    own = {
        **took,
        "branches": list(layout.hosted),
        "resident": resident_bytes(trainer),
        "peak": peak_bytes(layout.device),
        "update": _time_update(trainer),
        "limits": limits,
    }
    everyone = world.gather(own)
    planned = [
        {"states": c.states, "memory": c.memory, "traffic": c.traffic, "operations": c.operations}
        for c in plan.chosen.ranks
    ]
    del trainer
    gc.collect()
    return _result(case, placement.kind, world.device, everyone, planned)


def _time_steps(trainer: Trainer, case: Case, model: ModelProfile) -> dict[str, Any]:
    """Seconds of the timed steps, and mean amounts of work and communication of this rank."""
    layout, warmup = trainer.layout, case.warmup
    times: list[float] = []
    done: Counter[str] = Counter()
    began = time.perf_counter()
    for number, work in enumerate(take_steps(trainer, warmup + case.steps)):
        wait_for(layout.device)
        now = time.perf_counter()
        if number == warmup - 1:
            layout.traffic.clear()
        elif number >= warmup:
            times.append(now - began)
            for batch in work.batches:
                done.update(amounts(batch, model))
        began = now
    sent = {what: bytes_ / case.steps for what, bytes_ in layout.traffic.items()}
    mean = {what: done[what] / case.steps for what in ("structures", "atoms", "edges", "operations", "segments")}
    return {
        "seconds": times,
        **mean,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "traffic": {what: bytes_ for what, bytes_ in sent.items() if what != CONTROL},
        "control": sent.get(CONTROL, 0.0),
    }


def amounts(batch: Batch, model: ModelProfile) -> dict[str, int]:
    """Numbers of structures, atoms and edges of a batch without padding, and the operations of a step on it; segments
    are the branches with structures."""
    found = dict.fromkeys(("structures", "atoms", "edges"), 0)
    operations = 0.0
    for segment in batch.segments:
        a, b = segment.atoms.start, segment.atoms.stop
        edges = int(((batch.receiver >= a) & (batch.receiver < b)).sum())
        found["structures"] += segment.structures.stop - segment.structures.start
        found["atoms"] += b - a
        found["edges"] += edges
        operations += model.steps[segment.name].operations(b - a, edges)
    return found | {"operations": round(operations), "segments": len(batch.segments)}


def _time_update(trainer: Trainer) -> float:
    """Median seconds of the update of weights and averages alone, which does not depend on the size of a step."""
    times = []
    for _ in range(UPDATES):
        wait_for(trainer.layout.device)
        began = time.perf_counter()
        trainer.optimizer.step()
        trainer.averages.update(trainer.progress.step)
        wait_for(trainer.layout.device)
        times.append(time.perf_counter() - began)
    return sorted(times)[len(times) // 2]


def _result(
    case: Case, kind: str, device: torch.device, everyone: list[dict[str, Any]], planned: list[dict[str, Any]]
) -> dict[str, Any]:
    times = Tensor([row["seconds"] for row in everyone]).double().amax(0)  # ranks wait for each other in every step
    median = float(times.median())
    structures = sum(row["structures"] for row in everyone)
    return {
        "mode": case.mode,
        "placement": case.placement,
        "kind": kind,
        "ranks": case.ranks,
        "batch": case.recipe.train.batch,
        "branches": len(case.recipe.datasets_of_branches()),
        "steps": case.steps,
        "seconds": median,
        "quartiles": [float(times.quantile(q)) for q in (0.25, 0.75)],
        "range": [float(times.min()), float(times.max())],
        "structures_per_second": structures / median,
        "edges_per_second": sum(row["edges"] for row in everyone) / median,
        "rows": [{**own, "planned": plan} for own, plan in zip(everyone, planned, strict=True)],
        "precision": case.recipe.train.precision,
        "device": describe(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def describe(device: torch.device) -> str:
    """Name of the device."""
    if device.type == "cpu":
        return f"cpu {platform.machine()}"
    return str(getattr(torch, device.type).get_device_name(device))
