"""Extended XYZ, as ASE reads it, in blocks of frames.

ASE takes `energy`, `forces` and `stress` out of a frame into a calculator; other names stay in `info` and `arrays`.
Both places are looked in. Files do not state their units: see the key `units`.
"""

from collections.abc import Iterator
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import IO, Literal, NamedTuple

from ase import Atoms
from ase.io.extxyz import read_xyz

from ramify.errors import RamifyError
from ramify.quarantine import Quarantine
from ramify.sources.base import Format
from ramify.sources.chunks import MALFORMED_STRUCTURE, Record, chunked
from ramify.sources.labels import AtomsOptions, Labeller
from ramify.structures import Structures

FRAMES = 256
"""Frames handed to ASE at a time."""


class Options(AtomsOptions):
    """Recipe keys of `format: extxyz`."""

    format: Literal["extxyz"] = "extxyz"
    """Extended XYZ."""


def read(path: Path, options: Options, quarantine: Quarantine) -> Iterator[Structures]:
    """Yields every frame with an energy; forces and stress where they are given.

    Raises:
        RamifyError: no such file, not extended XYZ, cut short, or a label or group key that the file does not have.
    """
    yield from chunked(_records(path, options, quarantine), quarantine)


class _Text(NamedTuple):
    number: int
    lines: str


def _records(path: Path, options: Options, quarantine: Quarantine) -> Iterator[Record]:
    labeller = Labeller(path, options)
    for index, atoms in read_frames(path, quarantine):
        yield labeller.record(
            {**atoms.info, **atoms.arrays, **(atoms.calc.results if atoms.calc is not None else {})},
            numbers=atoms.numbers,
            positions=atoms.positions,
            cell=atoms.cell.array,
            pbc=atoms.pbc,
            row=index,
        )
    labeller.check()


def read_frames(path: Path, quarantine: Quarantine, start: int = 0) -> Iterator[tuple[int, Atoms]]:
    """Every frame that ASE can read, with its place in the file, from frame `start` on; in bounded memory.

    Raises:
        RamifyError: no such file, not extended XYZ, or cut short.
    """
    frames = islice(_frames(path), start, None)
    while block := list(islice(frames, FRAMES)):
        yield from _parse(block, path, quarantine)


def _parse(block: list[_Text], path: Path, quarantine: Quarantine) -> Iterator[tuple[int, Atoms]]:
    """The frames of a block by ASE; if one cannot be read, each by itself."""
    try:
        images = list(read_xyz(StringIO("".join(frame.lines for frame in block)), slice(None)))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OSError) as error:
        if len(block) > 1:
            for frame in block:
                yield from _parse([frame], path, quarantine)
            return
        quarantine.add(f"{path.name}[{block[0].number}]", MALFORMED_STRUCTURE, f"{type(error).__name__}: {error}")
        return
    for frame, atoms in zip(block, images, strict=True):
        yield frame.number, atoms


def _frames(path: Path) -> Iterator[_Text]:
    """The text of each frame: the number of atoms, the comment, one line per atom."""
    try:
        with path.open(encoding="utf-8") as file:
            yield from _split(file, path)
    except FileNotFoundError as error:
        raise RamifyError(f"{path} does not exist", fix="correct `path`") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RamifyError(f"{path} cannot be read as text: {error}", fix="correct `path` or `format`") from error


def _split(file: IO[str], path: Path) -> Iterator[_Text]:
    index = 0
    for line in file:
        if not line.strip():
            continue
        if not line.strip().isdecimal():
            raise RamifyError(
                f"{path}: frame {index} should begin with its number of atoms, found {line.strip()[:60]!r}",
                fix="correct `path` or `format`, or the number of atoms of the frame before",
            )
        n_atoms = int(line)
        lines = [line, *islice(file, n_atoms + 1)]
        if len(lines) != n_atoms + 2:
            raise RamifyError(
                f"{path} is cut short: frame {index} announces {n_atoms} atoms and has {max(0, len(lines) - 2)}",
                fix="compare its size with the original's and copy it again",
            )
        if not lines[-1].endswith("\n"):
            lines[-1] += "\n"
        yield _Text(index, "".join(lines))
        index += 1


FORMAT = Format(name="extxyz", options=Options, read=read)
