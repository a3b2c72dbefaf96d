"""The commands that move atoms with a trained model: relax, md, ipi."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ramify.cli.messages import console, print_json, say, say_written
from ramify.cli.options import USING, FormatOption, Json
from ramify.cli.progress import Steps, relaxation_line, step_bar
from ramify.cli.use.options import (
    BranchOptions,
    FileArgument,
    IndexOption,
    OutOption,
    RestartOption,
    print_written,
    warnings_shown,
    with_options,
)
from ramify.errors import RamifyError

if TYPE_CHECKING:  # these import PyTorch, which takes seconds to load
    from ramify.inference.jobs.dynamics import DynamicsReport
    from ramify.inference.jobs.relax import Relaxation

verbs = typer.Typer()


@verbs.command(rich_help_panel=USING)
@with_options
def relax(
    file: FileArgument,
    out: OutOption,
    options: BranchOptions,
    form: FormatOption = None,
    fmax: Annotated[float, typer.Option(help="Convergence criterion: largest force, eV/Å.")] = 0.05,
    steps: Annotated[int, typer.Option(help="Largest number of steps.")] = 500,
    cell: Annotated[bool, typer.Option("--cell", help="Also relax the cell.")] = False,
    pressure: Annotated[float, typer.Option(help="With --cell: external pressure in GPa.")] = 0.0,
    symmetry: Annotated[bool, typer.Option("--symmetry", help="Keep the space group; needs spglib.")] = False,
    optimizer: Annotated[Literal["fire", "bfgs", "lbfgs"], typer.Option(help="fire is the most robust.")] = "fire",
    restart: RestartOption = False,
    as_json: Json = False,
) -> None:
    """Relax every structure of a file; resumes an interrupted file. Prints for each whether it converged."""
    from ramify.inference.jobs.relax import RelaxOptions, relax_file

    def show(index: int, formula: str, found: "Relaxation | None", why: str) -> None:
        if not as_json:
            say(relaxation_line(index, formula, found, why))

    how = RelaxOptions(fmax=fmax, steps=steps, cell=cell, optimizer=optimizer, pressure=pressure, symmetry=symmetry)
    calculator = options.calculator()
    with warnings_shown():
        progress = relax_file(calculator, file, out, how, form=form, restart=restart, done=show)
    print_written(out, progress, as_json)


@verbs.command(rich_help_panel=USING)
@with_options
def md(
    file: FileArgument,
    out: OutOption,
    options: BranchOptions,
    form: FormatOption = None,
    index: IndexOption = None,
    ensemble: Annotated[Literal["nve", "nvt", "npt"], typer.Option(help="npt: Martyna-Tobias-Klein.")] = "nve",
    thermostat: Annotated[
        Literal["langevin", "nose-hoover"], typer.Option(help="Of nvt; nose-hoover: a chain of three.")
    ] = "langevin",
    barostat: Annotated[
        Literal["isotropic", "full"], typer.Option(help="Of npt: keep the shape of the cell, or change all of it.")
    ] = "isotropic",
    friction: Annotated[float, typer.Option(help="Of langevin, 1/fs.")] = 0.01,
    tdamp: Annotated[float, typer.Option(help="Relaxation time of nose-hoover and npt's thermostat, fs.")] = 50.0,
    pdamp: Annotated[float, typer.Option(help="Relaxation time of the barostat, fs.")] = 500.0,
    pressure: Annotated[float, typer.Option(help="Of npt, GPa.")] = 0.0,
    temperature: Annotated[float | None, typer.Option(help="In K; by default the file's velocities are kept.")] = None,
    timestep: Annotated[float, typer.Option(help="Time step in fs.")] = 0.5,
    steps: Annotated[int, typer.Option(help="Number of steps of the whole simulation.")] = 1000,
    every: Annotated[int, typer.Option(help="Number of steps between frames written.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of velocities and thermostat.")] = 0,
    max_std: Annotated[
        float | None, typer.Option(help="Largest error bar of the energy, eV/atom, of a calibrated model.")
    ] = None,
    beyond: Annotated[
        Literal["stop", "warn"], typer.Option(help="Beyond --max-std: end the simulation, or warn once.")
    ] = "stop",
    replicas: Annotated[
        int, typer.Option(min=1, help="Number of simulations, with seeds from --seed on, in OUT-0, OUT-1, ...")
    ] = 1,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a stopped simulation, or a finished one to more --steps.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run molecular dynamics of one structure: NVE, NVT or NPT. Prints the drift of the conserved energy."""
    from ramify.inference.jobs.dynamics import DynamicsOptions
    from ramify.inference.jobs.integrators import IntegratorOptions
    from ramify.inference.jobs.simulate_file import simulate_file

    integrator = IntegratorOptions(
        ensemble=ensemble, thermostat=thermostat, barostat=barostat,
        friction=friction, tdamp=tdamp, pdamp=pdamp, pressure=pressure,
    )  # fmt: skip
    if replicas > 1 and temperature is None:
        raise RamifyError("replicas differ in their velocities, and no temperature is given", fix="give --temperature")
    calculator = options.calculator()
    reports = {}
    for k in range(replicas):
        how = DynamicsOptions(
            integrator=integrator, temperature=temperature, timestep=timestep, steps=steps, every=every, seed=seed + k,
            max_std=max_std, beyond=beyond,
        )  # fmt: skip
        target = out if replicas == 1 else out.with_stem(f"{out.stem}-{k}")
        with warnings_shown(), step_bar(console, "md", steps, quiet=as_json) as on_step:
            reports[target] = simulate_file(
                calculator, file, target, how, index=index, form=form, resume=resume, on_step=on_step
            )
    random = ensemble == "nvt" and thermostat == "langevin"
    _print_dynamics(reports, "total energy, exchanged with the thermostat," if random else "conserved energy", as_json)


