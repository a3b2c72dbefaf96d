"""The command that finds the branch that suits a structure: route."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from ramify.cli.messages import console, print_json, say, say_written
from ramify.cli.options import USING, FormatOption, Json
from ramify.cli.progress import Steps
from ramify.errors import RamifyError

verbs = typer.Typer()


@verbs.command(rich_help_panel=USING)
def route(
    file: Annotated[Path | None, typer.Argument(help="File of structures, in any format that ASE reads.")] = None,
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="A run directory or an export that has a router.")
    ] = None,
    fit: Annotated[Path | None, typer.Option("--fit", help="Fit a router to the training data of this run.")] = None,
    confidence: Annotated[float, typer.Option(help="Abstain below this confidence.", min=0.0, max=1.0)] = 0.8,
    form: FormatOption = None,
    as_json: Json = False,
) -> None:
    """Find the branch that suits each structure of a file, with a confidence, or abstain.

    The result is advice: predictions always use the branch that you name.
    """
    if (fit is None) == (file is None) or (file is not None and model is None):
        raise RamifyError("route needs a file of structures and --model, or --fit RUN")
    if fit is not None:
        _fit(fit, as_json)
        return
    from ramify.inference.model import load
    from ramify.route.route_file import route_file

    lines = []
    for line in route_file(load(str(model)), Path(str(file)), confidence, form):
        if as_json:
            lines.append(asdict(line))
        else:
            say(line.text())
    if as_json:
        print_json(lines)


def _fit(run: Path, as_json: bool) -> None:
    from ramify.inference.saved import ROUTER
    from ramify.route.fit import fit_router

    with Steps(console, f"route --fit {escape(str(run))}", quiet=as_json) as steps:
        measured: dict[str, Any] = dict(fit_router(run, steps.counted).measured)
    if as_json:
        print_json(measured)
        return
    by_branch = ", ".join(f"{name} {100 * share:.0f} %" for name, share in measured["accuracy_by_branch"].items())
    say_written(
        f"on {measured['structures']} validation structures: {100 * measured['accuracy']:.1f} % correct ({by_branch}), "
        f"mean confidence {100 * measured['mean_confidence']:.1f} %, expected calibration error "
        f"{100 * measured['calibration_error']:.1f} %; router",
        run / ROUTER,
    )
