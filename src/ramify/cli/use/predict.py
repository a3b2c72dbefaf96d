"""The commands that hand a trained model on and predict files with it: export, predict."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape

from ramify.cli.messages import console, say_written
from ramify.cli.options import USING, CheckpointOption, FormatOption, Json, ModelArgument, gigabytes
from ramify.cli.progress import Steps
from ramify.cli.use.options import (
    BranchOptions,
    DatasetOption,
    FileArgument,
    OutOption,
    RestartOption,
    print_written,
    warnings_shown,
    with_options,
)
from ramify.errors import RamifyError

verbs = typer.Typer()


@verbs.command(rich_help_panel=USING)
def export(
    run: ModelArgument,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Directory to create; for metatomic a file, NAME.pt, for mliap NAME.pkl."),
    ],
    branch: Annotated[
        list[str] | None, typer.Option("--branch", "-b", help="Export only this branch; may be repeated.")
    ] = None,
    checkpoint: CheckpointOption = "best",
    form: Annotated[
        Literal["ramify", "metatomic", "mliap"],
        typer.Option(
            "--format",
            help="One branch for other programs: metatomic, for LAMMPS and others; mliap, for LAMMPS's pair style.",
        ),
    ] = "ramify",
    dataset: DatasetOption = None,
    precision: Annotated[
        str, typer.Option(help="With metatomic and mliap: precision of the network, fp32 or fp64.")
    ] = "fp64",
) -> None:
    """Write a small self-contained model with a model card; it needs neither the run nor its data."""
    from ramify.inference.export.exported import write_export
    from ramify.inference.model import load, read_saved

    if form != "ramify":
        if branch and len(branch) > 1:
            raise RamifyError(f"--format {form} exports one branch, not {len(branch)}", fix="name one --branch")
        loaded, chosen = load(run, checkpoint=checkpoint, precision=precision), branch[0] if branch else None
        if form == "mliap":
            from ramify.inference.integrations.mliap import write_mliap

            write_mliap(loaded, chosen, out, dataset)
        else:
            from ramify.inference.integrations.metatomic import write_metatomic

            write_metatomic(loaded.predictor(chosen, dataset), out)
    else:
        write_export(read_saved(run, checkpoint), out, branch or [])
    say_written("model", out)


@verbs.command(rich_help_panel=USING)
@with_options
def predict(
    file: FileArgument,
    out: OutOption,
    options: BranchOptions,
    all_branches: Annotated[bool, typer.Option("--all-branches", help="Predict with every branch.")] = False,
    forces_std: Annotated[
        bool, typer.Option("--forces-std", help="Also write error bars of forces, of a calibrated model; slow.")
    ] = False,
    form: FormatOption = None,
    memory: Annotated[
        str | None, typer.Option(help="Memory for a batch, e.g. 16GB; by default all free memory.")
    ] = None,
    restart: RestartOption = False,
    as_json: Json = False,
) -> None:
    """Predict energies, forces and stress of every structure of a file; resumes an interrupted file.

    With a model that `ramify calibrate` has given error bars, `energy_std` (eV) is written as well.
    """
    from ramify.inference.jobs.predict_file import predict_file

    if all_branches and options.branch:
        raise RamifyError("--branch and --all-branches cannot be combined", fix="give one of them")
    loaded = options.load()
    with warnings_shown():
        named = None if all_branches else loaded.predictor(options.branch, options.dataset).branch.name
    limit = None if memory is None else 1e9 * gigabytes(memory)
    with Steps(console, f"predict {escape(str(file))}", quiet=as_json) as steps:
        progress = predict_file(
            loaded, file, out, [named] if named else [*loaded.branches],
            dataset=options.dataset, charge=options.charge, spin=options.spin, forces_std=forces_std, form=form,
            memory=limit, restart=restart, progress=steps.counted,
        )  # fmt: skip
    print_written(out, progress, as_json)
