"""A run directory: what a training leaves behind, and how it is taken up again."""

import json
import math
import os
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

from ramify.checkpoint import Checkpoint, open_checkpoint
from ramify.errors import RamifyError
from ramify.files import disk_full_named, parse_json, write_json, write_whole
from ramify.recipe import Recipe, load_recipe
from ramify.run.lock import NAME as LOCK
from ramify.run.lock import RunLock
from ramify.run.sessions import Sessions
from ramify.train.tensorboard import TensorBoardLog


class Run:
    """The folder of one run: recipe.yaml, data.json, metrics.jsonl, sessions.jsonl, tensorboard/, checkpoints/."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sessions = Sessions(path)
        self.changed: dict[str, Any] = {}  # keys of the recipe that differ from the session before, see `Changes`
        self._lock: RunLock | None = None

    def create(self, recipe: Recipe, data: Mapping[str, Any]) -> None:
        """Makes the folder of a new run, locked; nothing is there yet, or only what an interrupted `create` has left.

        Args:
            recipe: kept as recipe.yaml with all defaults filled in.
            data: manifests of the stores by dataset, kept as data.json.

        Raises:
            RamifyError: something is there already.
        """
        self.require_free(self.path)
        made = not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        self.lock()
        try:
            self.checkpoints.mkdir(exist_ok=True)
            self.write(recipe, data)
        except BaseException:
            self.unlock()
            (self.path / "data.json").unlink(missing_ok=True)
            for folder in (self.checkpoints, self.path) if made else (self.checkpoints,):
                shutil.rmtree(folder, ignore_errors=True)
            raise

    @classmethod
    def require_free(cls, path: Path) -> None:
        """Refuses a folder that a new run cannot have.

        Raises:
            RamifyError: something is there already.
        """
        if path.exists() and (not path.is_dir() or not cls._is_unborn(path)):
            raise RamifyError(
                f"{path} exists already; a run is never overwritten",
                fix=f"choose another --run folder, or go on with it: ramify train --resume {path}",
            )

    @staticmethod
    def _is_unborn(path: Path) -> bool:
        """Whether a folder is empty or holds what `create` leaves when it is killed: recipe.yaml comes last."""
        checkpoints = path / "checkpoints"
        if checkpoints.exists() and (not checkpoints.is_dir() or any(checkpoints.iterdir())):
            return False
        begun = {"checkpoints", LOCK, *(("data.json",) if checkpoints.exists() else ())}
        half_written = tuple(f".{name}." for name in ("data.json", "recipe.yaml", LOCK))
        names = {entry.name for entry in path.iterdir()}
        return all(name in begun or name.startswith(half_written) for name in names)

    @staticmethod
    def exists(path: Path) -> bool:
        """Whether there is a run at `path`."""
        return (path / "recipe.yaml").is_file()

    @classmethod
    def open(cls, path: Path) -> Self:
        """An existing run.

        Raises:
            RamifyError: `path` is not a run directory.
        """
        if not cls.exists(path):
            raise RamifyError(f"{path} is not a run directory: it has no recipe.yaml", fix="give the folder of --run")
        return cls(path)

    def write(self, recipe: Recipe, data: Mapping[str, Any]) -> None:
        """Writes data.json and recipe.yaml, the latter last.

        Raises:
            RamifyError: the disk is full.
        """
        write_json(self.path / "data.json", dict(data))
        write_whole(self.path / "recipe.yaml", recipe.to_yaml())

    def lock(self, *, wait: bool = False) -> None:
        """Keeps every other program from training this run until `unlock`; see `RunLock`.

        Raises:
            RamifyError: another one does.
        """
        self._lock = RunLock(self.path, wait=wait)
        self._lock.acquire()

    def unlock(self) -> None:
        """Lets others train this run; does nothing where it is not locked."""
        if self._lock is not None:
            self._lock.release()
        self._lock = None

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
        if self.never_had_checkpoint():
            raise RamifyError(
                f"{self.path} has no checkpoint: the run ended before its first one",
                fix="start it again with the command that began it and --continue, or remove it",
            )
        if which == "latest" and not (self.checkpoints / which).exists():
            raise RamifyError(
                f"{self.path} has had checkpoints, but {self.checkpoints / which} is gone",
                fix="bring the folder back from a copy, or start a new run",
            )
        return open_checkpoint(self.checkpoints / which)

    def never_had_checkpoint(self) -> bool:
        """Whether the run ended before its first one: there is none, and no session has written one down."""
        none = not self.checkpoints.is_dir() or not any(self.checkpoints.iterdir())
        return none and not self.sessions.had_checkpoint


class MetricsLog:
    """metrics.jsonl and TensorBoard, line by line; on resume, lines past the checkpoint are taken back first.

    Args:
        run: whose metrics these are.
        step: that the run stands at.
        evaluated: the last step whose evaluation the run knows of; None if it is this one.
    """

    def __init__(self, run: Run, step: int, evaluated: int | None = None) -> None:
        self._run = run
        self._path = run.path / "metrics.jsonl"
        self._keep_until({"train": step, "val": step if evaluated is None else evaluated})
        self._file = self._path.open("a", encoding="utf-8")
        self._board = TensorBoardLog(run.path / "tensorboard", step)

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

    def _keep_until(self, last: Mapping[str, int]) -> None:
        if not self._path.exists():
            return
        kept = []
        for line in self._path.read_bytes().splitlines():
            try:
                entry = parse_json(line)
                if entry["step"] <= last[entry["kind"]]:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):  # the line that was being written when the run was cut off
                continue
        write_whole(self._path, b"".join(line + b"\n" for line in kept))


def _finite(value: Any) -> Any:
    """The same with null for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
