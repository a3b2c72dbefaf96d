"""The commands that use a trained model: export, predict, relax, md."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

import typer
from rich.markup import escape

from ramify.cli.options import (
    USING,
    CheckpointOption,
    FormatOption,
    Json,
    ModelArgument,
    ModelOption,
    console,
    gigabytes,
    print_json,
)
from ramify.cli.progress import Steps, relaxation_line, step_bar
from ramify.errors import RamifyError, RamifyWarning

if TYPE_CHECKING:  # these import PyTorch, which takes seconds to load
    from ramify.inference.jobs.relax import Relaxation
    from ramify.inference.jobs.resumable import OutputProgress
    from ramify.inference.model import Model

FileArgument = Annotated[Path, typer.Argument(help="File of structures, in any format that ASE reads.")]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="Extended XYZ file to write; must not exist.")]
BranchOption = Annotated[
    str | None, typer.Option("--branch", "-b", help="Branch to use; required if the model has several.")
]
DatasetOption = Annotated[
    str | None,
    typer.Option(help="Dataset whose reference energies apply; required if the branch has several."),
]
ChargeOption = Annotated[
    int | None, typer.Option(help="Charge in e of structures that state none, for models that take it.")
]
SpinOption = Annotated[
    int | None, typer.Option(help="Multiplicity of structures that state none, for models that take it.")
]
DeviceOption = Annotated[str, typer.Option(help="Device by PyTorch's name, e.g. cuda.")]
PrecisionOption = Annotated[str | None, typer.Option(help="fp32 or fp64; by default that of the training.")]
RestartOption = Annotated[bool, typer.Option("--restart", help="Start again instead of resuming an interrupted file.")]

verbs = typer.Typer()


@verbs.command(rich_help_panel=USING)
def export(
    run: ModelArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory to create; for metatomic a file, NAME.pt.")],
    branch: Annotated[
        list[str] | None, typer.Option("--branch", "-b", help="Export only this branch; may be repeated.")
    ] = None,
    checkpoint: CheckpointOption = "best",
    form: Annotated[
        Literal["ramify", "metatomic"],
        typer.Option("--format", help="metatomic: one branch, for LAMMPS and other programs."),
    ] = "ramify",
    dataset: DatasetOption = None,
    precision: Annotated[str, typer.Option(help="With metatomic: precision of the network, fp32 or fp64.")] = "fp64",
) -> None:
    """Write a small self-contained model with a model card; it needs neither the run nor its data."""
    from ramify.inference.export.exported import write_export
    from ramify.inference.model import read_saved

    if form == "metatomic":
        from ramify.inference.integrations.metatomic import write_metatomic

        if branch and len(branch) > 1:
            raise RamifyError("a metatomic model has one branch", fix="name one --branch")
        loaded = _load(run, checkpoint, "cpu", precision)
        write_metatomic(loaded.predictor(branch[0] if branch else None, dataset), out)
    else:
        write_export(read_saved(run, checkpoint), out, branch or [])
    console.print(f"model: [bold]{escape(str(out))}[/bold]", soft_wrap=True)


@verbs.command(rich_help_panel=USING)
def predict(
    file: FileArgument,
    model: ModelOption,
    out: OutOption,
    branch: BranchOption = None,
    all_branches: Annotated[bool, typer.Option("--all-branches", help="Predict with every branch.")] = False,
    dataset: DatasetOption = None,
    charge: ChargeOption = None,
    spin: SpinOption = None,
    checkpoint: CheckpointOption = "best",
    form: FormatOption = None,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = None,
    memory: Annotated[
        str | None, typer.Option(help="Memory for a batch, e.g. 16GB; by default all free memory.")
    ] = None,
    restart: RestartOption = False,
    as_json: Json = False,
) -> None:
    """Predict energies, forces and stress of every structure of a file; resumes an interrupted file."""
    from ramify.inference.jobs.predict_file import predict_file

    if all_branches and branch:
        raise RamifyError("--branch and --all-branches cannot be combined", fix="give one of them")
    loaded = _load(model, checkpoint, device, precision)
    names = list(loaded.branches) if all_branches else [loaded.predictor(branch, dataset).branch.name]
    limit = None if memory is None else 1e9 * gigabytes(memory)
    with Steps(console, f"predict {escape(str(file))}", quiet=as_json) as steps:
        progress = predict_file(
            loaded, file, out, names, dataset=dataset, charge=charge, spin=spin, form=form, memory=limit,
            restart=restart, progress=steps.counted,
        )  # fmt: skip
    _print_written(out, progress, as_json)


@verbs.command(rich_help_panel=USING)
def relax(
    file: FileArgument,
    model: ModelOption,
    out: OutOption,
    branch: BranchOption = None,
    dataset: DatasetOption = None,
    charge: ChargeOption = None,
    spin: SpinOption = None,
    checkpoint: CheckpointOption = "best",
    form: FormatOption = None,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = None,
    fmax: Annotated[float, typer.Option(help="Convergence criterion: largest force, eV/Å.")] = 0.05,
    steps: Annotated[int, typer.Option(help="Largest number of steps.")] = 500,
    cell: Annotated[bool, typer.Option("--cell", help="Also relax the cell.")] = False,
    optimizer: Annotated[Literal["fire", "bfgs", "lbfgs"], typer.Option(help="fire is the most robust.")] = "fire",
    restart: RestartOption = False,
    as_json: Json = False,
) -> None:
    """Relax every structure of a file; resumes an interrupted file. Prints for each whether it converged."""
    from ramify.inference.integrations.ase import Calculator
    from ramify.inference.jobs.relax import RelaxOptions, relax_file

    def show(index: int, formula: str, found: "Relaxation | None", why: str) -> None:
        if not as_json:
            console.print(relaxation_line(index, formula, found, why), highlight=False, markup=False)

    options = RelaxOptions(fmax=fmax, steps=steps, cell=cell, optimizer=optimizer)
    calculator = Calculator(
        _load(model, checkpoint, device, precision), branch, dataset=dataset, charge=charge, spin=spin
    )
    with _warnings_shown():
        progress = relax_file(calculator, file, out, options, form=form, restart=restart, done=show)
    _print_written(out, progress, as_json)


@verbs.command(rich_help_panel=USING)
def md(
    file: FileArgument,
    model: ModelOption,
    out: OutOption,
    branch: BranchOption = None,
    dataset: DatasetOption = None,
    charge: ChargeOption = None,
    spin: SpinOption = None,
    checkpoint: CheckpointOption = "best",
    form: FormatOption = None,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = None,
    index: Annotated[
        int | None,
        typer.Option(
            help="Index of the structure in the file, from 0, or -1 for the last; required if there are several."
        ),
    ] = None,
    ensemble: Annotated[Literal["nve", "nvt"], typer.Option(help="nve: velocity Verlet; nvt: Langevin.")] = "nve",
    temperature: Annotated[float | None, typer.Option(help="In K; by default the file's velocities are kept.")] = None,
    timestep: Annotated[float, typer.Option(help="Time step in fs.")] = 0.5,
    steps: Annotated[int, typer.Option(help="Number of steps.")] = 1000,
    every: Annotated[int, typer.Option(help="Number of steps between frames written.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of velocities and thermostat.")] = 0,
    as_json: Json = False,
) -> None:
    """Run molecular dynamics of one structure, NVE or NVT. Prints the drift of the energy."""
    from ramify.inference.integrations.ase import Calculator
    from ramify.inference.jobs.dynamics import DynamicsOptions
    from ramify.inference.jobs.simulate_file import simulate_file

    options = DynamicsOptions(
        ensemble=ensemble, temperature=temperature, timestep=timestep, steps=steps, every=every, seed=seed
    )
    calculator = Calculator(
        _load(model, checkpoint, device, precision), branch, dataset=dataset, charge=charge, spin=spin
    )
    with _warnings_shown(), step_bar(console, "md", steps, quiet=as_json) as on_step:
        report = simulate_file(calculator, file, out, options, index=index, form=form, on_step=on_step)
    if as_json:
        print_json(asdict(report))
    elif report.drift is not None:
        console.print(
            f"{report.steps} steps, {report.time:.3f} ps, {report.temperature:.0f} K on average; total energy "
            f"drifts by {report.drift:.3f} meV/atom/ps and spreads by {report.spread:.3f} meV/atom; trajectory: "
            f"[bold]{escape(str(out))}[/bold]",
            soft_wrap=True,
        )
    if report.stopped:
        raise RamifyError(
            f"the simulation ended early: {report.stopped}; the trajectory so far is in {out}",
            fix="use a shorter --timestep or a lower --temperature, or relax the structure first",
        )


def _load(model: Path, checkpoint: str, device: str, precision: str | None) -> "Model":
    from ramify.inference.model import load

    return load(model, checkpoint=checkpoint, device=device, precision=precision)


def _print_written(out: Path, progress: "OutputProgress", as_json: bool) -> None:
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
def _warnings_shown() -> Iterator[None]:
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
