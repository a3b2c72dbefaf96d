"""Weak and strong scaling of MTL-base and MTL-par (the paper's Figure 4), measured by `ramify bench scale`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ramify.bench.predict.check import KEY, check
from ramify.bench.scale import RESULT, Sweep, run_scale
from ramify.files import read_json
from ramify.recipe import Recipe

FOLDER = "scaling"
"""Folder of the measurement in that of the study."""
PLACEMENTS = {"replicated": "MTL-base", "per-branch": "MTL-par"}
"""The paper's names of the placements: all branches on all ranks, and a branch per group of ranks."""
MODES = ("weak", "strong")
"""Structures per rank constant; structures per step constant."""
LIMIT = 1800.0
"""Seconds that one case may take."""


def measure_scaling(recipe: Recipe, ranks: Sequence[int], study: Path, say: Callable[[dict[str, Any]], None]) -> None:
    """Measures the cases that `DIR/scaling/scale.json` does not have yet, and those that the prediction is fitted to.

    Args:
        recipe: of the study. `train.batch` is the number of structures per rank in weak scaling, and of all ranks
            together in strong scaling.
        ranks: numbers of processes on this machine.
        study: folder of the study.
        say: called with every measured case.
    """
    out = study / FOLDER
    known = _cases(study)
    batch = recipe.train.batch
    for world in ranks:
        sweep = Sweep(recipe, [world], [*PLACEMENTS], batch=batch, total=batch, calibrate=not known)
        expected = {
            (mode, placement, world)
            for mode in sweep.modes
            for placement in (PLACEMENTS if world > 1 else ("replicated",))
        }
        if expected - {(case["mode"], case["placement"], case["ranks"]) for case in known}:
            run_scale(sweep, out, say, LIMIT)
            known = _cases(study)


def scaling_rows(study: Path) -> list[dict[str, Any]]:
    """Measured and predicted seconds per step of every case, by mode, ranks and placement; the latter need a case on
    several ranks, and are None without one."""
    cases, placements = _cases(study), [*PLACEMENTS]
    predicted = {}
    if any(case["ranks"] > 1 for case in cases):
        for row in check({"cases": cases})["checked"]:
            predicted[row["mode"], row["placement"], row["ranks"]] = row["predicted"]
    measured = [case for case in cases if case["mode"] in MODES]
    measured.sort(key=lambda c: (MODES.index(c["mode"]), c["ranks"], placements.index(c["placement"])))
    return [
        {name: case[name] for name in KEY}
        | {
            "measured": case["seconds"],
            "predicted": predicted.get((case["mode"], case["placement"], case["ranks"])),
            "structures_per_second": case["structures_per_second"],
        }
        for case in measured
    ]


def _cases(study: Path) -> list[dict[str, Any]]:
    path = study / FOLDER / RESULT
    return list(read_json(path)["cases"]) if path.is_file() else []
