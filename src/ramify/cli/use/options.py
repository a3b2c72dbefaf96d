"""Arguments and options of the commands that use a trained model, and their messages."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
import yaml
from rich.markup import escape

from ramify.cli.options import console, errors, print_json
from ramify.errors import RamifyError, RamifyWarning
from ramify.recipe.overrides import read_yaml

if TYPE_CHECKING:  # these import PyTorch, which takes seconds to load
    from ramify.inference.jobs.resumable import OutputProgress
    from ramify.inference.model import Model

FileArgument = Annotated[Path, typer.Argument(help="File of structures, in any format that ASE reads.")]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="Extended XYZ file to write; must not exist.")]
BranchOption = Annotated[
    str | None, typer.Option("--branch", "-b", help="Branch to use; required if the model has several.")
]
ChargeOption = Annotated[
    int | None, typer.Option(help="Charge in e of structures that state none, for models that take it.")
]
SpinOption = Annotated[
    int | None, typer.Option(help="Multiplicity of structures that state none, for models that take it.")
]
DatasetOption = Annotated[
    str | None,
    typer.Option(help="Dataset whose reference energies apply; required if the branch has several."),
]
DeviceOption = Annotated[str, typer.Option(help="Device by PyTorch's name, e.g. cuda.")]
PrecisionOption = Annotated[str | None, typer.Option(help="fp32 or fp64; by default that of the training.")]
CompileOption = Annotated[
    bool, typer.Option("--compile", help="Compile the model: faster, after one to two minutes the first time.")
]
DispersionOption = Annotated[
    str | None,
    typer.Option(help="Add the dispersion of D3 for a functional, e.g. '{functional: pbe, damping: bj}'."),
]
IndexOption = Annotated[
    int | None,
    typer.Option(help="Index of the structure in the file, from 0, or -1 for the last; required if there are several."),
]
RestartOption = Annotated[bool, typer.Option("--restart", help="Start again instead of resuming an interrupted file.")]


def load_model(
    model: Path | Sequence[Path],
    checkpoint: str,
    device: str,
    precision: str | None,
    compiled: bool = False,
    dispersion: str | None = None,
) -> "Model":
    """The model or committee of `--model`; announces on the error stream that it is being compiled."""
    from ramify.inference.model import load

    try:
        correction = None if dispersion is None else read_yaml(dispersion)
    except yaml.YAMLError as error:
        raise RamifyError(f"--dispersion '{dispersion}' is not YAML: {error}", fix="give keys in braces") from None
    return load(
        model,
        checkpoint=checkpoint,
        device=device,
        precision=precision,
        compile=compiled,
        on_compile=_announce,
        dispersion=correction,
    )


def _announce() -> None:
    errors.print("compiling the model, which takes one to two minutes; the program is kept for the next time")


def print_written(out: Path, progress: "OutputProgress", as_json: bool) -> None:
    """Prints the result for a file: numbers, skipped structures, errors if it has labels, warnings."""
    from ramify.inference.label_errors import lines as label_lines
    from ramify.inference.label_errors import results as label_results

    facts: dict[str, Any] = {
        "written": progress.written,
        "skipped": dict(progress.skipped),
        "warnings": progress.warnings,
        "out": str(out),
    }
    errors = {branch: found for branch, sums in progress.errors.items() if (found := label_results(sums))}
    if errors:
        facts["errors"] = errors
    if as_json:
        print_json(facts)
        return
    console.print(f"{progress.written} structures: [bold]{escape(str(out))}[/bold]", soft_wrap=True)
    if progress.skipped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in progress.skipped.items())
        console.print(
            f"[bold yellow]skipped:[/bold yellow] {escape(reasons)}; see {escape(str(out))}.skipped.jsonl",
            soft_wrap=True,
        )
    for branch, found in errors.items():
        console.print(f"branch {escape(branch)} against the labels of the file:", soft_wrap=True)
        for line in label_lines(found):
            console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
    if progress.warnings:
        console.print(
            f"[bold yellow]warning:[/bold yellow] {progress.warnings} structures have a warning: see `warning` "
            "or `why` in their frames",
            soft_wrap=True,
        )


@contextmanager
def warnings_shown() -> Iterator[None]:
    """Prints Ramify's warnings as lines, each text once."""
    printed = set()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, RamifyWarning) and str(message) not in printed:
            printed.add(str(message))
            console.print(f"[bold yellow]warning:[/bold yellow] {escape(str(message))}", soft_wrap=True)

    with warnings.catch_warnings():
        warnings.simplefilter("always", RamifyWarning)
        warnings.showwarning = show
        yield
