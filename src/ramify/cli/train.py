"""The verbs that train a model: plan, train."""

import re
from pathlib import Path
from typing import Annotated

import typer
from ramify.cli.options import (
    MAKING,
    GoOn,
    Json,
    NewRun,
    Overrides,
    RecipeArgument,
    console,
    print_json,
    training_said,
    training_stopped,
)
from rich.markup import escape

from ramify.console import print_plan
from ramify.errors import RamifyError

verbs = typer.Typer()


@verbs.command(rich_help_panel=MAKING)
def plan(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    ranks: Annotated[int, typer.Option(help="Number of processes to plan for, one per GPU.", min=1)] = 1,
    memory: Annotated[
        str | None, typer.Option(help="Memory of each rank, e.g. 64GB or 80GiB; by default parallel.memory.")
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(help="Sizes of datasets without a store: a YAML file, or the built-in paper."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Choose which ranks host which branches, before anything runs.

    Prints memory, traffic and work of every rank, the placements considered, and the reason for the choice.
    """
    from ramify.planning.plan import make_plan
    from ramify.planning.report import as_data
    from ramify.planning.workload import dataset_sizes, read_sizes
    from ramify.recipe import load_recipe

    changed = [*(overrides or []), *([f"parallel.memory={_gigabytes(memory)}"] if memory else [])]
    resolved = load_recipe(recipe, changed)
    stated = read_sizes(sizes, resolved) if sizes else {}
    planned = as_data(make_plan(resolved, dataset_sizes(resolved, stated), ranks))
    if as_json:
        print_json(planned)
    else:
        print_plan(console, planned)


@verbs.command(rich_help_panel=MAKING)
def train(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(help="RECIPE, then keys to override; RECIPE may be left out with --resume."),
    ] = None,
    run: NewRun = None,
    resume: Annotated[
        Path | None, typer.Option(help="Continue the run in this directory; by default with its own recipe.")
    ] = None,
    go_on: GoOn = False,
) -> None:
    """Train a model into a new run directory, or continue a run. Starts under torchrun, srun and mpiexec, too.

    If a signal or train.time_limit stops the run, the exit status is 75; the same command with --continue continues it.
    """
    from ramify.recipe import load_recipe
    from ramify.train.start import continue_run, resume_run, start_run, this_process, torchrun_restarts

    words = arguments or []
    # the path of a recipe may hold a "=", too
    source = words.pop(0) if words and ("=" not in words[0] or Path(words[0]).is_file()) else None
    if (resume is None) == (run is None) or (run is not None and source is None) or (resume is not None and go_on):
        taken = f"; '{words[0]}' is no file, so it counts as a key to override" if words and source is None else ""
        raise RamifyError(f"train needs a recipe and --run DIR, or --resume DIR with or without a recipe{taken}")
    if run is not None:
        recipe = load_recipe(str(source), words)
    else:
        recipe = load_recipe(source or _recipe_of(Path(str(resume))), words)
    with this_process(recipe) as process, training_said(process.ranks.rank == 0) as (callbacks, edges):
        if resume is not None:
            own = source is None and not words
            trainer = resume_run(
                resume, callbacks, edges, process, recipe=None if own else recipe, automatic=torchrun_restarts() > 0
            )
        elif go_on or torchrun_restarts():
            trainer = continue_run(recipe, Path(str(run)), callbacks, edges, process)
        else:
            trainer = start_run(recipe, Path(str(run)), callbacks, edges, process)
        lead = trainer.layout.is_rank_zero
        if lead and trainer.progress.step:
            console.print(f"continuing at step {trainer.progress.step} of {trainer.total_steps}")
        if lead and trainer.run.changed:
            names = sorted({".".join(key.split(".")[:2]) for key in trainer.run.changed})
            console.print(f"changed since the last session: {', '.join(names)}", soft_wrap=True)
        if lead and process.ranks.world > 1:
            placement = trainer.layout.placement
            console.print(f"{placement.ranks} ranks, {placement.kind}: {placement.reason}", soft_wrap=True)
        progress = trainer.fit()
    if lead:
        console.print(
            f"{progress.step} steps in {progress.seconds / 60:.1f} min; best metric {progress.best:.4f} at step "
            f"{progress.best_step}; run: [bold]{escape(str(trainer.run.path))}[/bold]",
            soft_wrap=True,
        )
    if trainer.stopped_by:
        training_stopped(trainer.stopped_by, trainer.total_steps, trainer.run.path, say=lead)


def _recipe_of(run: Path) -> Path:
    """The recipe that a run keeps."""
    from ramify.run.run import Run

    return Run.open(run).path / "recipe.yaml"


def _gigabytes(text: str) -> float:
    """The number in `64GB`, `64 GB`, `80GiB`, `512MB` or `64` (GB)."""
    units = {"": 1.0, "GB": 1.0, "MB": 1e-3, "TB": 1e3, "GIB": 2**30 / 1e9, "MIB": 2**20 / 1e9, "TIB": 2**40 / 1e9}
    match = re.fullmatch(r"\s*(\d+\.?\d*)\s*([A-Za-z]*)\s*", text)
    if not match or match[2].upper() not in units or not float(match[1]):
        raise RamifyError(f"--memory {text}: accepted are a number and GB, MB, TB, GiB, MiB or TiB, e.g. 64GB")
    return float(match[1]) * units[match[2].upper()]
