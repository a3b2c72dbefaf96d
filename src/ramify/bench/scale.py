"""`ramify bench scale`: weak and strong scaling with numbers of ranks and placements, measured with training steps.

On one machine every case gets new processes, started as by torchrun. Under a launcher (srun, mpiexec, torchrun) the
started processes measure their own layout and add it to the results in the folder: running the same command once per
number of ranks gives the curve of a cluster.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ramify.bench.case import Case
from ramify.bench.figures import draw_scaling
from ramify.bench.measure import measure_case
from ramify.bench.predict.check import KEY
from ramify.bench.predict.speed import CALIBRATION
from ramify.bench.spawn import spawn
from ramify.bench.synthetic import equal_datasets, of_sizes
from ramify.errors import RamifyError
from ramify.files import read_json, write_json
from ramify.parallel.startup.launch import detect_launcher
from ramify.parallel.sync import on_rank_zero
from ramify.planning.workload import StatedSize
from ramify.recipe import Recipe
from ramify.train.start import this_process

RESULT = "scale.json"

CALIBRATED_BRANCHES = (1, 6)
"""Numbers of branches; the larger is also a number of structures, at least one of each branch."""


@dataclass(frozen=True)
class Sweep:
    """What `ramify bench scale` measures.

    Attributes:
        recipe: recipe of the training.
        ranks: numbers of ranks.
        placements: see `Case.placement`.
        modes: `weak`, `strong`.
        batch: structures per rank in weak scaling.
        total: structures per step in strong scaling.
        branches: number of equal synthetic datasets instead of those of the recipe.
        sizes: sizes of synthetic datasets; the others need stores.
        warmup, steps: numbers of untimed and timed steps of each case.
        calibrate: also measure the cases on one rank that the cost model is fitted to (`ramify.bench.predict.speed`).
    """

    recipe: Recipe
    ranks: Sequence[int]
    placements: Sequence[str]
    modes: Sequence[str] = ("weak", "strong")
    batch: int = 8
    total: int = 16
    branches: int | None = None
    sizes: Mapping[str, StatedSize] = field(default_factory=dict)
    warmup: int = 2
    steps: int = 10
    calibrate: bool = False

    def data(self, folder: Path) -> tuple[Recipe, dict[str, Path]]:
        """The recipe and its stores; synthetic stores are made in `folder`."""
        if self.branches is not None:
            return equal_datasets(self.recipe, self.branches, folder)
        return of_sizes(self.recipe, self.sizes, folder)

    def cases(self, recipe: Recipe, stores: Mapping[str, Path], ranks: Sequence[int]) -> Iterator[Case]:
        """Cases for these numbers of ranks. On one rank all placements are the same, and are measured once."""
        case = partial(Case.of, recipe, stores, warmup=self.warmup, steps=self.steps)
        for mode in self.modes:
            if mode not in ("weak", "strong"):
                raise RamifyError(f"mode {mode}: accepted are weak and strong")
            for world in ranks:
                for placement in self.placements if world > 1 else ("replicated",):
                    batch = self.batch * world if mode == "weak" else self.total
                    yield case(mode=mode, placement=placement, ranks=world, batch=batch)

    def calibration(self, folder: Path) -> Iterator[Case]:
        """Cases with few and many structures and one or several branches, which determine the costs per step, per
        branch and per operation."""
        for branches in CALIBRATED_BRANCHES:
            recipe, stores = equal_datasets(self.recipe, branches, folder)
            case = partial(Case.of, recipe, stores, warmup=self.warmup, steps=self.steps)
            for batch in (CALIBRATED_BRANCHES[-1], 2 * CALIBRATED_BRANCHES[-1]):
                yield case(mode=CALIBRATION, placement="replicated", ranks=1, batch=batch)


def run_scale(sweep: Sweep, out: Path, say: Callable[[dict[str, Any]], None], limit: float) -> dict[str, Any] | None:
    """Measures all cases; writes `scale.json`, `scale.svg` and `scale.png` into `out`, after every case.

    Args:
        sweep: the cases.
        out: a folder, new or with results of an earlier sweep, which are kept.
        say: called with every measured case.
        limit: time limit of a case in seconds.

    Returns:
        The content of `scale.json`; None on all ranks but rank zero under a launcher.
    """
    if detect_launcher().world > 1:
        return _by_launcher(sweep, out, say)
    recipe, stores = sweep.data(out / "stores")
    threads, content = recipe.train.threads or 1, _before(out)
    calibration = sweep.calibration(out / "stores") if sweep.calibrate else ()
    for case in (*calibration, *sweep.cases(recipe, stores, sweep.ranks)):
        found = spawn("case", case.model_dump(mode="json"), case.ranks, threads=threads, limit=limit)
        content = _keep(content, found, out)
        say(found)
    return content


def run_case(source: Path, target: Path) -> None:
    """Measures the case in the file `source` as one of its ranks; rank zero writes the results."""
    case = Case.model_validate(read_json(source))
    with this_process(case.recipe) as world:
        found = measure_case(case, world)
        if world.is_rank_zero:
            write_json(target, found)


def _by_launcher(sweep: Sweep, out: Path, say: Callable[[dict[str, Any]], None]) -> dict[str, Any] | None:
    with this_process(sweep.recipe) as world:
        on_rank_zero(world, lambda: [None, sweep.data(out / "stores")][0])
        recipe, stores = sweep.data(out / "stores")
        content = _before(out)
        for case in sweep.cases(recipe, stores, [world.size]):  # calibration cases need one rank
            found = measure_case(case, world)
            if world.is_rank_zero:
                content = _keep(content, found, out)
                say(found)
        return content if world.is_rank_zero else None


def _before(out: Path) -> dict[str, Any]:
    """The results already in the folder."""
    out.mkdir(parents=True, exist_ok=True)
    return dict(read_json(out / RESULT)) if (out / RESULT).exists() else {"cases": []}


def _keep(content: Mapping[str, Any], found: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Adds a case, and writes all cases in a fixed order and the figure."""
    key = [found[name] for name in KEY]
    others = [case for case in content["cases"] if [case[name] for name in KEY] != key]
    cases = sorted([*others, dict(found)], key=lambda case: [case[name] for name in KEY])
    kept = {**content, "cases": cases}
    write_json(out / RESULT, kept)
    draw_scaling(kept, out)
    return kept
