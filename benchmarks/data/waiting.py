"""Waiting time for data: in real steps of the paper's model, and in a consumer that only sleeps."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from benchmarks.data.rates import BATCH

from ramify.batches.loader import Loader, SplitReader, StepAssignment
from ramify.batches.sampler import BatchSampler
from ramify.model.build import LabelSpread, build_model
from ramify.recipe import Recipe, parse_recipe
from ramify.store.store import Store

CUTOFF = 5.0
"""Å."""
STEP_STRUCTURES = 32
"""Batch of a real step: that of one rank in the paper."""
WARMUP = 200
"""Number of uncounted batches, in which the blocks of the columns are checked at their first read."""
TURNS = 3
"""Number of repetitions for each consumer."""


def serve_consumers(path: Path, workers: Sequence[int], seconds: float) -> list[dict[str, Any]]:
    """Rates of batches with edges for each number of workers, with a consumer that sleeps 0.5 ms instead of a step:
    medians of several repetitions of `seconds`."""
    turns = [[_serve(path, number, seconds) for number in workers] for _ in range(TURNS)]
    return [
        {
            "workers": number,
            "structures_per_s": median(rate for rate, _ in of_number),
            "waited_share": median(waited for _, waited in of_number),
            "turns": [rate for rate, _ in of_number],
        }
        for number, *of_number in zip(workers, *turns, strict=True)
    ]


def _serve(path: Path, workers: int, seconds: float) -> tuple[float, float]:
    """Structures/s, and the fraction of time in which the consumer waits."""
    with Store.open(path) as store:
        reader = _reader(store, None)
        with Loader(
            {"bench": reader}, _shares(reader, BATCH), torch.float32, ahead=4 * workers, workers=workers
        ) as loader:
            for _ in range(WARMUP):
                next(loader)
            waited, begun, count = loader.waited, time.perf_counter(), 0
            while time.perf_counter() - begun < seconds:
                next(loader)
                time.sleep(0.0005)
                count += 1
            took = time.perf_counter() - begun
            return count * BATCH / took, (loader.waited - waited) / took


def step_waits(path: Path, steps: int, width: int) -> dict[str, Any]:
    """The fraction of the time of steps (forward, backward, AdamW) of an encoder of `width` spent waiting for data."""
    recipe = _recipe(width)
    with Store.open(path) as store:
        reader = _reader(store, recipe.model.encoder.max_neighbors)
        statistics = store.manifest.statistics
        spread = LabelSpread(statistics.energy_std, statistics.forces_mae, len(reader))
        model = build_model(recipe, {"bench": spread})
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        with Loader({"bench": reader}, _shares(reader, STEP_STRUCTURES), torch.float32, ahead=2) as loader:
            waited, begun = 0.0, 0.0
            for step in range(steps + 1):
                if step == 1:  # the first step is a warm-up
                    waited, begun = loader.waited, time.perf_counter()
                batch = next(loader).batches[0]
                found = model(batch)
                loss = (found.energy - batch.energy).square().mean() + (found.forces - batch.forces).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            took = time.perf_counter() - begun
            return {
                "width": width,
                "structures_per_step": STEP_STRUCTURES,
                "step_s": took / steps,
                "waited_share": (loader.waited - waited) / took,
            }


def _recipe(width: int) -> Recipe:
    """A recipe with the paper's model, 4 layers of 866 and heads of 889, or with narrower layers."""
    head = {"layers": 3, "width": width + 23}
    return parse_recipe(
        {
            "datasets": {"bench": {"format": "extxyz", "path": "none.xyz"}},
            "model": {
                "encoder": {"kind": "egnn", "layers": 4, "width": width, "cutoff": CUTOFF, "max_neighbors": 20},
                "energy_head": head,
                "force_head": {**head, "kind": "direct"},
            },
        },
        "benchmark",
    )


def _reader(store: Store, max_neighbors: int | None) -> SplitReader:
    return SplitReader("bench", store, "train", "bench", cutoff=CUTOFF, max_neighbors=max_neighbors, edge_cache=0.0)


def _shares(reader: SplitReader, batch: int) -> Iterator[StepAssignment]:
    """Random structures, each once per pass."""
    stream, step = BatchSampler({"bench": len(reader)}, {"bench": 1.0}, batch, 0), 0
    while True:
        yield StepAssignment(step, ({"bench": stream.rows("bench", step * batch, batch)},), {})
        step += 1
