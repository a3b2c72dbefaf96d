"""What the verbs of the command line share: arguments that mean the same everywhere, and where they print."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich.console import Console

from ramify.console import say_training

if TYPE_CHECKING:
    from ramify.train.reporting import Callbacks

MAKING = "From data to a trained model"
RESULTS = "What came of it"
USING = "A trained model in use"
MACHINE = "Ramify on this machine"
"""Groups of verbs in `ramify --help`."""

WIDE = 200
"""Columns of tables in pipes and job logs, which have no width of their own: nothing is cut there."""


def _console(stream: TextIO, *, stderr: bool) -> Console:
    """Writes to a terminal in its width, to anything else wide enough for every table; COLUMNS overrides."""
    wide = not stream.isatty() and "COLUMNS" not in os.environ
    return Console(stderr=stderr, width=WIDE if wide else None)


console = _console(sys.stdout, stderr=False)
errors = _console(sys.stderr, stderr=True)

RecipeArgument = Annotated[
    str, typer.Argument(help="A recipe: YAML file, or one that comes along (demo, five, paper).")
]
Overrides = Annotated[list[str] | None, typer.Argument(help="Recipe keys to override: train.max_steps=20 ...")]
RunArgument = Annotated[Path, typer.Argument(help="A run directory.")]
NewRun = Annotated[
    Path | None,
    # torchrun of Python 3.11 takes `--run` for a short form of its own `--run-path`, wherever it stands
    typer.Option("--run", "--run-dir", help="Directory of the new run; under torchrun write --run-dir."),
]
GoOn = Annotated[bool, typer.Option("--continue", help="With --run: go on with the run if it is there already.")]
ModelArgument = Annotated[Path, typer.Argument(help="A run directory, a checkpoint or an export.")]
ModelOption = Annotated[Path, typer.Option("--model", "-m", help="A run directory, a checkpoint or an export.")]
CheckpointOption = Annotated[str, typer.Option(help="Of a run: best, latest, or a step's folder name.")]
FormatOption = Annotated[
    str | None, typer.Option("--format", help="ASE's name of the file's format; if not given, ASE finds out.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")]
SplitOption = Annotated[str, typer.Option(help="train, val or test.")]


@contextmanager
def training_said(aloud: bool) -> Iterator[tuple["Callbacks", Callable[[str, int], None]]]:
    """`say_training`, on the one process that speaks."""
    if aloud:
        with say_training(console) as listeners:
            yield listeners
    else:
        from ramify.train.reporting import Callbacks

        yield Callbacks(), lambda dataset, structures: None


def training_stopped(reason: str, total: int, run: Path, *, say: bool) -> None:
    """Ends the program as one that stopped before its end."""
    from ramify.run.stop import STOPPED
    from ramify.train.start import under_torchrun

    if say:
        text = f"stopped ({reason}) before step {total}; go on with `ramify train --resume {run}`"
        errors.print(text, markup=False, soft_wrap=True)
    # torchrun takes any other status for a failure: it would start the processes again, and tells nobody which it was
    raise typer.Exit(0 if under_torchrun() else STOPPED)


def print_json(content: Any) -> None:
    """The one thing that a verb prints with --json."""
    sys.stdout.write(json.dumps(content, indent=1) + "\n")
