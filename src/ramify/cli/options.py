"""Arguments, options and consoles shared by several commands."""

import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich.console import Console
from rich.markup import escape

from ramify.cli.progress import training_display
from ramify.errors import RamifyError

if TYPE_CHECKING:
    from ramify.train.reporting import Callbacks

MAKING = "From data to a trained model"
RESULTS = "Errors and contents of a run"
USING = "Use a trained model"
MACHINE = "About this installation"
"""Groups of commands in `ramify --help`."""

WIDE = 200
"""Width of tables in pipes and job logs, so that nothing is cut off."""


def _console(stream: TextIO, *, stderr: bool) -> Console:
    """A console with the width of the terminal or notebook, or a width for all tables without them; COLUMNS
    overrides."""
    found = Console(stderr=stderr)
    wide = not stream.isatty() and not found.is_jupyter and "COLUMNS" not in os.environ
    return Console(stderr=stderr, width=WIDE) if wide else found


console = _console(sys.stdout, stderr=False)
errors = _console(sys.stderr, stderr=True)

RecipeArgument = Annotated[
    str, typer.Argument(help="A recipe: a YAML file, or the name of a built-in one: acac, bpa3, demo, five, paper.")
]
Overrides = Annotated[list[str] | None, typer.Argument(help="Recipe keys to override, e.g. train.max_steps=20.")]
RunArgument = Annotated[Path, typer.Argument(help="A run directory.")]
NewRun = Annotated[
    Path | None,
    # torchrun with Python 3.11 reads `--run` as an abbreviation of its option `--run-path`
    typer.Option("--run", "--run-dir", help="Directory of the new run. Under torchrun write --run-dir."),
]
ContinueOption = Annotated[bool, typer.Option("--continue", help="With --run: continue the run if it exists.")]
ModelArgument = Annotated[Path, typer.Argument(help="A run directory, a checkpoint or an export.")]
ModelOption = Annotated[
    list[Path],
    typer.Option("--model", "-m", help="A run, checkpoint, export, or folder of train --seeds; several: a committee."),
]
CheckpointOption = Annotated[str, typer.Option(help="Checkpoint of a run: best, latest or e.g. step-00000500.")]
FormatOption = Annotated[
    str | None, typer.Option("--format", help="File format by ASE's name; by default ASE detects it.")
]
Json = Annotated[bool, typer.Option("--json", help="Print only the result, as JSON.")]
SplitOption = Annotated[str, typer.Option(help="Split to evaluate: train, val or test.")]


@contextmanager
def training_output(visible: bool) -> Iterator[tuple["Callbacks", Callable[[str, int], None]]]:
    """`training_display`, on rank zero only."""
    if visible:
        with training_display(console) as listeners:
            yield listeners
    else:
        from ramify.train.reporting import Callbacks

        yield Callbacks(), lambda dataset, structures: None


def training_stopped(reason: str, step: int, total: int, resume_by: str, *, say: bool) -> None:
    """Ends the program after a training that stopped early.

    Args:
        reason: reason given by the trainer.
        step: current step of the run, which has a checkpoint.
        total: number of steps of the whole run.
        resume_by: the command that resumes the run.
        say: whether this process prints the message.
    """
    from ramify.run.stop import PAUSE, exit_status

    if say:
        resume_by += " and train.stop_after=null" if reason == PAUSE else ""
        text = f"stopped ({reason}) before step {total}; resume with {resume_by} (checkpoint of step {step})"
        errors.print(text, markup=False, soft_wrap=True)
    raise typer.Exit(exit_status(reason))


@contextmanager
def interrupted_training(run: Path | None, resume_by: str) -> Iterator[None]:
    """Prints the state of the run if the training is interrupted at the keyboard."""
    try:
        yield
    except KeyboardInterrupt:
        from ramify.checkpoint.pointers import step_folders

        kept = step_folders(run / "checkpoints") if run is not None else []
        if kept:
            text = f"interrupted; the latest checkpoint is {kept[-1].name}, resume with {resume_by}"
        elif run is not None and run.exists():
            text = f"interrupted before the first checkpoint of {run}: start it again with --continue"
        else:
            text = "interrupted; nothing was written"
        errors.print(text, markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(130) from None


def warned(text: str) -> None:
    """Prints a warning."""
    errors.print(f"[bold yellow]warning:[/bold yellow] {escape(text)}", highlight=False, soft_wrap=True)


def print_json(content: Any) -> None:
    """Prints the only output of a command with --json."""
    sys.stdout.write(json.dumps(content, indent=1) + "\n")


def gigabytes(text: str) -> float:
    """The number of GB in a value of `--memory`: `64GB`, `64 GB`, `80GiB`, `512MB`, `1e3GB` or `64` (GB).

    Raises:
        RamifyError: the text is not such a value.
    """
    units = {"": 1.0, "GB": 1.0, "MB": 1e-3, "TB": 1e3, "GIB": 2**30 / 1e9, "MIB": 2**20 / 1e9, "TIB": 2**40 / 1e9}
    match = re.fullmatch(r"\s*((?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([A-Za-z]*)\s*", text)
    if not match or match[2].upper() not in units or not 0 < float(match[1]) < math.inf:
        raise RamifyError(f"--memory {text}: accepted are a number and GB, MB, TB, GiB, MiB or TiB, e.g. 64GB")
    return float(match[1]) * units[match[2].upper()]


def numbers(option: str, text: str) -> list[int]:
    """The numbers in `1,2,4`.

    Raises:
        RamifyError: the text is not such a list.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise RamifyError(f"{option} {text}: accepted are whole numbers above 0, e.g. 1,2,4")
    return [int(part) for part in parts]
