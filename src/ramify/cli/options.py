"""Arguments and options that several verbs share, and the consoles that verbs print on."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ramify.console import say_training

if TYPE_CHECKING:
    from ramify.train.reporting import Callbacks

MAKING = "From data to a trained model"
RESULTS = "Errors and contents of a run"
USING = "Use a trained model"
MACHINE = "About this installation"
"""Groups of verbs in `ramify --help`."""

console = Console()
errors = Console(stderr=True)

RecipeArgument = Annotated[
    str, typer.Argument(help="A recipe: a YAML file, or the name of a built-in one: demo, five, paper.")
]
Overrides = Annotated[list[str] | None, typer.Argument(help="Recipe keys to override, e.g. train.max_steps=20.")]
RunArgument = Annotated[Path, typer.Argument(help="A run directory.")]
NewRun = Annotated[
    Path | None,
    # torchrun of Python 3.11 takes `--run` for a short form of its own `--run-path`, wherever it stands
    typer.Option("--run", "--run-dir", help="Directory of the new run. Under torchrun write --run-dir."),
]
GoOn = Annotated[bool, typer.Option("--continue", help="With --run: continue the run if it exists.")]
ModelArgument = Annotated[Path, typer.Argument(help="A run directory, a checkpoint or an export.")]
ModelOption = Annotated[Path, typer.Option("--model", "-m", help="A run directory, a checkpoint or an export.")]
CheckpointOption = Annotated[str, typer.Option(help="Checkpoint of a run: best, latest or e.g. step-00000500.")]
FormatOption = Annotated[
    str | None, typer.Option("--format", help="File format by ASE's name; by default ASE detects it.")
]
Json = Annotated[bool, typer.Option("--json", help="Print only the result, as JSON.")]
SplitOption = Annotated[str, typer.Option(help="Split to evaluate: train, val or test.")]


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
