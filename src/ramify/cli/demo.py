"""The command that runs all stages on embedded datasets: demo."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from ramify.cli.options import MAKING, Overrides, console, interrupted_training, training_stopped

verbs = typer.Typer()


@verbs.command(rich_help_panel=MAKING)
def demo(
    run: Annotated[Path, typer.Option(help="Directory of the run; a number is appended if it exists.")] = Path(
        "demo-run"
    ),
    overrides: Overrides = None,
) -> None:
    """Run all stages on the five embedded datasets: prepare, train, evaluate, report. Takes minutes on a laptop."""
    from ramify.demo import free_path, run_demo

    path = free_path(run)
    resume_hint = f"`ramify train --resume {path}`, then `ramify evaluate {path}` and `ramify report {path}`"
    with interrupted_training(path, resume_hint):
        trainer, report = run_demo(path, overrides or [], console)
    if report is None:
        training_stopped(trainer.stopped_by, trainer.progress.step, trainer.total_steps, resume_hint, say=True)
    console.print(f"report: [bold]{escape(str(report))}[/bold]", soft_wrap=True)
