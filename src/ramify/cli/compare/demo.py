"""`ramify demo`: a study of the embedded datasets, or all stages of a single model (`--quick`)."""

import json
import os
from pathlib import Path

from rich.console import Console

from ramify import minicorpora
from ramify.cli.compare.display import study_display
from ramify.cli.messages import say, warned
from ramify.cli.progress import Steps, training_display
from ramify.cli.tables import own_errors_table, print_prepared
from ramify.evaluate.evaluate import Evaluator
from ramify.evaluate.results import Evaluation
from ramify.prepare.prepare import prepare_dataset
from ramify.recipe import RECIPES, Recipe, load_recipe
from ramify.report import tables
from ramify.report.report import write_report
from ramify.run.launcher import Launcher
from ramify.run.stop import Stop
from ramify.run.trackers.trackers import track_tables
from ramify.store.manifest import SPLITS
from ramify.study.conduct import Conducted, conduct, prepare_missing
from ramify.study.setup import Request
from ramify.train.loop import Trainer
from ramify.train.start import start_run

MOST_JOBS = 2
"""Models that train at the same time; each takes one core and less than 1 GB of memory."""


def run_study(path: Path, overrides: list[str], console: Console) -> Conducted:
    """Prepares the datasets, trains and compares seven models; continues a demo that was stopped.

    Args:
        path: folder of the study; the stores are in a folder next to it.
        overrides: recipe keys.
        console: for progress.
    """
    recipe = _recipe(path, overrides)
    request = Request(recipe, "the demo's recipe", path)
    request.open()  # errors come before anything is written
    manifests = prepare_missing(recipe, minicorpora.FOLDER, lambda dataset, structures: None)
    for name, manifest in manifests.items():
        sizes = " / ".join(str(manifest.splits[split].structures) for split in SPLITS)
        elements = len(manifest.elements)
        line = f"{name}: {sizes} structures (train / val / test), {elements} elements, {manifest.theory}"
        say(line, console)
    jobs = min(MOST_JOBS, os.cpu_count() or 1)
    with study_display(console, short=True) as watch:
        return conduct(request, Launcher("", jobs, recipe.train.threads), jobs, watch)


def run_demo(path: Path, overrides: list[str], console: Console) -> tuple[Trainer, Path | None]:
    """Prepares, trains, evaluates and writes the report of a single model into a new folder.

    Args:
        path: the run directory, see `free_path`.
        overrides: recipe keys.
        console: for progress and tables.

    Returns:
        The trainer, and the path of report.html; None if a signal stopped the training.
    """
    recipe = _recipe(path, overrides)
    manifests = {}
    for name, options in recipe.datasets.items():
        with Steps(console, f"prepare {name}") as steps:
            manifests[name] = prepare_dataset(
                name, options, Path(recipe.stores), base=minicorpora.FOLDER, progress=steps.counted
            )
    print_prepared(console, manifests)
    with Stop(recipe.train.time_limit, at_once=True) as stop, training_display(console) as (callbacks, edges):
        trainer = start_run(recipe, path, callbacks, edges, stop=stop)
        trainer.fit()
    if trainer.stopped_by:
        return trainer, None
    with Steps(console, "evaluate") as steps:
        result = Evaluator(path, progress=lambda dataset, branch, done: steps.counted(done)).evaluate()
    track_tables(path, result, tables.write(path).markdown(), warned)
    console.print(own_errors_table(Evaluation.model_validate(result)))
    return trainer, write_report(path)


def _recipe(path: Path, overrides: list[str]) -> Recipe:
    """The recipe of the demo, with its stores next to `path`."""
    stores = json.dumps(str(path.with_name(f"{path.name}-stores")))  # quotes characters that have a meaning in YAML
    return load_recipe(RECIPES / "demo.yaml", [f"stores={stores}", *overrides])


def free_path(wanted: Path) -> Path:
    """`wanted`, or the first of `wanted-2`, `wanted-3`, ... that does not exist."""
    path, number = wanted, 1
    while path.exists():
        number += 1
        path = wanted.with_name(f"{wanted.name}-{number}")
    return path
