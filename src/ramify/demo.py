"""`ramify demo`: the whole way on the embedded datasets."""

import json
from pathlib import Path

from rich.console import Console

from ramify import minicorpora
from ramify.console import Steps, print_prepared, say_training
from ramify.evaluate.evaluate import Evaluator
from ramify.prepare.prepare import prepare_dataset
from ramify.recipe import RECIPES, load_recipe
from ramify.report import tables
from ramify.report.report import write_report
from ramify.train.start import start_run


def run_demo(wanted: Path, overrides: list[str], console: Console) -> Path:
    """Prepares, trains, evaluates and reports into a new folder; returns the path of report.html.

    Args:
        wanted: the run directory; `-2`, `-3`, ... is appended when it is taken.
        overrides: recipe keys.
        console: where progress and tables go.
    """
    path = free_path(wanted)
    stores = path.with_name(f"{path.name}-stores")
    # a path may hold characters that YAML takes for something else; as JSON it is taken as it stands
    recipe = load_recipe(RECIPES / "demo.yaml", [f"stores={json.dumps(str(stores))}", *overrides])
    manifests = {}
    for name, options in recipe.datasets.items():
        with Steps(console, f"prepare {name}") as steps:
            manifests[name] = prepare_dataset(
                name, options, Path(recipe.stores), base=minicorpora.FOLDER, progress=steps.counted
            )
    print_prepared(console, manifests)
    with say_training(console) as (callbacks, edges):
        start_run(recipe, path, callbacks, edges).fit()
    with Steps(console, "evaluate") as steps:
        Evaluator(path, progress=lambda dataset, branch, done: steps.counted(done)).evaluate()
    tables.write(path).render(console)
    return write_report(path)


def free_path(wanted: Path) -> Path:
    """`wanted`, or the first of `wanted-2`, `wanted-3`, ... that does not exist."""
    path, number = wanted, 1
    while path.exists():
        number += 1
        path = wanted.with_name(f"{wanted.name}-{number}")
    return path
