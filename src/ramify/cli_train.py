"""The verbs from data to a trained model: prepare, convert, plan, train. Each a thin call into the package."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape

from ramify.cli_words import (
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
from ramify.console import Steps, print_prepared
from ramify.errors import RamifyError

if TYPE_CHECKING:  # brings PyTorch
    from ramify.train.state import TrainingProgress

verbs = typer.Typer()


@verbs.command(rich_help_panel=MAKING)
def prepare(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace stores that were prepared from other files or options.")
    ] = False,
    form: Annotated[
        Literal["mapped", "adios"], typer.Option("--store", help="A file for each column, or one ADIOS2 file.")
    ] = "mapped",
    workers: Annotated[
        str, typer.Option(help="Processes that read; mpi: those that mpiexec or srun started.", metavar="N|mpi")
    ] = "1",
    as_json: Json = False,
) -> None:
    """Original files -> stores: units, quality gates, splits, reference energies; says what was dropped and why."""
    from ramify.prepare.prepare import prepare_dataset
    from ramify.prepare.workers import Served, start_workers
    from ramify.recipe import load_recipe

    resolved, manifests = load_recipe(recipe, overrides or []), {}
    try:
        with start_workers(_workers(workers)) as reading:
            for name, options in resolved.datasets.items():
                with Steps(console, f"prepare {name}", quiet=as_json) as steps:
                    manifests[name] = prepare_dataset(
                        name, options, Path(resolved.stores), base=Path.cwd(), force=force, form=form,
                        workers=reading, progress=steps.counted,
                    )  # fmt: skip
    except Served:  # of several ranks the first one has prepared and says so
        return
    if as_json:
        print_json({name: manifest.to_json() for name, manifest in manifests.items()})
    else:
        print_prepared(console, manifests)


@verbs.command(rich_help_panel=MAKING)
def convert(
    store: Annotated[Path, typer.Argument(help="A prepared dataset.")],
    to: Annotated[Literal["mapped", "adios"], typer.Option(help="A file for each column, or one ADIOS2 file.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the new store; if not given, the old one's place.")
    ] = None,
) -> None:
    """A store in its other form, with the same values to the bit; every checksum is compared on the way."""
    from ramify.store.convert import convert_store

    written = convert_store(store, to, out)
    console.print(f"store: [bold]{escape(str(written))}[/bold]", soft_wrap=True)


@verbs.command(rich_help_panel=MAKING)
def plan(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    ranks: Annotated[int, typer.Option(help="Processes to plan for, e.g. GPUs.", min=1)] = 1,
    memory: Annotated[
        str | None, typer.Option(help="Memory of each rank, e.g. 64GB or 80GiB; parallel.memory if not given.")
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(help="Sizes of datasets without a store: a YAML file, or one that comes along (paper)."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Which ranks host which branches, memory, traffic and work of each, and why; before anything runs."""
    from ramify.console import print_plan
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
        list[str] | None, typer.Argument(help="RECIPE, then keys to override; with --resume also keys alone.")
    ] = None,
    run: NewRun = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the run in this directory, by its own recipe if none is given.")
    ] = None,
    go_on: GoOn = False,
) -> None:
    """Train a model into a run directory, or go on with one. Also by torchrun, srun, mpiexec.

    Ends with status 75 where a signal or train.time_limit stopped it: the same command with --continue goes on.
    """
    from ramify.recipe import load_recipe
    from ramify.train.start import continue_run, resume_run, start_run, this_process, torchrun_restarts

    words = arguments or []
    source = words.pop(0) if words and "=" not in words[0] else None
    if (resume is None) == (run is None) or (run is not None and source is None) or (resume is not None and go_on):
        raise RamifyError("train needs a recipe and --run DIR, or --resume DIR with or without a recipe")
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
            f"{progress.step} steps in {progress.seconds / 60:.1f} min; "
            f"{_best_of(progress) if trainer.validates else 'no validation split: the last weights count as the best'}"
            f"; run: [bold]{escape(str(trainer.run.path))}[/bold]",
            soft_wrap=True,
        )
    if trainer.stopped_by:
        training_stopped(trainer.stopped_by, trainer.total_steps, trainer.run.path, say=lead)


def _best_of(progress: "TrainingProgress") -> str:
    return f"best metric {progress.best:.4f} at step {progress.best_step}"


def _workers(text: str) -> int | Literal["mpi"]:
    """What `--workers` says."""
    if text == "mpi":
        return "mpi"
    if not text.isdecimal() or not int(text):
        raise RamifyError(f"--workers {text}: accepted are a whole number above 0, and mpi")
    return int(text)


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
