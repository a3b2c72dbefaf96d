"""The commands that move atoms with a trained model: relax, md, ipi."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape

from ramify.cli.options import USING, CheckpointOption, FormatOption, Json, ModelOption, console, print_json
from ramify.cli.progress import Steps, relaxation_line, step_bar
from ramify.cli.use.options import (
    BranchOption,
    DatasetOption,
    DeviceOption,
    FileArgument,
    IndexOption,
    OutOption,
    PrecisionOption,
    RestartOption,
    load_model,
    print_written,
    warnings_shown,
)
from ramify.errors import RamifyError

if TYPE_CHECKING:  # it imports PyTorch, which takes seconds to load
    from ramify.inference.jobs.relax import Relaxation

verbs = typer.Typer()


@verbs.command(rich_help_panel=USING)
def relax(
    file: FileArgument,
    model: ModelOption,
    out: OutOption,
    branch: BranchOption = None,
    dataset: DatasetOption = None,
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
    calculator = Calculator(load_model(model, checkpoint, device, precision), branch, dataset=dataset)
    with warnings_shown():
        progress = relax_file(calculator, file, out, options, form=form, restart=restart, done=show)
    print_written(out, progress, as_json)


@verbs.command(rich_help_panel=USING)
def md(
    file: FileArgument,
    model: ModelOption,
    out: OutOption,
    branch: BranchOption = None,
    dataset: DatasetOption = None,
    checkpoint: CheckpointOption = "best",
    form: FormatOption = None,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = None,
    index: IndexOption = None,
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
    calculator = Calculator(load_model(model, checkpoint, device, precision), branch, dataset=dataset)
    with warnings_shown(), step_bar(console, "md", steps, quiet=as_json) as on_step:
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


@verbs.command(rich_help_panel=USING)
def ipi(
    file: FileArgument,
    model: ModelOption,
    branch: BranchOption = None,
    dataset: DatasetOption = None,
    checkpoint: CheckpointOption = "best",
    form: FormatOption = None,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = None,
    index: IndexOption = None,
    unix: Annotated[str | None, typer.Option(help="Name of a Unix socket: <address> with mode='unix'.")] = None,
    host: Annotated[str, typer.Option(help="Host of i-PI, without --unix.")] = "localhost",
    port: Annotated[int, typer.Option(help="Port of i-PI, without --unix.")] = 31415,
    wait: Annotated[float, typer.Option(help="Seconds within which i-PI must be reachable.")] = 60.0,
) -> None:
    """Predict for i-PI until it ends; FILE holds the elements and the periodic axes of its atoms."""
    from ramify.inference.integrations.ase import Calculator
    from ramify.inference.integrations.ipi import drive
    from ramify.inference.jobs.frames import one_frame

    atoms = one_frame(file, index, form)
    calculator = Calculator(load_model(model, checkpoint, device, precision), branch, dataset=dataset)
    with warnings_shown(), Steps(console, "ipi", "predictions") as steps:
        drive(atoms, calculator, unix=unix, host=host, port=port, wait=wait, on_step=lambda _: steps.counted(1))
