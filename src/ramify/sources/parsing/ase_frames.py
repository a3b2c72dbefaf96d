"""Conversion of labelled ASE frames to records, and frames of the output of electronic-structure programs."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ase import Atoms

from ramify.errors import RamifyError
from ramify.sources.chunks import Record
from ramify.sources.labels import AtomsOptions, Labeller
from ramify.sources.quarantine import Quarantine

UNCONVERGED = "electronic steps not converged"

_CP2K = (b" DBCSR| ", b" CP2K| ")
"""Beginnings of lines at the top of the output of CP2K."""


def records(
    path: Path,
    frames: Iterable[Atoms],
    options: AtomsOptions,
    quarantine: Quarantine,
    origin: str | None = None,
    problem: Callable[[int], tuple[str, str] | None] = lambda row: None,
) -> Iterator[Record]:
    """Yields the records of `frames`. Forces are those of the calculator, without constraints applied.

    Args:
        path: the file, for messages.
        frames: in ASE's units (eV, eV/Å, Å, eV/Å³) unless the options state others.
        options: keys and units.
        quarantine: receives unusable records.
        origin: name of the file in records; by default that of `path`.
        problem: reason and detail for a frame, by its position in the file, whose labels are wrong; else None.

    Raises:
        RamifyError: the file has no label or group of the recipe.
    """
    labeller = Labeller(path, options, quarantine)
    for row, atoms in enumerate(frames):
        record = labeller.record(
            named_values(atoms),
            numbers=atoms.numbers,
            positions=atoms.positions,
            cell=atoms.cell.array,
            pbc=atoms.pbc,
            row=row,
            origin=origin,
        )
        if record is not None and (found := problem(row)) is not None:
            quarantine.add(f"{origin or path.name}[{row}]", *found)
        elif record is not None:
            yield record
    labeller.check()


def named_values(atoms: Atoms) -> dict[str, Any]:
    """All values of a frame but its geometry, by name; results of the calculator first."""
    results = dict(atoms.calc.results) if atoms.calc is not None else {}
    arrays = {name: a for name, a in atoms.arrays.items() if name not in ("numbers", "positions")}
    return {**atoms.info, **arrays, **results}


def guarded(path: Path, frames: Iterable[Atoms]) -> Iterator[Atoms]:
    """Yields the frames that ASE reads from the output of a program.

    Args:
        path: the file, for messages.
        frames: iterable whose iteration is ASE's reading.

    Raises:
        RamifyError: truncated or damaged.
    """
    try:
        yield from frames
    except Exception as error:  # ASE may raise any exception on an unfinished file
        raise RamifyError(
            f"{path} is truncated or damaged: ASE cannot read it ({type(error).__name__}: {error})",
            fix="leave the file out, or use another output file of the calculation",
        ) from error


def refuse_cp2k(path: Path, head: bytes) -> None:
    """Refuses the output of CP2K, of which ASE reads no forces.

    Args:
        path: the file, for messages.
        head: its beginning.

    Raises:
        RamifyError: it is an output of CP2K.
    """
    if any(mark in head for mark in _CP2K):
        raise RamifyError(
            f"{path} is an output of CP2K, of which ASE reads no forces",
            fix="convert it to `format: deepmd` with dpdata: dpdata.LabeledSystem(FILE, fmt='cp2k/output')"
            ".to('deepmd/npy', FOLDER), for molecular dynamics fmt='cp2k/aimd_output' and its folder",
        )


def unfinished(path: Path, mark: bytes) -> RamifyError:
    """Creates the error for the output of a calculation that did not end.

    Args:
        path: the file.
        mark: text at the end of the output of a completed calculation.
    """
    return RamifyError(
        f"{path} is truncated: it has no '{mark.decode()}' at its end",
        fix="copy it again, or, if the calculation was stopped, set `unfinished: read` to read its complete steps",
    )
