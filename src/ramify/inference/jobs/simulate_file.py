"""`ramify md`: molecular dynamics of one structure of a file, written as a trajectory."""

import os
from collections.abc import Callable
from pathlib import Path

from ase import Atoms

from ramify.errors import RamifyError
from ramify.files import disk_full_named, sync
from ramify.inference.integrations.ase import Calculator
from ramify.inference.jobs.dynamics import DynamicsOptions, DynamicsReport, simulate
from ramify.inference.jobs.frames import append_frames, one_frame, with_results


def simulate_file(
    calculator: Calculator,
    source: Path,
    target: Path,
    options: DynamicsOptions,
    *,
    index: int | None = None,
    form: str | None = None,
    on_step: Callable[[int], None] = lambda step: None,
) -> DynamicsReport:
    """Simulates one structure of a file.

    Frames are appended to TARGET.part, which is renamed to TARGET at the end, also if the simulation became unstable.
    They contain energies, forces and velocities, so that another simulation can start from the last frame.

    Args:
        calculator: calculator of the branch.
        source: any file that ASE reads.
        target: extended XYZ; must not exist.
        options: options of the simulation.
        index: index of the structure in the file, from 0, or -1 for the last; may be None if there is only one.
        form: format name of ASE; None to detect the format.
        on_step: called with the number of completed steps.

    Raises:
        RamifyError: `target` exists, there is no such structure, there are several and none is named; or an error of
            `simulate`.
    """
    if target.exists():
        raise RamifyError(f"{target} exists already", fix="choose another --out, or move it away")
    atoms = one_frame(source, index, form)
    part = target.with_name(f"{target.name}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with (
            disk_full_named(target, left=f"the trajectory so far is in {part}", fix="free some space and run it again"),
            part.open("w", encoding="utf-8") as file,
        ):

            def on_frame(now: Atoms) -> None:
                append_frames(file, [with_results(now, calculator.results)])
                file.flush()

            report = simulate(atoms, calculator, options, on_frame, on_step)
            sync(part)
            os.replace(part, target)
    finally:
        if part.exists() and not part.stat().st_size:  # no frame was written
            part.unlink()
    return report
