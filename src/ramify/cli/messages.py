"""Consoles, and the texts of several commands."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import typer
from rich.console import Console
from rich.markup import escape

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


def say(text: str, to: Console = console, style: str | None = None) -> None:
    """Prints a text as it is; the terminal wraps long lines."""
    to.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def say_written(what: str, path: Path | str) -> None:
    """Prints the path of a result, in bold after its kind."""
    console.print(f"{what}: [bold]{escape(str(path))}[/bold]", soft_wrap=True)


def warned(text: str, to: Console = errors, word: str = "warning") -> None:
    """Prints a warning after a coloured word."""
    to.print(f"[bold yellow]{word}:[/bold yellow] {escape(text)}", highlight=False, soft_wrap=True)


def print_json(content: Any) -> None:
    """Prints the only output of a command with --json."""
    sys.stdout.write(json.dumps(content, indent=1) + "\n")


def training_stopped(reason: str, step: int, total: int, resume_by: str, *, visible: bool) -> None:
    """Ends the program after a training that stopped early.

    Args:
        reason: reason given by the trainer.
        step: current step of the run, which has a checkpoint.
        total: number of steps of the whole run.
        resume_by: the command that resumes the run.
        visible: whether this process prints the message.
    """
    from ramify.run.stop import PAUSE, exit_status

    if visible:
        resume_by += " and train.stop_after=null" if reason == PAUSE else ""
        text = f"stopped ({reason}) before step {total}; resume with {resume_by} (checkpoint of step {step})"
        say(text, errors)
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
        say(text, errors)
        raise typer.Exit(130) from None
