"""The command that searches hyper-parameters: search."""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from ramify.cli.messages import console, errors, print_json, say
from ramify.cli.options import MAKING, Json, Overrides, RecipeArgument, gigabytes
from ramify.errors import RamifyError

if TYPE_CHECKING:  # imports PyTorch
    from ramify.search.search import Search
    from ramify.search.trials import Trial

verbs = typer.Typer()

SHOWN = 5
"""Trials in the table at the end."""


@verbs.command(rich_help_panel=MAKING)
def search(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    space: Annotated[
        str, typer.Option(help="Keys to search: a YAML file, or a built-in space: paper, compact.")
    ] = "compact",
    trials: Annotated[int, typer.Option(help="Number of models to train at least to the first rung.", min=1)] = 30,
    out: Annotated[Path, typer.Option(help="Folder of the search; an existing search continues.")] = Path("search"),
    rungs: Annotated[
        int, typer.Option(help="Lengths at which trials are compared; 1: all are trained fully.", min=1)
    ] = 3,
    reduction: Annotated[int, typer.Option(help="One of so many trials at a rung is continued.", min=2)] = 3,
    sampler: Annotated[str, typer.Option(help="Choice of trials: tpe, random, grid or cma-es.")] = "tpe",
    seed: Annotated[int, typer.Option(help="Seed of the sampler.", min=0)] = 0,
    objective: Annotated[
        str,
        typer.Option(
            help="Values to minimise: geometric or metric (means of error / trivial error), or with time, memory or "
            "both for a Pareto front, e.g. geometric,time."
        ),
    ] = "geometric",
    equal: Annotated[
        str,
        typer.Option(
            help="What all trials have in common: passes (the length that the recipe states) or time (each takes the "
            "steps that fit into the training time of the recipe, by the measured time of a step)."
        ),
    ] = "passes",
    jobs: Annotated[int, typer.Option(help="Trainings at the same time.", min=1)] = 1,
    launcher: Annotated[
        str, typer.Option(help="Command line that starts a training, e.g. 'srun -N 4 {command}'; see docs/search.md.")
    ] = "",
    ranks: Annotated[int, typer.Option(help="Processes of each training that the launcher starts.", min=1)] = 1,
    memory: Annotated[
        str | None, typer.Option(help="Memory of each rank, e.g. 64GB: trials that need more are not started.")
    ] = None,
    storage: Annotated[str, typer.Option(help="URL of an SQL database for the trials instead of a file.")] = "",
    as_json: Json = False,
) -> None:
    """Search recipe keys for the lowest validation errors; writes best.yaml and search.html.

    Trials are runs that pause at a rung. The best of them continue, bit-identically.

    The same command continues a search that was stopped or killed, also with more --trials.
    """
    if importlib.util.find_spec("optuna") is None:
        raise RamifyError("a search needs the package optuna", fix="pip install 'ramify[search]'")
    from ramify.run.launcher import Launcher
    from ramify.run.stop import Stop, exit_status
    from ramify.search.search import open_search
    from ramify.search.settings import parse_objectives
    from ramify.search.trials import EQUAL

    if equal not in EQUAL:
        raise RamifyError(f"--equal {equal}: accepted are {', '.join(EQUAL)}")
    changed = [*(overrides or []), *([f"parallel.memory={gigabytes(memory)}"] if memory else [])]
    started = Launcher(launcher, jobs)
    objectives = parse_objectives(objective)
    options = {"rungs": rungs, "reduction": reduction, "sampler": sampler, "seed": seed, "storage": storage}
    options |= {"equal": equal}
    found = open_search(out, recipe, changed, space, objectives=objectives, **options)

    def noted(text: str) -> None:
        if not as_json:
            say(text)

    with Stop() as stop:
        stopped = found.controller(trials, ranks, started, stop=stop, noted=noted).run()
    results = found.publish()
    if as_json:
        print_json(_as_data(found, results, stopped))
    else:
        _print(found, results)
    if stopped:
        say(f"stopped ({stopped}); the same command continues the search", errors)
        raise typer.Exit(exit_status(stopped))


def _as_data(search: "Search", trials: "list[Trial]", stopped: str) -> dict[str, object]:
    """The result as plain data."""
    from dataclasses import asdict

    from ramify.search.rungs import best_trials

    return {
        "stopped": stopped,
        "objectives": search.settings.objectives,
        "best": [trial.number for trial in best_trials(trials, search.settings.objectives)],
        "training_seconds": sum(trial.processor_seconds for trial in trials),
        "saved_seconds": sum(trial.saved_seconds for trial in trials),
        "trials": [asdict(trial) | {"values": search.space.values(trial.params)} for trial in trials],
    }


def _print(search: "Search", trials: "list[Trial]") -> None:
    """Prints the best trials and the files of the search."""
    from ramify.search.results.page import values_text
    from ramify.search.rungs import best_trials

    objectives, folder = search.settings.objectives, search.folder
    best = best_trials(trials, objectives)
    if not best:
        say("no trial has a result")
        return
    last = len(best[0].results)
    others = sorted(
        (t for t in trials if t.results and t not in best), key=lambda t: (-len(t.results), t.metric or 0.0)
    )
    table = Table("trial", "rung", *objectives, "values", box=None)
    for trial in [*best, *others[: max(0, SHOWN - len(best))]]:
        values = values_text(search.space.values(trial.params))
        numbers = [f"{value:.4g}" for value in trial.objectives(objectives)]
        table.add_row(str(trial.number), f"{len(trial.results)} of {search.settings.rungs}", *numbers, escape(values))
    console.print(table)
    hours = sum(trial.processor_seconds for trial in trials) / 3600
    saved = sum(trial.saved_seconds for trial in trials) / 3600
    console.print(f"{hours:.2f} hours of training; rungs saved about {saved:.2f} hours", highlight=False)
    if last < search.settings.rungs:
        console.print("no trial has been trained to its last step yet", highlight=False)
    name = escape(str(folder.path))
    console.print(f"best recipe: [bold]{name}/best.yaml[/bold]; page: [bold]{name}/search.html[/bold]", soft_wrap=True)
