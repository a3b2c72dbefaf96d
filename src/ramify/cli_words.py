"""What the verbs of the command line share: arguments that mean the same everywhere, and where they print."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

console = Console()
errors = Console(stderr=True)

RecipeArgument = Annotated[
    str, typer.Argument(help="A recipe: YAML file, or one that comes along (demo, five, paper).")
]
Overrides = Annotated[list[str] | None, typer.Argument(help="Recipe keys to override: train.max_steps=20 ...")]
RunArgument = Annotated[Path, typer.Argument(help="A run directory.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")]
SplitOption = Annotated[str, typer.Option(help="train, val or test.")]


def print_json(content: Any) -> None:
    """The one thing that a verb prints with --json."""
    sys.stdout.write(json.dumps(content, indent=1) + "\n")
