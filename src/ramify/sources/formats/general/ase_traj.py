"""ASE trajectories (`.traj`), frame by frame.

The file contains the results of a calculator for each frame; eV, eV/Å, eV/Å³
(https://wiki.fysik.dtu.dk/ase/ase/io/trajectory.html).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from ase import Atoms
from ase.io.trajectory import Trajectory

from ramify.errors import RamifyError
from ramify.sources.base import Format
from ramify.sources.chunks import chunked
from ramify.sources.labels import AtomsOptions
from ramify.sources.parsing.ase_frames import records
from ramify.sources.quarantine import Quarantine
from ramify.structures import Structures

_MAGIC = b"- of Ulm"  # ase.io.ulm, the container of trajectories


class Options(AtomsOptions):
    """Recipe keys of `format: ase_traj`."""

    format: Literal["ase_traj"] = "ase_traj"
    """Trajectory file of ASE."""


def read(path: Path, options: Options, quarantine: Quarantine) -> Iterator[Structures]:
    """Yields all frames with an energy, with forces and stress if present.

    Raises:
        RamifyError: no such file, not a trajectory, damaged, or without a label or group of the recipe.
    """
    yield from chunked(records(path, frames(path), options, quarantine), quarantine)


def frames(path: Path) -> Iterator[Atoms]:
    """Yields the frames.

    Raises:
        RamifyError: no such file, not a trajectory, or damaged.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
    except FileNotFoundError as error:
        raise RamifyError(f"{path} does not exist", fix="correct `path`") from error
    except OSError as error:
        raise RamifyError(f"{path} cannot be read: {error}", fix="correct `path`") from error
    if magic != _MAGIC:
        raise RamifyError(f"{path} is not an ASE trajectory, it begins {magic!r}", fix="correct `path` or `format`")
    try:
        trajectory: Any = Trajectory(str(path))
        count = len(trajectory)
    except Exception as error:  # ASE may raise any exception on a damaged file
        raise _damaged(path, error) from error
    with trajectory:
        for row in range(count):
            try:
                atoms = trajectory[row]
            except Exception as error:  # an unreadable frame means a damaged file, not a malformed label
                raise _damaged(path, error) from error
            yield atoms


def _damaged(path: Path, error: Exception) -> RamifyError:
    return RamifyError(
        f"{path} is truncated or damaged: {type(error).__name__}: {error}",
        fix="compare its size and checksum with the original's and copy it again",
    )


FORMAT = Format(name="ase_traj", options=Options, read=read)
