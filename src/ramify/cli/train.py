"""The commands that train a model: plan, train."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ramify.cli.messages import console, interrupted_training, print_json, say, say_written, training_stopped
from ramify.cli.options import MAKING, ContinueOption, Json, NewRun, Overrides, RecipeArgument, gigabytes
from ramify.cli.progress import training_output
from ramify.cli.tables import print_plan
from ramify.errors import RamifyError

if TYPE_CHECKING:  # imports PyTorch
    from ramify.parallel.world import World
    from ramify.recipe import Recipe
    from ramify.run.stop import Stop
    from ramify.train.loop import Trainer

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
    """Plan which ranks host which branches, without running a training.

    Prints memory, traffic and work of every rank, the placements considered, and the reason for the choice.
    """
    from ramify.recipe import load_recipe

    changed = [*(overrides or []), *([f"parallel.memory={gigabytes(memory)}"] if memory else [])]
    resolved = load_recipe(recipe, changed)
    # after the recipe, so that errors in it are shown before PyTorch is imported
    from ramify.planning.plan import make_plan
    from ramify.planning.report import as_data
    from ramify.planning.workload import dataset_sizes, read_sizes

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
    continued: ContinueOption = False,
    seeds: Annotated[
        int | None,
        typer.Option(help="With --run DIR: train a committee of this many seeds, as DIR/seed-N.", min=2),
    ] = None,
    heads: Annotated[
        int | None,
        typer.Option(
            help="With --seeds: steps of the seeds after the first, which train new heads on its encoder.", min=1
        ),
    ] = None,
) -> None:
    """Train a model into a new run directory, or continue a run. Also runs under torchrun, srun and mpiexec.

    If a signal or train.time_limit stops the run, the exit status is 75; the same command with --continue continues it.
    """
    from ramify.recipe import load_recipe
    from ramify.run.stop import Stop

    words = arguments or []
    # the path of a recipe may contain a "="
    source = words.pop(0) if words and ("=" not in words[0] or Path(words[0]).is_file()) else None
    if (resume is None) == (run is None) or (run is not None and source is None) or (resume is not None and continued):
        taken = f"; '{words[0]}' is not a file, so it is read as a key to override" if words and source is None else ""
        raise RamifyError(f"train needs a recipe and --run DIR, or --resume DIR with or without a recipe{taken}")
    if (seeds is not None and run is None) or (heads is not None and seeds is None):
        raise RamifyError("--seeds needs --run DIR, and --heads needs --seeds", fix="give both")
    if run is not None:
        recipe = load_recipe(str(source), words)
    else:
        recipe = load_recipe(source or _recipe_of(Path(str(resume))), words)
    # after the recipe, so that errors in it are shown before PyTorch is imported
    from ramify.train.start import this_process, torchrun_restarts

    path = Path(str(run if resume is None else resume))
    again = continued or torchrun_restarts() > 0
    how = "own" if resume and source is None and not words else "resume" if resume else "continue" if again else "new"
    resume_hint = f"`ramify train --resume {path}`" if seeds is None else "the same command and --continue"
    with (
        interrupted_training(path, resume_hint),
        Stop(recipe.train.time_limit, at_once=True) as stop,
        this_process(recipe) as world,
    ):
        for each, folder in _runs(recipe, path, world, seeds, heads, continued=again):
            trainer = _fitted(each, folder, world, stop, how)
            if trainer.stopped_by:
                break
            if world.is_rank_zero:
                _print_end(trainer)
    if trainer.stopped_by:
        step, total = trainer.progress.step, trainer.total_steps
        training_stopped(trainer.stopped_by, step, total, resume_hint, visible=trainer.layout.is_rank_zero)
    if seeds is not None and trainer.layout.is_rank_zero:
        say_written(f"committee of {seeds} seeds", path)


def _runs(
    recipe: "Recipe", path: Path, world: "World", seeds: int | None, heads: int | None, *, continued: bool
) -> Iterator[tuple["Recipe", Path]]:
    """The recipe and the folder of each run: one, or one for each seed."""
    if seeds is None:
        yield recipe, path
        return
    from ramify.checkpoint.committee import run_of_seed
    from ramify.finetune.seeds import begin_committee, recipe_of_seed
    from ramify.parallel.sync import each, on_rank_zero

    found: list[int] = on_rank_zero(world, lambda: begin_committee(path, recipe, seeds, continued=continued))
    for seed in found:
        yield each(world, partial(recipe_of_seed, recipe, path, found, seed, heads)), run_of_seed(path, seed)


def _fitted(recipe: "Recipe", path: Path, world: "World", stop: "Stop", how: str) -> "Trainer":
    """The trainer of a run after the training; `how`: new, continue, resume, or own (resume with its own recipe)."""
    from ramify.train.start import continue_run, resume_run, start_run, torchrun_restarts

    with training_output(world.is_rank_zero) as (callbacks, edges):
        if how == "new":
            trainer = start_run(recipe, path, callbacks, edges, world, stop)
        elif how == "continue":
            trainer = continue_run(recipe, path, callbacks, edges, world, stop)
        else:
            replaced, automatic = None if how == "own" else recipe, torchrun_restarts() > 0
            trainer = resume_run(path, callbacks, edges, world, stop, recipe=replaced, automatic=automatic)
        if trainer.layout.is_rank_zero:
            _print_start(trainer)
        trainer.fit()
    return trainer


def _print_end(trainer: "Trainer") -> None:
    """Prints the result of a training."""
    progress = trainer.progress
    if trainer.over.startswith("early"):
        say(trainer.over)
    best = f"best metric {progress.best:.4f} at step {progress.best_step}"
    if not trainer.validates:
        best = "no validation split: the last weights count as the best"
    say_written(f"{progress.step} steps in {progress.seconds / 60:.1f} min; {best}; run", trainer.run.path)


def _print_start(trainer: "Trainer") -> None:
    """Prints the step at which a run continues, changed keys, and the placement."""
    if trainer.progress.step:
        say(f"continuing at step {trainer.progress.step} of {trainer.total_steps}")
    for text in trainer.continuation:
        say(text)
    if trainer.over and trainer.progress.step:
        say(f"{trainer.over}; to train on, raise train.epochs, train.max_steps or train.patience")
    if (placement := trainer.layout.placement).ranks > 1:
        say(f"{placement.ranks} ranks, {placement.kind}: {placement.reason}")


def _recipe_of(run: Path) -> Path:
    """Path of the recipe in a run directory."""
    from ramify.run.run import Run

    return Run.open(run).path / "recipe.yaml"