def _print_dynamics(reports: Mapping[Path, "DynamicsReport"], energy: str, as_json: bool) -> None:
    """Prints the result of every simulation; an error if one ended early."""
    if as_json:
        found = [asdict(report) for report in reports.values()]
        print_json(found[0] if len(found) == 1 else found)
    for target, report in reports.items():
        if not as_json and report.drift is not None:
            say_written(
                f"{report.steps} steps, {report.time:.3f} ps, {report.temperature:.0f} K on average; {energy} "
                f"drifts by {report.drift:.3f} meV/atom/ps and spreads by {report.spread:.3f} meV/atom; trajectory",
                target,
            )
    for target, report in reports.items():
        if report.stopped:
            raise RamifyError(
                f"the simulation ended early: {report.stopped}; the trajectory so far is in {target}",
                fix="use a shorter --timestep or a lower --temperature, or relax the structure first",
            )


@verbs.command(rich_help_panel=USING)
@with_options
def ipi(
    file: FileArgument,
    options: BranchOptions,
    form: FormatOption = None,
    index: IndexOption = None,
    unix: Annotated[str | None, typer.Option(help="Name of a Unix socket: <address> with mode='unix'.")] = None,
    host: Annotated[str, typer.Option(help="Host of i-PI, without --unix.")] = "localhost",
    port: Annotated[int, typer.Option(help="Port of i-PI, without --unix.")] = 31415,
    wait: Annotated[float, typer.Option(help="Seconds within which i-PI must be reachable.")] = 60.0,
) -> None:
    """Predict for i-PI until it ends; FILE holds the elements and the periodic axes of its atoms."""
    from ramify.inference.integrations.ipi import drive
    from ramify.inference.jobs.frames import one_frame

    atoms = one_frame(file, index, form)
    calculator = options.calculator()
    with warnings_shown(), Steps(console, "ipi", "predictions") as steps:
        drive(atoms, calculator, unix=unix, host=host, port=port, wait=wait, on_step=lambda _: steps.counted(1))
