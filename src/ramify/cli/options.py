"""Arguments and options of several commands, and the parsing of their values."""

import math
import re
from pathlib import Path
from typing import Annotated

import typer

from ramify.errors import RamifyError

MAKING = "From data to a trained model"
RESULTS = "Errors and contents of a run"
USING = "Use a trained model"
MACHINE = "About this installation"
"""Groups of commands in `ramify --help`."""

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
