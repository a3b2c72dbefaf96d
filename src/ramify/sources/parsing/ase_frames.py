"""Conversion of labelled ASE frames to records, and frames of the output of electronic-structure programs."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ase import Atoms
from ase.io import iread
from ase.io.vasp import iread_vasp_out

from ramify.errors import RamifyError
from ramify.sources.chunks import Record
from ramify.sources.labels import AtomsOptions, Labeller
from ramify.sources.quarantine import Quarantine

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


def ase_output(path: Path, plain: Path, form: str) -> Iterator[Atoms]:
    """Yields the frames that ASE reads from the output of a program: of an OUTCAR one by one, else in memory for the
    whole file.

    Args:
        path: the file, for messages.
        plain: its uncompressed copy.
        form: ASE's name of the format.

    Raises:
        RamifyError: truncated or damaged.
    """
    try:
        if form == "vasp-out":  # ASE's general functions make a list of them
            with plain.open() as file:
                yield from iread_vasp_out(file, index=slice(None))
        else:
            yield from iread(str(plain), index=":", format=form)
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


def require_end(path: Path, plain: Path, mark: bytes) -> None:
    """Checks that the output of a program is complete.

    Args:
        path: the file, for messages.
        plain: its uncompressed copy.
        mark: text at the end of the output of a completed calculation.

    Raises:
        RamifyError: it is not.
    """
    with plain.open("rb") as file:
        file.seek(max(0, plain.stat().st_size - (1 << 16)))
        if mark in file.read():
            return
    raise RamifyError(
        f"{path} is truncated: it has no '{mark.decode()}' at its end",
        fix="copy it again, or, if the calculation was stopped, set `unfinished: read` to read its complete steps",
    )
