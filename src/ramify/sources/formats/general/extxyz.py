"""Extended XYZ: a number of atoms, a line of `key=value` pairs, a line per atom; plain or compressed.

The format is that of libAtoms (github.com/libAtoms/extxyz) as read and written by ASE. `Lattice` contains the three
lattice vectors, `pbc` the periodic axes (by default all three if there is a lattice), `Properties` the columns. Files
do not state their units: see the key `units`.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Literal, NamedTuple

import numpy as np
from ase import Atoms
from ase.calculators.calculator import all_properties
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixCartesian

from ramify.errors import RamifyError
from ramify.sources.base import Format
from ramify.sources.chunks import Record, UnusableError, chunked
from ramify.sources.labels import AtomsOptions, Labeller
from ramify.sources.parsing.compressed import open_text
from ramify.sources.parsing.xyz_frame import XYZFrame, parse_frame
from ramify.sources.quarantine import Quarantine
from ramify.structures import Structures


class Options(AtomsOptions):
    """Recipe keys of `format: extxyz`."""

    format: Literal["extxyz"] = "extxyz"
    """Extended XYZ, plain or compressed (gz, xz, bz2, zst)."""


def read(path: Path, options: Options, quarantine: Quarantine) -> Iterator[Structures]:
    """Yields all frames with an energy, with forces and stress if present.

    Raises:
        RamifyError: no such file, not extended XYZ, truncated, or without a label or group of the recipe.
    """
    yield from chunked(_records(path, options, quarantine), quarantine)


def _records(path: Path, options: Options, quarantine: Quarantine) -> Iterator[Record]:
    labeller = Labeller(path, options, quarantine)
    for index, frame in parsed_frames(path, quarantine):
        record = labeller.record(
            {**frame.info, **frame.arrays},
            numbers=frame.numbers,
            positions=frame.positions,
            cell=frame.cell,
            pbc=frame.pbc,
            row=index,
        )
        if record is not None:
            yield record
    labeller.check()


def parsed_frames(path: Path, quarantine: Quarantine, start: int = 0) -> Iterator[tuple[int, XYZFrame]]:
    """Yields all readable frames from frame `start`, with their index in the file; in bounded memory.

    Raises:
        RamifyError: no such file, not extended XYZ, or truncated.
    """
    for text in islice(frame_texts(path), start, None):
        try:
            yield text.number, parse_frame(text.lines)
        except UnusableError as error:
            quarantine.add(f"{path.name}[{text.number}]", error.reason, error.detail)


def read_frames(path: Path, quarantine: Quarantine, start: int = 0) -> Iterator[tuple[int, Atoms]]:
    """Like `parsed_frames`, as ASE atoms: results known to ASE in a calculator, other values in `info` and `arrays`.

    Raises:
        RamifyError: no such file, not extended XYZ, or truncated.
    """
    for number, frame in parsed_frames(path, quarantine, start):
        try:
            yield number, _to_ase(frame)
        except (ValueError, TypeError, AssertionError, KeyError) as error:
            quarantine.add(f"{path.name}[{number}]", "malformed structure", f"{type(error).__name__}: {error}")


def _to_ase(frame: XYZFrame) -> Atoms:
    atoms = Atoms(numbers=frame.numbers, positions=frame.positions, cell=frame.cell, pbc=frame.pbc)
    results = {}
    for name, value in frame.info.items():
        if name in all_properties:
            stress = name == "stress" and isinstance(value, np.ndarray) and value.shape == (3, 3)
            results[name] = value[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]] if stress else value  # Voigt order, as in ASE
        else:
            atoms.info[name] = value
    for name, value in frame.arrays.items():
        if name in all_properties:
            results[name] = value
        elif name == "initial_charges":
            atoms.set_initial_charges(value)
        elif name == "move_mask":  # written by ASE for constraints
            free = value.astype(bool)
            masks = free if free.ndim == 2 else np.repeat(free[:, None], 3, axis=1)
            atoms.set_constraint([FixCartesian(i, ~mask) for i, mask in enumerate(masks) if not mask.all()])
        else:
            atoms.new_array(name, value)
    if results:
        atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


class FrameText(NamedTuple):
    """Lines of one frame, and its index in the file."""

    number: int
    lines: list[str]


def frame_texts(path: Path) -> Iterator[FrameText]:
    """Yields the lines of each frame: the number of atoms, the comment, one line per atom."""
    with open_text(path) as file:
        yield from _split(file, path)


def _split(file: IO[str], path: Path) -> Iterator[FrameText]:
    index = 0
    for line in file:
        if not line.strip():
            continue
        if not line.strip().isdecimal():
            raise RamifyError(
                f"{path}: frame {index} should begin with its number of atoms, found {line.strip()[:60]!r}",
                fix="correct `path` or `format`, or the number of atoms of the previous frame",
            )
        n_atoms = int(line)
        lines = [line, *islice(file, n_atoms + 1)]
        if len(lines) != n_atoms + 2:
            raise _truncated(path, f"frame {index} announces {n_atoms} atoms and has {max(0, len(lines) - 2)}")
        if n_atoms > 1 and not lines[-1].endswith("\n") and _is_cut(lines[-1], lines[2:-1]):
            raise _truncated(path, f"the last row of frame {index} is {lines[-1].strip()[-60:]!r}")
        yield FrameText(index, lines)
        index += 1


def _is_cut(last: str, others: list[str]) -> bool:
    """Returns whether the last row of a file without a final line break is truncated.

    It is if it has fewer columns than all previous rows, or if its last number has fewer decimals than the numbers of
    that column, which all have the same number of decimals.
    """
    columns, rows = last.split(), [row.split() for row in others]
    if len(columns) < min(map(len, rows)):
        return True
    digits = {len(row[len(columns) - 1].partition(".")[2]) for row in rows if len(row) >= len(columns)}
    return len(digits) == 1 and len(rows) > 1 and bool(columns) and len(columns[-1].partition(".")[2]) < digits.pop()


def _truncated(path: Path, what: str) -> RamifyError:
    return RamifyError(
        f"{path} is truncated: {what}",
        fix="compare its size with the original's and copy it again",
    )


FORMAT = Format(name="extxyz", options=Options, read=read)
