"""Relaxation of atoms and optionally the cell, with the reason where it does not converge."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from ase import Atoms, units
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS, FIRE, LBFGS

from ramify.errors import RamifyError
from ramify.files import content_sha256, disk_full_named
from ramify.inference.integrations.ase import Calculator
from ramify.inference.jobs.frames import frames, with_results
from ramify.inference.jobs.resumable import OutputProgress, ResumableOutput

Optimizer = Literal["fire", "bfgs", "lbfgs"]
OPTIMIZERS = {"fire": FIRE, "bfgs": BFGS, "lbfgs": LBFGS}

NOT_CONVERGED = "not converged"
VOLUME_CHANGE = 1.5
"""A volume change by more than this factor is reported: the result is probably another crystal."""

RISE = 1e-4
"""eV/atom, tolerated increase of the energy in a relaxation, due to rounding in float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelaxOptions:
    """Options of a relaxation.

    Attributes:
        fmax: eV/Å, largest norm of a force (and of the derivative by the cell, as ASE's `FrechetCellFilter` scales it)
            at which the structure counts as relaxed.
        steps: largest number of steps.
        cell: also relax the cell; needs three periodic axes and a conservative branch.
        optimizer: optimizer of ASE. `fire` is robust far from a minimum; `bfgs` takes fewer steps near a minimum, with
            a cost that grows with the cube of the number of atoms; `lbfgs` is for many atoms, and may not converge if
            the cell is relaxed.
        pressure: GPa, with `cell`; compression is positive. The enthalpy E + p V is minimised.
        symmetry: keep the space group of the initial structure (ASE's `FixSymmetry`, which needs `spglib`).
    """

    fmax: float = 0.05
    steps: int = 500
    cell: bool = False
    optimizer: Optimizer = "fire"
    pressure: float = 0.0
    symmetry: bool = False


@dataclass(frozen=True, slots=True)
class Relaxation:
    """The result of relaxing one structure.

    Attributes:
        atoms: the last structure, with its energy, forces and stress.
        converged: whether the forces fell below the limit.
        steps: number of steps taken.
        max_force: eV/Å, final value of the quantity that `RelaxOptions.fmax` limits.
        energy_change: eV, final energy minus initial energy.
        why: reason for not converging, or reason to doubt a converged result; empty if there is none.
    """

    atoms: Atoms
    converged: bool
    steps: int
    max_force: float
    energy_change: float
    why: str


def relax(atoms: Atoms, calculator: Calculator, options: RelaxOptions) -> Relaxation:
    """Relaxes a copy of one structure.

    Raises:
        RamifyError: the branch cannot predict the structure or predicts no forces, the optimizer is unknown, or the
            cell cannot be relaxed.
    """
    atoms = atoms.copy()
    _check(atoms, calculator, options)
    given = atoms.constraints
    atoms.calc = calculator
    before, volume = atoms.get_potential_energy(), atoms.cell.volume
    if options.symmetry:
        _fix_symmetry(atoms)
    pressure = options.pressure * units.GPa
    moved = FrechetCellFilter(atoms, scalar_pressure=pressure) if options.cell else atoms
    optimizer = OPTIMIZERS[options.optimizer](moved, logfile=None)
    last, why, taken = atoms.copy(), "", -1
    try:
        for _ in optimizer.irun(fmax=options.fmax, steps=options.steps):  # also yields before the first step
            taken += 1
            last, results = atoms.copy(), dict(calculator.results)
            largest = float(np.linalg.norm(moved.get_forces(), axis=1).max())
        converged = largest < options.fmax
        if not converged:
            why = f"{NOT_CONVERGED} in {taken} steps: largest force {largest:.4f} eV/Å"
    except RamifyError as error:  # the branch refuses to predict: the step before is kept
        converged, why = False, f"step {taken + 1} was refused: {str(error).splitlines()[0]}"
    ratio = last.cell.volume / volume if options.cell else 1.0
    change = results["energy"] - before
    if converged and not 1 / VOLUME_CHANGE < ratio < VOLUME_CHANGE:
        why = f"the volume changed by a factor of {ratio:.2f}"
    elif converged and change + pressure * (last.cell.volume - volume) > RISE * len(atoms):
        why = f"the energy rose by {change:.4f} eV: forces also vanish at maxima"
    last.set_constraint(given)
    return Relaxation(with_results(last, results), converged, taken, largest, change, why)


