"""Trajectories that grow frame by frame: extended XYZ, or ASE's `.traj`."""

import os
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.io.trajectory import Trajectory

from ramify.errors import RamifyError
from ramify.files import sync
from ramify.inference.jobs.frames import append_frames


class TrajectoryFile:
    """A trajectory that is appended to.

    Args:
        path: the file.
        binary: ASE's `.traj`, with all digits, instead of extended XYZ.
        frames: number of its frames to keep; later ones are removed.
        size: bytes of these frames in extended XYZ.

    Raises:
        RamifyError: the file has fewer frames or bytes than stated.
    """

    def __init__(self, path: Path, *, binary: bool, frames: int = 0, size: int = 0) -> None:
        self.path, self._binary, self.frames = path, binary, frames
        if frames:
            self._cut(frames, size)
        if binary:
            self._file: Any = Trajectory(str(path), "a" if frames else "w")
        else:
            self._file = path.open("a" if frames else "w", encoding="utf-8")

    @property
    def size(self) -> int:
        """Bytes of the frames so far."""
        return 0 if self._binary else self._file.tell()

    def append(self, image: Atoms) -> None:
        """Writes one frame with its results."""
        if self._binary:
            self._file.write(image)
        else:
            append_frames(self._file, [image])
            self._file.flush()
        self.frames += 1

    def close(self) -> None:
        """Closes the file and flushes it to disk."""
        self._file.close()
        sync(self.path)

    def _cut(self, frames: int, size: int) -> None:
        there = 0 if not self.path.is_file() else self.path.stat().st_size
        if self._binary and there:
            with Trajectory(str(self.path)) as found:
                there = len(found)
        needed = frames if self._binary else size
        if there < needed:
            unit = "frames" if self._binary else "bytes"
            raise RamifyError(
                f"{self.path} has {there} {unit}, but the state of the simulation states {needed}",
                fix="start the simulation again in another file",
            )
        if not self._binary:
            os.truncate(self.path, size)
        elif there > frames:
            shorter = self.path.with_name(f".{self.path.name}.shorter")
            with Trajectory(str(self.path)) as found, Trajectory(str(shorter), "w") as kept:
                for index in range(frames):
                    kept.write(found[index])
            os.replace(shorter, self.path)
