"""Conversion of labelled ASE frames to records."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ase import Atoms

from ramify.sources.chunks import Record
from ramify.sources.labels import AtomsOptions, Labeller
from ramify.sources.quarantine import Quarantine


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
        if record is not None and (found := problem(row)) is not None:
            quarantine.add(f"{origin or path.name}[{row}]", *found)
        elif record is not None:
            yield record
    labeller.check()