def _check(atoms: Atoms, calculator: Calculator, options: RelaxOptions) -> None:
    if options.optimizer not in OPTIMIZERS:
        raise RamifyError(f"optimizer '{options.optimizer}' is unknown; accepted: {', '.join(OPTIMIZERS)}")
    calculator.predictor.require_forces("relax structures")
    if options.pressure and not options.cell:
        raise RamifyError(f"pressure={options.pressure} GPa without a change of the cell", fix="add --cell")
    if not options.cell:
        return
    if "stress" not in calculator.implemented_properties:
        raise RamifyError(
            f"branch '{calculator.predictor.branch.name}' has direct forces and no stress: the cell cannot be relaxed",
            fix="leave the cell as it is, or take a model with conservative forces",
        )
    if not atoms.pbc.all():
        raise RamifyError(
            f"pbc {atoms.pbc.tolist()}: a cell is relaxed along three periodic axes or not at all",
            fix="leave the cell as it is",
        )


def _fix_symmetry(atoms: Atoms) -> None:
    """Keeps the space group of the atoms during their relaxation."""
    if not atoms.pbc.all():
        raise RamifyError(f"pbc {atoms.pbc.tolist()}: a space group needs three periodic axes", fix="omit --symmetry")
    try:
        from ase.constraints import FixSymmetry

        atoms.set_constraint([*atoms.constraints, FixSymmetry(atoms)])
    except ImportError as error:
        fix = "install it: pip install 'ramify[phonons]'"
        raise RamifyError(f"spglib cannot be imported: {error}", fix=fix) from None


def relax_file(
    calculator: Calculator,
    source: Path,
    target: Path,
    options: RelaxOptions,
    *,
    form: str | None = None,
    restart: bool = False,
    done: Callable[[int, str, Relaxation | None, str], None] = lambda index, formula, found, why: None,
) -> OutputProgress:
    """Relaxes every structure of a file; streamed, and resumable after an interruption.

    Args:
        calculator: calculator of the branch.
        source: any file that ASE reads.
        target: extended XYZ; must not exist. Frames have the entries `converged`, `steps`, `max_force`,
            `energy_change` and `why`.
        options: options of the relaxation.
        form: format name of ASE; None to detect the format.
        restart: start again instead of resuming an interrupted job.
        done: called with index, formula, result and reason of each structure; the result is None if it was skipped.

    Raises:
        RamifyError: `target` exists, the interrupted job was another one, the file cannot be read, or the disk is full.
    """
    if not source.is_file():
        raise RamifyError(f"{source} does not exist", fix="correct the path of the structures")
    status, predictor = source.stat(), calculator.predictor
    of_source = [str(source.resolve()), status.st_size, status.st_mtime_ns]
    inputs = [*calculator.model.identity, predictor.branch.name, predictor.dataset.name, repr(options)]
    output = ResumableOutput(target, content_sha256([of_source, inputs]), restart=restart)
    with disk_full_named(target, left="results so far are kept", fix="free some space and run it again"):
        for index, atoms in frames(source, output.quarantine, output.progress.frames, form):
            found, why, images = None, "", []
            try:
                found = relax(atoms, calculator, options)
            except RamifyError as error:
                why = str(error).splitlines()[0]
                reason, _, detail = why.partition(": ")
                output.quarantine.add(f"{source.name}[{index}]", reason, detail)
            if found is not None:
                why = found.why
                image = found.atoms
                image.info |= {"source_index": index, "branch": predictor.branch.name, "converged": found.converged}
                image.info |= {"steps": found.steps, "max_force": found.max_force}
                image.info |= {"energy_change": found.energy_change} | ({"why": why} if why else {})
                images = [image]
                output.progress.warnings += bool(why)
            output.progress.frames = index + 1
            output.put(images)
            done(index, str(atoms.symbols), found, why)
        output.finish()
    return output.progress
