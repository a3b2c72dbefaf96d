"""The command line: groups of commands, and handling of errors."""

import sys
import time
import traceback
from typing import Annotated

import typer

from ramify import __version__
from ramify.cli import bench, data, finetune, results, route, train
from ramify.cli.compare import search, study
from ramify.cli.messages import console, errors, say
from ramify.cli.options import MACHINE
from ramify.cli.use import materials, predict, simulate
from ramify.errors import RamifyError
from ramify.run.stop import INTERRUPTED, VERBS, Stopped, listening

app = typer.Typer(
    help="Pre-train one graph neural network on many first-principles datasets at once.\n\n"
    "An error is printed as one message; add --debug to see the traceback.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
about = typer.Typer()


def _print_version(requested: bool) -> None:
    if requested:
        console.print(__version__)
        raise typer.Exit


@app.callback()
def every_command(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Options before the command."""


@about.command(rich_help_panel=MACHINE)
def version() -> None:
    """Print the version of ramify."""
    console.print(__version__)


for group in (study, data, train, search, finetune, results, predict, simulate, materials, route):
    app.add_typer(group.verbs)
app.add_typer(bench.verbs, name="bench", rich_help_panel=MACHINE)
app.add_typer(about)


def main() -> None:
    """Runs a command; an expected error gives one message and exit status 1, and a traceback with --debug."""
    with listening(sys.argv[1:]):
        try:
            _run_command()
        except BaseException as error:
            if "ramify.batches.open" in sys.modules:  # other ranks may be waiting
                from ramify.batches.open import end_sharing_ranks

                end_sharing_ranks("" if isinstance(error, SystemExit | Stopped) else traceback.format_exc())
            raise


def _run_command() -> None:
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        app(args=arguments, prog_name="ramify")
    except (RamifyError, OSError) as error:  # OSError, e.g. missing permissions, names the file
        if debug:
            raise
        if getattr(error, "everywhere", False) and not _prints_errors():
            sys.exit(1)
        errors.print("[bold red]error:[/bold red]", end=" ")
        text = "\n  ".join([str(error), *getattr(error, "__notes__", ())])
        say(text, errors)
        sys.exit(1)
    except SystemExit as end:
        if end.code == INTERRUPTED and not set(arguments) & set(VERBS):  # these print their own message
            say("interrupted; predict and relax resume when they are called again", errors)
        raise


def _prints_errors() -> bool:
    """Whether this process prints errors that all ranks have. Other ranks wait a moment before they exit, since a
    launcher ends all processes as soon as one has failed."""
    from ramify.parallel.startup.launch import detect_launcher

    if detect_launcher().rank == 0:
        return True
    time.sleep(1.0)
    return False
