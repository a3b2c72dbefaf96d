"""Labelled structures of the files that ASE reads frame by frame, as records."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from ase import Atoms

from ramify.sources.chunks import Record
from ramify.sources.labels import AtomsOptions, Labeller
from ramify.sources.quarantine import Quarantine


def records(
    path: Path, frames: Iterable[Atoms], options: AtomsOptions, quarantine: Quarantine, origin: str | None = None
) -> Iterator[Record]:
    """The records of `frames`. Labels are the results as they were computed: constraints change no force.

    Args:
        path: the file, for messages.
        frames: in eV, eV/Å, Å and eV/Å³ (ASE's units) unless the options say otherwise.
        options: keys and units.
        quarantine: for what cannot be used.
        origin: how records name the file; None for its name.

    Raises:
        RamifyError: a label or group key that the file does not have.
    """
    labeller = Labeller(path, options, quarantine)
    for row, atoms in enumerate(frames):
        results = dict(atoms.calc.results) if atoms.calc is not None else {}
        arrays = {name: a for name, a in atoms.arrays.items() if name not in ("numbers", "positions")}
        record = labeller.record(
            {**atoms.info, **arrays, **results},
            numbers=atoms.numbers,
            positions=atoms.positions,
            cell=atoms.cell.array,
            pbc=atoms.pbc,
            row=row,
            origin=origin,
        )
        if record is not None:
            yield record
    labeller.check()
