"""Arguments and options of the commands that use a trained model, and their messages."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from inspect import Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
import yaml

from ramify.cli.messages import console, errors, print_json, say, say_written, warned
from ramify.cli.options import CheckpointOption, ModelOption
from ramify.errors import RamifyError, RamifyWarning
from ramify.recipe.overrides import read_yaml

if TYPE_CHECKING:  # these import PyTorch, which takes seconds to load
    from ramify.inference.integrations.ase import Calculator
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


@dataclass(frozen=True)
class BranchOptions:
    """The options of a command that uses one branch of a trained model, see `with_options`."""

    model: ModelOption
    branch: BranchOption = None
    dataset: DatasetOption = None
    checkpoint: CheckpointOption = "best"
    device: DeviceOption = "cpu"
    precision: PrecisionOption = None
    dispersion: DispersionOption = None
    charge: ChargeOption = None
    spin: SpinOption = None
    compiled: CompileOption = False

    def load(self) -> "Model":
        """The model or committee; announces on the error stream that it is being compiled."""
        from ramify.inference.model import load

        try:
            correction = None if self.dispersion is None else read_yaml(self.dispersion)
        except yaml.YAMLError as error:
            text = f"--dispersion '{self.dispersion}' is not YAML: {error}"
            raise RamifyError(text, fix="give keys in braces") from None
        return load(
            self.model,
            checkpoint=self.checkpoint,
            device=self.device,
            precision=self.precision,
            compile=self.compiled,
            on_compile=_announce,
            dispersion=correction,
        )

    def calculator(self) -> "Calculator":
        """The branch as a calculator of ASE; prints its warnings."""
        from ramify.inference.integrations.ase import Calculator

        loaded = self.load()
        with warnings_shown():
            return Calculator(loaded, self.branch, dataset=self.dataset, charge=self.charge, spin=self.spin)


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replaces the parameter `options` of a command, a dataclass, by one option for each of its fields."""
    parameters = dict(signature(command).parameters)
    kind = parameters.pop("options").annotation
    fields = signature(kind).parameters

    @wraps(command)
    def replaced(**values: Any) -> None:
        command(options=kind(**{name: values.pop(name) for name in fields}), **values)

    # an argument comes first in the help, the options of the model second
    first = {name: p for name, p in parameters.items() if p.default is p.empty}
    shown = [p.replace(kind=p.KEYWORD_ONLY) for p in (first | dict(fields) | parameters).values()]
    setattr(replaced, "__signature__", Signature(shown))  # noqa: B010 - typer reads it
    replaced.__annotations__ = {p.name: p.annotation for p in shown}
    return replaced


def _announce() -> None:
    say("compiling the model, which takes one to two minutes; the program is kept for the next time", errors)


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
    say_written(f"{progress.written} structures", out)
    if progress.skipped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in progress.skipped.items())
        warned(f"{reasons}; see {out}.skipped.jsonl", console, "skipped")
    for branch, found in errors.items():
        say(f"branch {branch} against the labels of the file:")
        for line in label_lines(found):
            say(f"  {line}")
    if progress.warnings:
        text = f"{progress.warnings} structures have a warning: see `warning` or `why` in their frames"
        warned(text, console)


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
            warned(str(message), console)

    with warnings.catch_warnings():
        warnings.simplefilter("always", RamifyWarning)
        warnings.showwarning = show
        yield
