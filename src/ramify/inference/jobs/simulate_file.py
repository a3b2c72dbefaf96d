"""`ramify md`: molecular dynamics of one structure of a file, written as a trajectory; resumable."""

import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from ase import Atoms

from ramify.errors import RamifyError
from ramify.files import content_sha256, disk_full_named
from ramify.inference.integrations.ase import Calculator
from ramify.inference.jobs.dynamics import DynamicsOptions, DynamicsReport, simulate
from ramify.inference.jobs.frames import one_frame, with_results
from ramify.inference.jobs.integrators import DynamicsState
from ramify.inference.jobs.trajectory import TrajectoryFile

FREE = ("steps", "max_std", "beyond")
"""Options that may differ when a simulation is resumed."""


def simulate_file(
    calculator: Calculator,
    source: Path,
    target: Path,
    options: DynamicsOptions,
    *,
    index: int | None = None,
    form: str | None = None,
    resume: bool = False,
    on_step: Callable[[int], None] = lambda step: None,
) -> DynamicsReport:
    """Simulates one structure of a file.

    Frames are appended to TARGET.part, which is renamed to TARGET at the end, also if the simulation became unstable.
    They contain energies, forces and velocities, so that another simulation can start from the last frame. After every
    frame, the exact state is written to TARGET.state.npz. With `resume`, a simulation continues from it: one that was
    interrupted, or a finished one up to a larger number of steps.

    Args:
        calculator: calculator of the branch.
        source: any file that ASE reads.
        target: extended XYZ, or ASE's trajectory if its name ends with `.traj`; must not exist without `resume`.
        options: options of the simulation.
        index: index of the structure in the file, from 0, or -1 for the last; may be None if there is only one.
        form: format name of ASE; None to detect the format.
        resume: continue the simulation of `target`, if it was begun.
        on_step: called with the number of completed steps.

    Raises:
        RamifyError: `target` exists or was begun and `resume` is not given, it was another simulation, there is no such
            structure, there are several and none is named; or an error of `simulate`.
    """
    part, state_file = (target.with_name(f"{target.name}.{ending}") for ending in ("part", "state.npz"))
    atoms = one_frame(source, index, form)
    job = _job(calculator, atoms, options)
    before = _begun(target, part, state_file, job, resume=resume)
    target.parent.mkdir(parents=True, exist_ok=True)
    kept = {} if before is None else dict(before.about["trajectory"])
    saved = f"the trajectory so far is in {part}"
    with disk_full_named(target, left=saved, fix="free some space and run it again with --resume"):
        trajectory = TrajectoryFile(part, binary=target.suffix == ".traj", **kept)

        def on_frame(now: Atoms) -> None:
            trajectory.append(with_results(now, calculator.results))

        def on_state(state: DynamicsState) -> None:
            size = {"frames": trajectory.frames, "size": trajectory.size}
            replace(state, about={**state.about, "job": job, "trajectory": size}).write(state_file)

        try:
            report = simulate(atoms, calculator, options, on_frame, on_step, on_state, before)
        except BaseException:
            trajectory.close()
            if not trajectory.frames:
                part.unlink()
            raise
        trajectory.close()
        os.replace(part, target)
        if report.stopped:  # it would stop there again
            state_file.unlink(missing_ok=True)
    return report


def _begun(target: Path, part: Path, state_file: Path, job: str, *, resume: bool) -> DynamicsState | None:
    """The state to continue from; None for a new simulation."""
    if target.exists() and not resume:
        raise RamifyError(f"{target} exists already", fix="choose another --out, move it away, or --resume it")
    if target.exists() and not state_file.exists():
        raise RamifyError(
            f"{target} cannot be resumed: there is no {state_file.name}",
            fix="start another simulation from its last frame, with --index -1",
        )
    if not (part.exists() or target.exists()) or not state_file.exists():
        return None
    if not resume:
        raise RamifyError(f"{part} is a simulation that was stopped", fix="continue it with --resume, or remove it")
    state = DynamicsState.read(state_file)
    if state.about["job"] != job:
        raise RamifyError(
            f"{target} was begun with another structure, model, branch or option",
            fix="give the same ones, only --steps, --max-std and --beyond may differ; or choose another --out",
        )
    if target.exists():
        os.replace(target, part)
    return state


def _job(calculator: Calculator, atoms: Atoms, options: DynamicsOptions) -> str:
    """Checksum of all inputs of a simulation that determine its steps."""
    predictor = calculator.predictor
    model = [*calculator.model.identity, str(calculator.model.dtype)]
    branch = [predictor.branch.name, predictor.dataset.name]
    structure = [atoms.numbers.tolist(), atoms.positions.tolist(), atoms.cell.tolist(), atoms.pbc.tolist()]
    velocities = atoms.get_momenta().tolist()
    chosen = {name: value for name, value in asdict(options).items() if name not in FREE}
    return content_sha256([model, branch, structure, velocities, chosen])
