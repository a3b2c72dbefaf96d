"""The commands that compare models: study, and demo on embedded datasets."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from ramify.cli.messages import console, errors, interrupted_training, print_json, say, say_written, training_stopped
from ramify.cli.options import MAKING, Json, Overrides, RecipeArgument, numbers
from ramify.cli.progress import Steps
from ramify.errors import RamifyError

if TYPE_CHECKING:
    from ramify.study.conduct import Conducted

verbs = typer.Typer()


@verbs.command(rich_help_panel=MAKING)
def demo(
    run: Annotated[
        Path | None,
        typer.Option(
            help="Directory; by default demo-study, which is continued if it exists, or with --quick demo-run, "
            "to which a number is appended if it exists."
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Train a single model, with a branch per dataset, and write its report.")
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Compare seven models on the five embedded datasets, as the paper does: a study in small, in minutes on a laptop.

    Prepares, trains, evaluates, and writes study.html.
    """
    if quick:
        _quick_demo(run or Path("demo-run"), overrides or [])
        return
    from ramify.cli.compare.demo import run_study

    _print_study(run_study(run or Path("demo-study"), overrides or [], console), short=True)


def _quick_demo(run: Path, overrides: list[str]) -> None:
    """All stages of a single model."""
    from ramify.cli.compare.demo import free_path, run_demo

    path = free_path(run)
    resume_hint = f"`ramify train --resume {path}`, then `ramify evaluate {path}` and `ramify report {path}`"
    with interrupted_training(path, resume_hint):
        trainer, report = run_demo(path, overrides, console)
    if report is None:
        training_stopped(trainer.stopped_by, trainer.progress.step, trainer.total_steps, resume_hint, visible=True)
    say_written("report", str(report))


@verbs.command(rich_help_panel=MAKING)
def study(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="Directory of the study; an existing one is continued.")] = Path("study"),
    models: Annotated[
        str, typer.Option(help="single, baseline, mtl, or names of models such as Model-DATASET.")
    ] = "single,baseline,mtl",
    seeds: Annotated[int, typer.Option(help="Seeds of each model, from train.seed on.", min=1)] = 1,
    equal: Annotated[
        str, typer.Option(help="Common to all models: passes over their own data, steps, or time.")
    ] = "passes",
    jobs: Annotated[int, typer.Option(help="Number of models that train at the same time.", min=1)] = 1,
    launcher: Annotated[
        str,
        typer.Option(
            help="Command line that starts each model, e.g. 'srun -N 4 {command}'; accepted are {command}, "
            "{arguments}, {slot} and {name}."
        ),
    ] = "",
    scaling: Annotated[
        str | None,
        typer.Option(help="Also measure the scaling on these numbers of processes, e.g. 1,2,4.", metavar="RANKS"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train single-dataset models, one shared branch and a branch per dataset; compare them on every dataset.

    Writes the paper's Tables 1 and 2 with the spread over seeds, and study.html. The same command continues a study,
    also with more seeds, models or datasets.
    """
    from ramify.cli.compare.display import study_display
    from ramify.recipe import load_recipe
    from ramify.run.launcher import Launcher
    from ramify.study.conduct import conduct, prepare_missing
    from ramify.study.models import EQUAL
    from ramify.study.setup import Request

    if equal not in EQUAL:
        raise RamifyError(f"--equal {equal}: accepted are {', '.join(EQUAL)}")
    resolved = load_recipe(recipe, overrides or [])
    request = Request(resolved, recipe, out, [word.strip() for word in models.split(",")], seeds, equal)
    request.open()  # errors come before the stores are prepared
    is_prepared = all((Path(resolved.stores) / name).is_dir() for name in resolved.datasets)
    with Steps(console, "prepare", quiet=as_json or is_prepared) as steps:
        prepare_missing(resolved, Path.cwd(), lambda dataset, count: steps.counted(count))
    starter = Launcher(launcher, jobs, resolved.train.threads)
    with study_display(console, quiet=as_json) as watch:
        ranks = numbers("--scaling", scaling) if scaling else ()
        conducted = conduct(request, starter, jobs, watch, scaling=ranks, measured=partial(_print_case, as_json))
    _print_study(conducted, as_json=as_json)


def _print_case(quiet: bool, case: dict[str, Any]) -> None:
    """Prints a measured case of the scaling."""
    if not quiet:
        processes = "1 process" if case["ranks"] == 1 else f"{case['ranks']} processes"
        text = f"scaling ({case['mode']}): {case['placement']}, {processes}, {case['seconds']:.3f} s per step"
        say(text)


def _print_study(conducted: "Conducted", *, as_json: bool = False, short: bool = False) -> None:
    """Prints the results, and ends the program with an exit status if a model has failed or the study was stopped.

    Args:
        conducted: the study.
        as_json: print only the results, as JSON.
        short: leave out footnotes, refitted errors and all conclusions but the first.
    """
    from ramify.run.stop import exit_status
    from ramify.study.conduct import PAGE
    from ramify.study.results.text import render

    study, outcome = conducted.study, conducted.outcome
    if outcome is not None and not conducted.stopped_by:
        if as_json:
            print_json(outcome.to_dict())
        else:
            render(outcome.tables, console, short=short)
            for line in outcome.verdict[:1] if short else outcome.verdict:
                say(line)
    for text in conducted.failed:
        errors.print(f"[bold red]failed:[/bold red] {escape(text)}", highlight=False, soft_wrap=True)
    if conducted.stopped_by:
        done = sum(task.state == "done" for task in study.tasks)
        text = f"stopped ({conducted.stopped_by}); {done} of {len(study.tasks)} models are done"
        say(f"{text}, the same command continues the study", errors)
        raise typer.Exit(exit_status(conducted.stopped_by))
    if not as_json:
        say_written("study", study.path / PAGE)
    if conducted.failed:
        raise typer.Exit(1)
