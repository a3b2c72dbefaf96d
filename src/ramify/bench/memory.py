"""`ramify bench memory`: measured memory of a rank against the number of branches.

The measured value is the increase of the resident set of the process from before the model is built to after two
training steps; free memory is returned to the system both times. The sum of the tensors that persist between steps is
reported as well. A step on a narrow model is taken first, so that libraries are already loaded.

Most layouts need more ranks than a machine has. Therefore one rank of the layout is measured alone: it has the same
placement, branches and gradient buckets as in the full layout, and does the same all-reduces in a group of its own. Its
results are meaningless, but its memory is that of the full layout, except for the buffers that the communication
library keeps for each other rank. `check` measures a layout with all its ranks in the same way.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from ramify.bench.case import Case
from ramify.bench.figures import draw_memory
from ramify.bench.measure import make_trainer, take_steps
from ramify.bench.profiling.resident import forget_peak, peak_bytes, resident_bytes
from ramify.bench.spawn import spawn
from ramify.bench.synthetic import equal_datasets
from ramify.errors import RamifyError
from ramify.files import read_json, write_json
from ramify.parallel.layout import Layout
from ramify.parallel.world import World
from ramify.planning.placement import Placement
from ramify.planning.plan import Plan, make_plan
from ramify.planning.workload import measure
from ramify.recipe import Recipe, parse_recipe
from ramify.system import process_memory
from ramify.train.start import configure_process, this_process

RESULT = "memory.json"
STEPS = 2
"""The first step allocates the optimizer state and averages; the second is measured with them."""
NARROW = 16
"""Width of the model that is trained before the measurement."""


@dataclass(frozen=True)
class MemoryBench:
    """What `ramify bench memory` measures.

    Attributes:
        recipe: recipe of the model.
        branches: numbers of branches, each on the same number of ranks.
        placements: see `Case.placement`; without a sharded encoder.
        check: number of branches and ranks of a layout measured with all ranks; 0 for none.
    """

    recipe: Recipe
    branches: Sequence[int]
    placements: Sequence[str] = ("replicated", "per-branch")
    check: int = 0


def run_memory(bench: MemoryBench, out: Path, say: Callable[[dict[str, Any]], None], limit: float) -> dict[str, Any]:
    """Measures all layouts, each in new processes; writes `memory.json`, `memory.svg` and `memory.png` into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    layouts = [(branches, True) for branches in bench.branches] + ([(bench.check, False)] if bench.check else [])
    for branches, alone in layouts:
        for placement in bench.placements if branches > 1 else bench.placements[:1]:
            case = _case(bench, branches, placement, out / "stores")
            found = spawn(
                "rank", case.model_dump(mode="json") | {"alone": alone}, 1 if alone else branches, limit=limit
            )
            say(found)
            rows.append(found)
    content = {"rows": rows, **_summary([row for row in rows if row["alone"]])}
    write_json(out / RESULT, content)
    draw_memory(content, out)
    return content


def run_rank(source: Path, target: Path) -> None:
    """Measures this rank of the layout in the file `source`, alone or with the other ranks."""
    content = read_json(source)
    alone, case = content.pop("alone"), Case.model_validate(content)
    with this_process(case.recipe) as world:
        with _process_group(alone):
            found = measure_memory(case, world, alone=alone)
        if world.is_rank_zero:
            write_json(target, found)


def measure_memory(case: Case, world: World, *, alone: bool) -> dict[str, Any]:
    """Memory of every running rank; all of them must call it.

    Args:
        case: the case, with the number of ranks of the layout.
        world: this process among the others.
        alone: whether this is the only running rank.
    """
    configure_process(case.recipe)
    stores = case.open_stores()
    sizes = {name: measure(store, case.recipe) for name, store in stores.items()}
    plan = make_plan(case.recipe, sizes, case.ranks, case.model)
    layout = _layout(plan.chosen.placement, world, alone)
    _train(case.model_copy(update={"recipe": _narrow(case.recipe)}), layout)
    before = process_memory()
    forget_peak()
    tensors, after, peak = _train(case, layout)
    own = {"process": after - before, "peak": peak - before, "tensors": tensors, "hosted": len(layout.hosted)}
    return _row(case, plan, world.gather(own), alone)


def _train(case: Case, layout: Layout) -> tuple[dict[str, int], int, int]:
    """Bytes of tensors by kind, of the process after the steps, and of the process at its peak."""
    trainer = make_trainer(case.recipe, case.open_stores(), layout)
    for work in take_steps(trainer, STEPS):
        del work  # its batches must not be counted
    return resident_bytes(trainer), process_memory(), peak_bytes(layout.device)


def _row(case: Case, plan: Plan, everyone: list[dict[str, Any]], alone: bool) -> dict[str, Any]:
    planned = max(plan.chosen.ranks, key=lambda cost: cost.states)
    fullest = max(everyone, key=lambda row: row["process"])
    return {
        "placement": case.placement,
        "branches": len(case.recipe.datasets_of_branches()),
        "ranks": case.ranks,
        "alone": alone,
        "hosted": fullest["hosted"],
        "process": fullest["process"],
        "tensors": sum(fullest["tensors"].values()),
        "kinds": fullest["tensors"],
        "planned": planned.states,
        "peak": fullest["peak"],
        "every_rank": [row["process"] for row in everyone],
        "branch_parameters": max(plan.model.branches.values()),
        "bytes_per_parameter": round(planned.states / planned.parameters),
    }


def _summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Memory per branch of each placement, and the largest error of the plan."""
    content: dict[str, Any] = {
        "largest_error_of_plan": max(abs(row["process"] / row["planned"] - 1.0) for row in rows),
    }
    first = [row for row in rows if row["branches"] == 1]
    for placement in {row["placement"] for row in rows}:
        mine = [
            *(row for row in first if row["placement"] != placement),
            *(r for r in rows if r["placement"] == placement),
        ]
        held = [row["process"] for row in mine]
        few, many = (choose(mine, key=lambda row: row["branches"]) for choose in (min, max))
        content[placement] = {"spread": max(held) / min(held) - 1.0}
        if many["branches"] > few["branches"]:
            content[placement] |= {
                "bytes_per_branch": (many["process"] - few["process"]) / (many["branches"] - few["branches"]),
                "whole_branch": many["branch_parameters"] * many["bytes_per_parameter"],
            }
    return content


def _case(bench: MemoryBench, branches: int, placement: str, folder: Path) -> Case:
    if "+" in placement:
        raise RamifyError(f"placement {placement}: a single rank cannot shard an encoder", fix="leave out the +")
    recipe, stores = equal_datasets(bench.recipe, branches, folder)
    return Case.of(
        recipe, stores, mode="memory", placement=placement, ranks=branches, batch=branches, warmup=0, steps=STEPS
    )


def _layout(placement: Placement, world: World, alone: bool) -> Layout:
    """Rank 0 of the placement in a group of its own, or this rank with all others."""
    if not alone:
        return Layout.spread(placement, world)
    groups = {branch: dist.group.WORLD if len(placement.hosts[branch]) > 1 else None for branch in placement.hosted(0)}
    return Layout(size=placement.ranks, placement=placement, device=world.device, groups=groups)


@contextmanager
def _process_group(alone: bool) -> Iterator[None]:
    """Opens a process group; for a single rank, a group of its own."""
    if not alone:
        yield
        return
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        dist.destroy_process_group()


def _narrow(recipe: Recipe) -> Recipe:
    content = recipe.model_dump(mode="json")
    for part in ("encoder", "energy_head", "force_head"):
        content["model"][part]["width"] = NARROW
    return parse_recipe(content, "benchmark")
