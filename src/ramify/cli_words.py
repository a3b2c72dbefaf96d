"""What the verbs of the command line share: arguments that mean the same everywhere, and where they print."""

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
    from ramify.train.record import Watch

console = Console()
errors = Console(stderr=True)

RecipeArgument = Annotated[
    str, typer.Argument(help="A recipe: YAML file, or one that comes along (demo, five, paper).")
]
Overrides = Annotated[list[str] | None, typer.Argument(help="Recipe keys to override: train.max_steps=20 ...")]
RunArgument = Annotated[Path, typer.Argument(help="A run directory.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")]
SplitOption = Annotated[str, typer.Option(help="train, val or test.")]


@contextmanager
def training_said(aloud: bool) -> Iterator[tuple["Watch", Callable[[str, int], None]]]:
    """`say_training`, on the one process that speaks."""
    if aloud:
        with say_training(console) as listeners:
            yield listeners
    else:
        from ramify.train.record import Watch

        yield Watch(), lambda dataset, structures: None


def training_stopped(reason: str, total: int, run: Path, *, say: bool) -> None:
    """Ends the program as one that stopped before its end."""
    from ramify.train.start import under_torchrun
    from ramify.train.stop import STOPPED

    if say:
        text = f"stopped ({reason}) before step {total}; go on with `ramify train --resume {run}`"
        errors.print(text, markup=False, soft_wrap=True)
    # torchrun takes any other status for a failure: it would start the processes again, and tells nobody which it was
    raise typer.Exit(0 if under_torchrun() else STOPPED)


def print_json(content: Any) -> None:
    """The one thing that a verb prints with --json."""
    sys.stdout.write(json.dumps(content, indent=1) + "\n")
