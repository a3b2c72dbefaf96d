"""Reads structures one by one from any file that ASE reads, and writes them as extended XYZ."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any

from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import iread
from ase.io.extxyz import write_xyz
from ase.io.formats import UnknownFileTypeError, filetype

from ramify.errors import RamifyError
from ramify.labels import further
from ramify.sources.formats.general.extxyz import read_frames
from ramify.sources.quarantine import Quarantine

RESULTS = ("energy", "forces", "stress")
"""Labels of ASE that a file may have; they are kept under names that begin with `REF_`."""


def frames(path: Path, quarantine: Quarantine, start: int = 0, form: str | None = None) -> Iterator[tuple[int, Atoms]]:
    """Every structure of a file with its index, from `start` on.

    Extended XYZ is read in bounded memory, and a frame that cannot be read goes to the quarantine. Other formats are
    read as by ASE: `traj` and databases frame by frame, most others completely.

    Args:
        path: the file.
        quarantine: for frames that cannot be read.
        start: number of frames to skip.
        form: format name of ASE; None to detect the format.

    Raises:
        RamifyError: the file is missing or has no structure, or ASE does not know the format or cannot read it.
    """
    if not path.is_file():
        raise RamifyError(f"{path} does not exist", fix="correct the path of the structures")
    found = start
    nothing = RamifyError(f"{path} has no structure", fix="correct the path or the --format")
    if not path.stat().st_size:
        raise nothing
    try:
        form = form or filetype(str(path), read=True)
        if form == "extxyz" and path.suffix not in (".gz", ".bz2", ".xz"):
            read = read_frames(path, quarantine, start)
        else:
            read = enumerate(iread(str(path), index=f"{start}:", format=form), start)
        for index, atoms in read:
            found += 1
            yield index, atoms
    except RamifyError:
        raise
    except UnknownFileTypeError:
        raise RamifyError(
            f"{path}: ASE does not know this format", fix="name it with --format, as `ase info --formats` lists them"
        ) from None
    except Exception as error:  # readers of ASE raise exceptions of any type
        raise RamifyError(f"{path}: ASE cannot read it as '{form}': {type(error).__name__}: {error}") from error
    if not found and not quarantine.total:
        raise nothing


def one_frame(source: Path, index: int | None = None, form: str | None = None) -> Atoms:
    """The structure at `index`, counted from 0 or from -1 for the last; or the only one.

    Raises:
        RamifyError: there is no such structure, there are several and none is named, or an error of `frames`.
    """
    unreadable = Quarantine()
    if index is not None and index < 0:
        last = deque(frames(source, unreadable, form=form), maxlen=-index)
        count = last[-1][0] + 1 if last else 0
        found = [atoms for k, atoms in last if k == count + index]
    else:
        found = [atoms for _, atoms in islice(frames(source, unreadable, index or 0, form), 2)]
    if unreadable.total or not found:
        raise RamifyError(
            f"{source} has no structure {index or 0} that can be read",
            fix="correct --index, counted from 0, or from -1 for the last",
        )
    if index is None and len(found) > 1:
        raise RamifyError(f"{source} holds several structures", fix="name one with --index, counted from 0")
    return found[0]


def keep_labels(atoms: Atoms) -> Atoms:
    """A copy without a calculator, with its labels, also registered further ones, under names with `REF_`."""
    labels = dict(atoms.calc.results) if atoms.calc is not None else {}
    copy = atoms.copy()
    for name in further():
        if name in copy.info:
            copy.info[f"REF_{name}"] = copy.info.pop(name)
    for name in RESULTS:
        if name in labels:
            (copy.arrays if name == "forces" else copy.info)[f"REF_{name}"] = labels[name]
    return copy


def with_results(atoms: Atoms, results: Mapping[str, Any]) -> Atoms:
    """A copy with fixed energy, forces and stress; `energy_std`, where there is one, in `info`."""
    copy = atoms.copy()
    copy.calc = SinglePointCalculator(copy, **{name: results[name] for name in RESULTS if name in results})
    if "energy_std" in results:
        copy.info["energy_std"] = results["energy_std"]
    return copy


def append_frames(file: IO[str], images: Sequence[Atoms]) -> None:
    """Writes frames with all their values and results."""
    write_xyz(file, list(images), write_results=True)
