"""The command line: its verbs put together, and how it ends when something goes wrong."""

import sys
import time
import traceback
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from ramify import __version__
from ramify.cli_bench import bench
from ramify.cli_finetune import verbs as finetuning
from ramify.cli_inference import verbs as inference
from ramify.cli_results import verbs as results
from ramify.cli_route import verbs as routing
from ramify.cli_train import verbs as training
from ramify.cli_words import MACHINE, MAKING, Overrides, console, errors, interrupted_training, training_stopped
from ramify.errors import RamifyError
from ramify.run.stop import INTERRUPTED, VERBS, Stopped, listening

app = typer.Typer(
    help="Pre-train one graph neural network on many first-principles datasets at once. "
    "An error is one message; add --debug to any verb for the traceback.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
about = typer.Typer()


def _say_version(asked: bool) -> None:
    if asked:
        console.print(__version__)
        raise typer.Exit


@app.callback()
def every_verb(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_say_version)
    ] = False,
) -> None:
    """Options that stand before a verb."""


@app.command(rich_help_panel=MAKING)
def demo(
    run: Annotated[Path, typer.Option(help="Where to; with a number appended when it is taken.")] = Path("demo-run"),
    overrides: Overrides = None,
) -> None:
    """Everything once, on the five embedded datasets: prepare, train, evaluate, tables, report. Minutes on a laptop."""
    from ramify.demo import free_path, run_demo

    path = free_path(run)
    go_on = f"`ramify train --resume {path}`, then `ramify evaluate {path}` and `ramify report {path}`"
    with interrupted_training(path, go_on):
        trainer, report = run_demo(path, overrides or [], console)
    if report is None:
        training_stopped(trainer.stopped_by, trainer.progress.step, trainer.total_steps, go_on, say=True)
    console.print(f"report: [bold]{escape(str(report))}[/bold]", soft_wrap=True)


@about.command(rich_help_panel=MACHINE)
def version() -> None:
    """The version of ramify."""
    console.print(__version__)


app.add_typer(training)
app.add_typer(finetuning)
app.add_typer(results)
app.add_typer(inference)
app.add_typer(routing)
app.add_typer(bench, name="bench", rich_help_panel=MACHINE)
app.add_typer(about)


def main() -> None:
    """Runs a verb; what a user can act on ends as one message and exit status 1, a traceback only with --debug."""
    with listening(sys.argv[1:]):
        try:
            _run_verb()
        except BaseException as error:
            if "ramify.batches.open" in sys.modules:  # a verb that may have left other ranks waiting
                from ramify.batches.open import end_sharing_ranks

                end_sharing_ranks("" if isinstance(error, SystemExit | Stopped) else traceback.format_exc())
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
        if end.code == INTERRUPTED and not set(arguments) & set(VERBS):  # these say what they have left
            errors.print("interrupted; predict and relax go on when they are called again", soft_wrap=True)
        raise


def _speaks() -> bool:
    """Whether this process prints what all of them could. The others give the one that does a moment to do it: a
    launcher ends all as soon as one has failed."""
    from ramify.parallel.launch import detect_launcher

    if detect_launcher().rank == 0:
        return True
    time.sleep(1.0)
    return False
