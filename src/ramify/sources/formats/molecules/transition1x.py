"""Transition1x: HDF5 with `/{train,val,test}/<formula>/<reaction>`, nudged elastic band paths.

Schreiner et al., Scientific Data 9, 779 (2022), doi:10.1038/s41597-022-01870-w. `/data` is the union of the three
official splits. A reaction contains 10 initial images and then 8 moving images per iteration of the band; its subgroups
`reactant`, `product` and `transition_state` contain single frames, which may repeat frames of the band.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ramify.errors import RamifyError
from ramify.sources.base import DatasetOptions, Format
from ramify.sources.chunks import merged
from ramify.sources.parsing.hdf5 import Conformers, Floats, dataset, groups, groups_by_atoms, open_hdf5
from ramify.sources.quarantine import Quarantine, ranges
from ramify.structures import Split, Structures

ENERGY = "wB97x_6-31G(d).energy"
FORCES = "wB97x_6-31G(d).forces"
FIRST_IMAGES, MOVING_IMAGES = 10, 8
PARTS = {"train": Split.TRAIN, "val": Split.VAL, "test": Split.TEST}


class Options(DatasetOptions):
    """Recipe keys of `format: transition1x`."""

    format: Literal["transition1x"] = "transition1x"
    """HDF5 with the groups train, val and test; this official split is used."""
    every: int = Field(1, ge=1)
    """Keep every n-th iteration of a band (8 images each; the first 10 images and the last iteration always):
    consecutive iterations are near-duplicates."""


def cut(path: Path, options: Options) -> Iterator[tuple[str, ...]]:
    """Yields names of reactions of train, val and test (of `data` only if those are absent), in parts of about
    `PART_ATOMS` atoms.

    Raises:
        RamifyError: the file is not of this layout or is damaged.
    """
    with open_hdf5(path, "transition1x") as file:
        parts = [name for name in PARTS if name in file] or [name for name in ("data",) if name in file]
        if not parts:
            raise RamifyError(
                f"{path} has none of the parts train, val, test, data; it has {', '.join(list(file)[:8])}",
                fix="correct `path` or `format`",
            )
        yield from groups_by_atoms(
            (reaction.name, reaction["positions"].shape)
            for part in parts
            for formula in groups(file[part])
            for reaction in groups(formula)
        )


def read_part(path: Path, options: Options, quarantine: Quarantine, names: tuple[str, ...]) -> Iterator[Structures]:
    """Yields the frames of some reactions; the group is formula/reaction.

    Raises:
        RamifyError: the file is damaged.
    """
    with open_hdf5(path, "transition1x") as file:
        yield from merged(block for name in names for block in _reaction(file[name], path, options, quarantine))


def _reaction(group: h5py.Group, path: Path, options: Options, quarantine: Quarantine) -> Iterator[Structures]:
    part, name = str(group.name).strip("/").split("/", 1)
    origin, split = f"{path.name}/{part}/{name}", PARTS.get(part, Split.NONE)
    band = group["positions"][()]
    kept = _kept(len(band), options.every)
    if not kept.all():
        skipped = np.flatnonzero(~kept)
        quarantine.add(f"{origin}[{ranges(skipped)}]", "band iteration not taken (every)", count=len(skipped))
    for block in _frames(group, name, origin, split).blocks(quarantine):
        yield block if kept.all() else block.take(np.flatnonzero(kept[block.row]))
    for role in ("reactant", "transition_state", "product"):
        if role not in group:
            continue
        repeated = _repeated(band, kept, group[role]["positions"][()])
        if repeated is None:
            yield from _frames(group[role], name, f"{origin}/{role}", split).blocks(quarantine)
        else:
            quarantine.add(f"{origin}/{role}[0]", "repeats a frame of its reaction", f"positions[{repeated}]")


def _frames(group: h5py.Group, name: str, origin: str, split: Split) -> Conformers:
    return Conformers(
        numbers=group["atomic_numbers"][()],
        positions=group["positions"],
        energy=dataset(group, ENERGY),
        forces=dataset(group, FORCES),
        energy_unit=1.0,
        forces_unit=1.0,
        group=name,
        origin=origin,
        split=split,
    )


def _repeated(band: Floats, kept: NDArray[np.bool_], frame: Floats) -> int | None:
    """Index of the first kept frame of the band with positions bitwise equal to those of `frame` (1, n, 3), or None."""
    if len(frame) != 1 or band.shape[1:] != frame.shape[1:]:
        return None
    same = np.flatnonzero((band == frame).all(axis=(1, 2)) & kept)
    return int(same[0]) if len(same) else None


def _kept(frames: int, every: int) -> NDArray[np.bool_]:
    """(frames,) whether `every` keeps each frame."""
    iteration = (np.arange(frames) - FIRST_IMAGES) // MOVING_IMAGES
    last = (frames - 1 - FIRST_IMAGES) // MOVING_IMAGES
    kept: NDArray[np.bool_] = (iteration < 0) | (iteration % every == 0) | (iteration == last)
    return kept


FORMAT = Format.in_parts(
    name="transition1x", options=Options, cut=cut, read_part=read_part, theory="ωB97X/6-31G(d), ORCA 5.0.2"
)
