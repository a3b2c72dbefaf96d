"""Reading, screening and measuring of parts of original files, which several processes can do concurrently."""

import pickle
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ramify.errors import RamifyError
from ramify.neighbors.wrapping import displacements
from ramify.prepare.checks.consistency import SlopeMeter
from ramify.prepare.checks.fingerprints import Fingerprints, fingerprints
from ramify.prepare.checks.gates import detail, screen
from ramify.prepare.workers import Workers
from ramify.sources.base import DatasetOptions, Gates
from ramify.sources.formats import formats
from ramify.sources.label_rules import apply_label_rules
from ramify.sources.quarantine import Note, Notes, Quarantine
from ramify.sources.states import apply_states
from ramify.sources.where import each_nth, select
from ramify.structures import Split, Structures


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A chunk of S structures that passed the gates for single structures.

    Attributes:
        read: number of structures before the gates.
        structures: the structures.
        prints: their fingerprints.
        max_force: (S,) eV/Å, largest norm of a force; NaN without forces.
        closest: (S,) Å, distance of the closest two atoms.
        sampled: energy-force slope over some close pairs.
    """

    read: int
    structures: Structures
    prints: Fingerprints
    max_force: NDArray[np.floating]
    closest: NDArray[np.floating]
    sampled: SlopeMeter


@dataclass(frozen=True, slots=True, kw_only=True)
class PartOfFile:
    """A part of a file to read: plain data that can be sent to another process.

    Attributes:
        dataset: name of the dataset.
        options: its recipe entry.
        file: an original file.
        name: unique name of the file in the dataset.
        split: split of the file in the recipe; NONE if not stated.
        part: part of the file, as defined by its format; None for the whole file.
    """

    dataset: str
    options: DatasetOptions
    file: Path
    name: str
    split: Split
    part: Any


Chunk = tuple[list[Note], Measured | None]
"""Notes on records since the last chunk, and the chunk; None after the last chunk of a part."""


def read_parts(parts: Iterable[PartOfFile], workers: Workers, folder: Path) -> Iterator[Chunk]:
    """Yields the chunks of all parts in order.

    Args:
        parts: parts to read.
        workers: processes that read.
        folder: an empty folder, for the chunks of files that cannot be divided into parts, until they are needed.

    Raises:
        RamifyError: a part is damaged, or contradicts the recipe.
    """
    if workers.alone:
        for part in parts:
            yield from read_part(part)
        return
    numbered = ((part, folder / f"{number}.pickle") for number, part in enumerate(parts))
    for read in workers.results(_read_elsewhere, numbered):
        if isinstance(read, Path):
            yield from _from_file(read)
        else:
            yield from read


def cut(dataset: str, options: DatasetOptions, file: Path, name: str, split: Split) -> Iterator[PartOfFile]:
    """Yields the parts of a file in order; they depend only on the file."""
    format_ = formats()[options.format]
    for part in format_.cut(file, options) if format_.cut is not None else (None,):
        yield PartOfFile(dataset=dataset, options=options, file=file, name=name, split=split, part=part)


def read_part(work: PartOfFile) -> Iterator[Chunk]:
    """Reads one part, chunk by chunk.

    Raises:
        RamifyError: the part is damaged, or contradicts the recipe.
    """
    format_, quarantine = formats()[work.options.format], Notes()
    if format_.read_part is None:
        chunks = format_.read(work.file, work.options, quarantine)
    else:
        chunks = format_.read_part(work.file, work.options, quarantine, work.part)
    before = 0
    for chunk in chunks:
        possible = apply_states(_as_stated(work, chunk), work.options, quarantine)
        fulfilling = select(possible, work.options.where, quarantine, work.options.by_column())
        chosen = fulfilling
        # a format with its own meaning of the key applies it itself
        if "every" not in type(work.options).__annotations__:
            chosen = each_nth(fulfilling, work.options.every, before, quarantine)
        before += len(fulfilling)
        stated = apply_label_rules(chosen, work.options, quarantine)
        measured = measure(stated, work.options.gates, quarantine)
        yield _named(work, quarantine.handed_over()), measured
    yield _named(work, quarantine.handed_over()), None


def _named(work: PartOfFile, notes: list[Note]) -> list[Note]:
    """Replaces the name of the file in notes by its unique name."""
    if work.name == work.file.name:
        return notes
    return [replace(note, record=_distinct(work, note.record)) for note in notes]


def _distinct(work: PartOfFile, place: str) -> str:
    """Replaces the name of the file at the start of a record by its unique name."""
    known = (work.name, work.file.name)
    if place.startswith(known[0]):
        return place
    return known[0] + place.removeprefix(known[1]) if place.startswith(known[1]) else f"{known[0]}/{place}"


def _read_elsewhere(numbered: tuple[PartOfFile, Path]) -> list[Chunk] | Path:
    """Work of a worker: returns the chunks of a part; chunks of a whole file, which may not fit into memory, are
    written to a file."""
    part, spool = numbered
    if part.part is not None:
        return list(read_part(part))
    with spool.open("wb") as file:
        for chunk in read_part(part):
            pickle.dump(chunk, file, pickle.HIGHEST_PROTOCOL)
    return spool


def _from_file(spool: Path) -> Iterator[Chunk]:
    """Yields the chunks that a worker wrote to a file, and removes the file."""
    with spool.open("rb") as file:
        while True:
            notes, chunk = pickle.load(file)  # trusted: written by a worker of this program
            yield notes, chunk
            if chunk is None:
                break
    spool.unlink()


def measure(chunk: Structures, gates: Gates, quarantine: Quarantine) -> Measured:
    """Screens a chunk and measures the structures that pass; failures are added to the quarantine."""
    screening, read = screen(chunk, gates), len(chunk)
    failed = np.flatnonzero(screening.failures)
    for row in failed.tolist():
        reason = screening.reasons[screening.failures[row] - 1]
        quarantine.add(chunk.name(row), reason, detail(reason, float(screening.details[row]), gates))
    closest, max_force = screening.closest, screening.max_force
    if len(failed):
        passed = np.flatnonzero(screening.failures == 0)
        chunk, closest, max_force = chunk.take(passed), closest[passed], max_force[passed]
    if (moved := displacements(chunk)) is not None:  # stores contain float32
        chunk = replace(chunk, positions=chunk.positions - moved)
    prints, sampled = fingerprints(chunk), SlopeMeter()
    if len(chunk):
        sampled.sample(chunk, prints)
    return Measured(read=read, structures=chunk, prints=prints, max_force=max_force, closest=closest, sampled=sampled)


def _as_stated(work: PartOfFile, chunk: Structures) -> Structures:
    """Applies the unique name of the file, and the sign and split of the recipe, to a chunk."""
    if work.name != work.file.name:
        chunk = replace(chunk, origin_names=tuple(_distinct(work, origin) for origin in chunk.origin_names))
    if work.options.forces_sign == -1:
        chunk = replace(chunk, forces=-chunk.forces)
    if work.split == Split.NONE:
        return chunk
    other = np.flatnonzero((chunk.split != Split.NONE) & (chunk.split != work.split))
    if len(other):
        own = Split(int(chunk.split[other[0]])).name.lower()
        raise RamifyError(
            f"datasets.{work.dataset}.path puts {work.file} into the {work.split.name.lower()} split, but the file "
            f"itself puts {chunk.name(int(other[0]))} into {own}",
            fix="list the file without a split: that of the file is then used",
        )
    return replace(chunk, split=np.full(len(chunk), work.split, np.uint8))
