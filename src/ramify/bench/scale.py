"""`ramify bench scale`: weak and strong scaling over numbers of ranks and placements, by real training steps.

On one machine every case gets fresh processes, started as torchrun would. Under a launcher (srun, mpiexec, torchrun)
the processes that are there measure the layout that they are, and add it to what the folder holds: the same command
once per number of ranks gives the whole curve of a cluster.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ramify.bench.case import Case
from ramify.bench.figures import draw_scaling
from ramify.bench.measure import measure_case
from ramify.bench.predict.speed import CALIBRATION
from ramify.bench.spawn import spawn
from ramify.bench.synthetic import alike, of_sizes
from ramify.errors import RamifyError
from ramify.files import read_json, write_json
from ramify.parallel.startup.launch import detect_launcher
from ramify.parallel.sync import on_rank_zero
from ramify.planning.workload import StatedSize
from ramify.recipe import Recipe
from ramify.train.start import this_process

RESULT = "scale.json"

CALIBRATED_BRANCHES = (1, 6)
"""Numbers of branches, and the larger one structures: one of each branch at least."""

KEY = ("mode", "placement", "ranks", "branches", "batch")
"""What tells one case from another; measured again, the newer one stays."""


@dataclass(frozen=True)
class Sweep:
    """What `ramify bench scale` measures.

    Attributes:
        recipe: of the model and the training.
        ranks: numbers of ranks.
        placements: see `Case.placement`.
        modes: `weak`, `strong`.
        batch: structures per rank in weak scaling.
        total: structures per step in strong scaling.
        branches: equal synthetic datasets instead of the recipe's.
        sizes: of synthetic datasets; the others need stores.
        warmup, steps: of each case.
        calibrate: also the cases on one rank that the cost model is fitted to (`ramify.bench.predict.speed`).
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
        """The recipe with its stores; synthetic ones in `folder` where there are none."""
        if self.branches is not None:
            return alike(self.recipe, self.branches, folder)
        return of_sizes(self.recipe, self.sizes, folder)

    def cases(self, recipe: Recipe, stores: Mapping[str, Path], ranks: Sequence[int]) -> Iterator[Case]:
        """For these numbers of ranks. One rank hosts all branches however it is called, and is measured once."""
        for mode in self.modes:
            if mode not in ("weak", "strong"):
                raise RamifyError(f"mode {mode}: accepted are weak and strong")
            for world in ranks:
                for placement in self.placements if world > 1 else ("replicated",):
                    batch = self.batch * world if mode == "weak" else self.total
                    yield Case.of(
                        recipe,
                        stores,
                        mode=mode,
                        placement=placement,
                        ranks=world,
                        batch=batch,
                        warmup=self.warmup,
                        steps=self.steps,
                    )

    def calibration(self, folder: Path) -> Iterator[Case]:
        """Few and many structures, of one branch and of several: what a step costs by itself, by branch and by
        operation can be told apart."""
        for branches in CALIBRATED_BRANCHES:
            recipe, stores = alike(self.recipe, branches, folder)
            for batch in (CALIBRATED_BRANCHES[-1], 2 * CALIBRATED_BRANCHES[-1]):
                yield Case.of(
                    recipe,
                    stores,
                    mode=CALIBRATION,
                    placement="replicated",
                    ranks=1,
                    batch=batch,
                    warmup=self.warmup,
                    steps=self.steps,
                )


def run_scale(sweep: Sweep, out: Path, say: Callable[[dict[str, Any]], None], limit: float) -> dict[str, Any] | None:
    """Measures all cases; writes `scale.json`, `scale.svg` and `scale.png` into `out`, after every case.

    Args:
        sweep: what to measure.
        out: a folder, new or of an earlier sweep, whose other cases stay.
        say: called with every case as it is measured.
        limit: seconds that a case may take.

    Returns:
        What `scale.json` holds; None on all ranks but the first of those that a launcher started.
    """
    if detect_launcher().world > 1:
        return _by_launcher(sweep, out, say)
    recipe, stores = sweep.data(out / "stores")
    threads, content = recipe.train.threads or 1, _before(out)
    calibration = sweep.calibration(out / "stores") if sweep.calibrate else ()
    for case in (*calibration, *sweep.cases(recipe, stores, sweep.ranks)):
        found = spawn("case", case.to_data(), case.ranks, threads=threads, limit=limit)
        content = _keep(content, found, out)
        say(found)
    return content


def run_case(source: Path, target: Path) -> None:
    """Measures the case in the file `source` in this process, one of its ranks; the first writes what was found."""
    case = Case.from_data(read_json(source))
    with this_process(case.recipe) as process:
        found = measure_case(case, process)
        if process.ranks.rank == 0:
            write_json(target, found)


def _by_launcher(sweep: Sweep, out: Path, say: Callable[[dict[str, Any]], None]) -> dict[str, Any] | None:
    with this_process(sweep.recipe) as process:
        ranks = process.ranks
        on_rank_zero(ranks, lambda: [None, sweep.data(out / "stores")][0])
        recipe, stores = sweep.data(out / "stores")
        content = _before(out)
        for case in sweep.cases(recipe, stores, [ranks.size]):  # nothing to calibrate: that takes one rank
            found = measure_case(case, process)
            if ranks.rank == 0:
                content = _keep(content, found, out)
                say(found)
        return content if ranks.rank == 0 else None


def _before(out: Path) -> dict[str, Any]:
    """What the folder holds already."""
    out.mkdir(parents=True, exist_ok=True)
    return dict(read_json(out / RESULT)) if (out / RESULT).exists() else {"cases": []}


def _keep(content: Mapping[str, Any], found: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Writes the cases with one more among them, in a fixed order, and the figure."""
    key = [found[name] for name in KEY]
    others = [case for case in content["cases"] if [case[name] for name in KEY] != key]
    cases = sorted([*others, dict(found)], key=lambda case: [case[name] for name in KEY])
    kept = {**content, "cases": cases}
    write_json(out / RESULT, kept)
    draw_scaling(kept, out)
    return kept
