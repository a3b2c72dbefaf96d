"""The verb that runs every stage on embedded datasets: demo."""

from pathlib import Path
from typing import Annotated

import typer
from ramify.cli.options import MAKING, Overrides, console
from rich.markup import escape

verbs = typer.Typer()


@verbs.command(rich_help_panel=MAKING)
def demo(
    run: Annotated[Path, typer.Option(help="Directory of the run; a number is appended if it exists.")] = Path(
        "demo-run"
    ),
    overrides: Overrides = None,
) -> None:
    """Run every stage on the five embedded datasets: prepare, train, evaluate, report. Takes minutes on a laptop."""
    from ramify.demo import run_demo

    report = run_demo(run, overrides or [], console)
    console.print(f"report: [bold]{escape(str(report))}[/bold]", soft_wrap=True)
