"""A run directory: what a training leaves behind, and how it is taken up again."""

import json
import math
import os
import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

from ramify.checkpoint import Checkpoint, open_checkpoint
from ramify.errors import RamifyError
from ramify.files import disk_full_named, write_json, write_whole
from ramify.recipe import Recipe, load_recipe
from ramify.train.board import Board


class Run:
    """The folder of one run: recipe.yaml, data.json, metrics.jsonl, tensorboard/, checkpoints/."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, recipe: Recipe, data: dict[str, Any]) -> Self:
        """Makes a new run folder.

        Args:
            path: must not exist, or be empty.
            recipe: kept as recipe.yaml with all defaults filled in.
            data: manifests of the stores by dataset, kept as data.json.

        Raises:
            RamifyError: something is there already.
        """
        cls.require_free(path)
        made = not path.exists()
        run = cls(path)
        try:
            run.checkpoints.mkdir(parents=True)
            write_json(path / "data.json", data)
            write_whole(path / "recipe.yaml", recipe.to_yaml())
        except BaseException:
            for entry in (path,) if made else tuple(path.iterdir()):
                shutil.rmtree(entry, ignore_errors=True)
            raise
        return run

    @staticmethod
    def require_free(path: Path) -> None:
        """Refuses a folder that a new run cannot have.

        Raises:
            RamifyError: something is there already.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise RamifyError(
                f"{path} exists already; a run is never overwritten",
                fix=f"choose another --run folder, or go on with it: ramify train --resume {path}",
            )

    @classmethod
    def open(cls, path: Path) -> Self:
        """An existing run.

        Raises:
            RamifyError: `path` is not a run directory.
        """
        if not (path / "recipe.yaml").is_file():
            raise RamifyError(f"{path} is not a run directory: it has no recipe.yaml", fix="give the folder of --run")
        return cls(path)

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return load_recipe(self.path / "recipe.yaml")

    def checkpoint(self, which: str) -> Checkpoint:
        """The checkpoint `latest` or `best`, or of a step by its folder's name.

        Raises:
            RamifyError: there is none, or it is damaged.
        """
        if self.checkpoints.is_dir() and not any(self.checkpoints.iterdir()):
            raise RamifyError(
                f"{self.path} has no checkpoint: the run ended before its first one",
                fix=f"remove {self.path} and start the run again",
            )
        return open_checkpoint(self.checkpoints / which)


class MetricsLog:
    """metrics.jsonl and TensorBoard, line by line; on resume, lines past the checkpoint are taken back first."""

    def __init__(self, run: Run, step: int) -> None:
        self._run = run
        self._path = run.path / "metrics.jsonl"
        self._keep_until(step)
        self._file = self._path.open("a", encoding="utf-8")
        self._board = Board(run.path / "tensorboard", step)

    def add(self, entry: dict[str, Any]) -> None:
        """Writes one line; numbers that are not finite become null.

        Raises:
            RamifyError: the disk is full.
        """
        entry = _finite(entry)
        with self._disk_full_named():
            self._file.write(json.dumps(entry, allow_nan=False) + "\n")
            self._file.flush()
            self._board.add(entry)

    def close(self) -> None:
        """Puts everything on the disk."""
        with self._disk_full_named():
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._board.close()

    def _disk_full_named(self) -> AbstractContextManager[None]:
        return disk_full_named(
            self._path,
            left="the run is kept up to its latest checkpoint",
            fix=f"free some space, then go on with it: ramify train --resume {self._run.path}",
        )

    def _keep_until(self, step: int) -> None:
        if not self._path.exists():
            return
        kept = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):  # the line that was being written when the run was cut off
                continue
        write_whole(self._path, "".join(line + "\n" for line in kept))


def _finite(value: Any) -> Any:
    """The same with null for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
