"""The command line: one verb per job, each a thin call into the package."""

import json
import re
import sys
import time
import traceback
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ramify import __version__
from ramify.cli_bench import bench
from ramify.cli_finetune import verbs as finetune_verbs
from ramify.cli_inference import verbs
from ramify.cli_route import verbs as route_verbs
from ramify.cli_words import (
    Json,
    Overrides,
    RecipeArgument,
    RunArgument,
    SplitOption,
    console,
    errors,
    print_json,
    training_said,
    training_stopped,
)
from ramify.console import Steps, counts_table
from ramify.errors import RamifyError

app = typer.Typer(
    help="Pre-train one graph neural network on many first-principles datasets at once. "
    "An error is one message; add --debug to any verb for the traceback.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(bench, name="bench")
app.add_typer(finetune_verbs)
app.add_typer(verbs)
app.add_typer(route_verbs)


@app.command()
def demo(
    run: Annotated[Path, typer.Option(help="Where to; with a number appended when it is taken.")] = Path("demo-run"),
    overrides: Overrides = None,
) -> None:
    """Everything once, on the five embedded datasets: prepare, train, evaluate, tables, report. Minutes on a laptop."""
    from ramify.demo import run_demo

    report = run_demo(run, overrides or [], console)
    console.print(f"report: [bold]{escape(str(report))}[/bold]", soft_wrap=True)


@app.command()
def prepare(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    force: Annotated[bool, typer.Option(help="Replace stores that were prepared from other files or options.")] = False,
    as_json: Json = False,
) -> None:
    """Original files -> stores: units, quality gates, splits, reference energies; says what was dropped and why."""
    from ramify.data.prepare import prepare_dataset
    from ramify.recipe import load_recipe

    resolved = load_recipe(recipe, overrides or [])
    manifests = {}
    for name, options in resolved.datasets.items():
        with Steps(console, f"prepare {name}", quiet=as_json) as steps:
            manifests[name] = prepare_dataset(
                name, options, Path(resolved.stores), base=Path.cwd(), force=force, progress=steps.counted
            )
    plain = {name: manifest.model_dump(mode="json") for name, manifest in manifests.items()}
    if as_json:
        print_json(plain)
    else:
        console.print(counts_table(plain))


@app.command()
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
    from ramify.parallel.plan import make_plan
    from ramify.parallel.plan_data import as_data
    from ramify.parallel.workload import dataset_sizes, read_sizes
    from ramify.recipe import load_recipe

    changed = [*(overrides or []), *([f"parallel.memory={_gigabytes(memory)}"] if memory else [])]
    resolved = load_recipe(recipe, changed)
    stated = read_sizes(sizes, resolved) if sizes else {}
    planned = as_data(make_plan(resolved, dataset_sizes(resolved, stated), ranks))
    if as_json:
        print_json(planned)
    else:
        print_plan(console, planned)


@app.command()
def train(
    arguments: Annotated[
        list[str] | None, typer.Argument(help="RECIPE, then keys to override; with --resume also keys alone.")
    ] = None,
    run: Annotated[
        Path | None,
        # torchrun of Python 3.11 takes `--run` for a short form of its own `--run-path`, wherever it stands
        typer.Option("--run", "--run-dir", help="Directory of the new run; under torchrun write --run-dir."),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the run in this directory, by its own recipe if none is given.")
    ] = None,
    go_on: Annotated[
        bool, typer.Option("--continue", help="With --run: go on with the run if it is there already.")
    ] = False,
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
    with this_process(recipe) as process, training_said(process.ranks.rank == 0) as (watch, edges):
        if resume is not None:
            own = source is None and not words
            trainer = resume_run(
                resume, watch, edges, process, recipe=None if own else recipe, automatic=torchrun_restarts() > 0
            )
        elif go_on or torchrun_restarts():
            trainer = continue_run(recipe, Path(str(run)), watch, edges, process)
        else:
            trainer = start_run(recipe, Path(str(run)), watch, edges, process)
        lead = trainer.layout.is_lead
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


@app.command()
def evaluate(
    run: RunArgument,
    split: SplitOption = "test",
    checkpoint: Annotated[str, typer.Option(help="best, latest, or a step's folder name.")] = "best",
    others: Annotated[str | None, typer.Option(help="Also evaluate the datasets of this recipe.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or xpu.")] = "auto",
    as_json: Json = False,
) -> None:
    """Exact errors of every branch on every dataset -> evaluation.json, tables. Also by torchrun, srun, mpiexec."""
    from ramify.evaluate import tables as paper_tables
    from ramify.evaluate.evaluate import Evaluator, met
    from ramify.recipe import load_recipe

    if split not in ("train", "val", "test"):
        raise RamifyError(f"--split {split}: accepted are train, val and test")
    if device not in ("auto", "cpu", "cuda", "xpu"):
        raise RamifyError(f"--device {device}: accepted are auto, cpu, cuda and xpu")
    with met(device) as ranks:
        quiet = as_json or not ranks.is_lead
        with Steps(console, f"evaluate {escape(str(run))}", quiet=quiet) as steps:
            result = Evaluator(
                run,
                split,
                checkpoint,
                others=load_recipe(others) if others else None,
                device=ranks.device,
                ranks=ranks,
                progress=lambda dataset, branch, done: steps.counted(done),
            ).evaluate()
        if not ranks.is_lead:
            return
    paper_tables.write(run)
    if as_json:
        print_json(result)
    else:
        paper_tables.build([run]).render(console)


@app.command()
def tables(
    runs: Annotated[list[Path], typer.Argument(help="Run directories that have been evaluated.")],
    markdown: Annotated[bool, typer.Option(help="Print Markdown.")] = False,
    as_json: Json = False,
) -> None:
    """The paper's Tables 1 and 2 for several runs side by side, trivial predictors below."""
    from ramify.evaluate import tables as paper_tables

    built = paper_tables.build(runs)
    if as_json:
        print_json(built.to_dict())
    elif markdown:
        console.print(built.markdown(), markup=False, soft_wrap=True)
    else:
        built.render(console)


@app.command()
def report(run: RunArgument) -> None:
    """One self-contained report.html of an evaluated run."""
    from ramify.evaluate.report import write_report

    console.print(str(write_report(run)), markup=False, soft_wrap=True)


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="A store, a run directory, a checkpoint or an export.")],
    verify: Annotated[bool, typer.Option(help="Also compare all checksums.")] = False,
    as_json: Json = False,
) -> None:
    """What a store, a run, a checkpoint or an export holds."""
    from ramify.inspect import describe

    title, facts = describe(path, verify=verify)
    if as_json:
        print_json(facts)
        return
    table = Table(title=Text(title), show_header=False, title_justify="left")
    for key, value in facts.items():
        table.add_row(key, Text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
    console.print(table)


@app.command()
def version() -> None:
    """The version of ramify."""
    console.print(__version__)


def main() -> None:
    """Runs a verb; what a user can act on ends as one message and exit status 1, a traceback only with --debug."""
    try:
        _run_verb()
    except BaseException as error:
        if "ramify.data.open" in sys.modules:  # a verb that may have left other ranks waiting
            from ramify.data.open import end_sharing_ranks

            end_sharing_ranks("" if isinstance(error, SystemExit) else traceback.format_exc())
        raise


def _run_verb() -> None:
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        app(args=arguments, prog_name="ramify")
    except (RamifyError, OSError) as error:  # OSError: what the system refuses, e.g. permissions; it names the file
        if debug:
            raise
        if getattr(error, "everywhere", False) and not _speaks():
            sys.exit(1)
        errors.print("[bold red]error:[/bold red]", end=" ")
        text = "\n  ".join([str(error), *getattr(error, "__notes__", ())])
        errors.print(text, markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
    except SystemExit as end:
        if end.code == 130:  # typer's for Ctrl-C
            message = "interrupted; a run goes on from its latest checkpoint with `ramify train --resume DIR`"
            errors.print(f"{message}, predict and relax go on when they are called again", soft_wrap=True)
        raise


def _speaks() -> bool:
    """Whether this process prints what all of them could. The others give the one that does a moment to do it: a
    launcher ends all as soon as one has failed."""
    from ramify.parallel.launch import find_site

    if find_site().rank == 0:
        return True
    time.sleep(1.0)
    return False


def _recipe_of(run: Path) -> Path:
    """The recipe that a run keeps."""
    from ramify.train.run import Run

    return Run.open(run).path / "recipe.yaml"


def _gigabytes(text: str) -> float:
    """The number in `64GB`, `64 GB`, `80GiB`, `512MB` or `64` (GB)."""
    units = {"": 1.0, "GB": 1.0, "MB": 1e-3, "TB": 1e3, "GIB": 2**30 / 1e9, "MIB": 2**20 / 1e9, "TIB": 2**40 / 1e9}
    match = re.fullmatch(r"\s*(\d+\.?\d*)\s*([A-Za-z]*)\s*", text)
    if not match or match[2].upper() not in units or not float(match[1]):
        raise RamifyError(f"--memory {text}: accepted are a number and GB, MB, TB, GiB, MiB or TiB, e.g. 64GB")
    return float(match[1]) * units[match[2].upper()]
