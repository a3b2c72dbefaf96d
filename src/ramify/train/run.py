"""A run directory: what a training leaves behind, and how it is taken up again."""

import json
import os
from pathlib import Path
from typing import Any, Self

import yaml
from torch.utils.tensorboard import SummaryWriter

from ramify.checkpoint import Checkpoint, open_checkpoint
from ramify.errors import RamifyError
from ramify.files import write_json, write_whole
from ramify.recipe import Recipe, parse_recipe


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
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise RamifyError(
                f"{path} exists already; a run is never overwritten",
                fix=f"choose another --run folder, or go on with it: ramify train --resume {path}",
            )
        run = cls(path)
        run.checkpoints.mkdir(parents=True)
        write_json(path / "data.json", data)
        write_whole(path / "recipe.yaml", recipe.to_yaml())
        return run

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
        content = yaml.safe_load((self.path / "recipe.yaml").read_text(encoding="utf-8"))
        return parse_recipe(content, where=str(self.path / "recipe.yaml"))

    def checkpoint(self, which: str) -> Checkpoint:
        """The checkpoint `latest` or `best`, or of a step by its folder's name."""
        return open_checkpoint(self.checkpoints / which)


class MetricsLog:
    """metrics.jsonl and TensorBoard, line by line; on resume, lines past the checkpoint are taken back first."""

    def __init__(self, run: Run, step: int) -> None:
        self._path = run.path / "metrics.jsonl"
        self._keep_until(step)
        self._file = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(run.path / "tensorboard"), purge_step=step + 1 if step else None)

    def add(self, entry: dict[str, Any]) -> None:
        """Writes one line; NaN becomes null."""
        entry = _without_nan(entry)
        self._file.write(json.dumps(entry, allow_nan=False) + "\n")
        self._file.flush()
        for tag, value in _scalars(entry):
            self._board.add_scalar(f"{entry['kind']}/{tag}", value, entry["step"])

    def close(self) -> None:
        """Puts everything on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._board.close()

    def _keep_until(self, step: int) -> None:
        if not self._path.exists():
            return
        kept = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError):  # the line that was being written when the run was cut off
                continue
        write_whole(self._path, "".join(line + "\n" for line in kept))


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    return None if isinstance(value, float) and value != value else value


def _scalars(entry: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """The numbers of nested dictionaries with their paths."""
    found: list[tuple[str, float]] = []
    for key, value in entry.items():
        if isinstance(value, dict):
            found += _scalars(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and key not in ("step", "time"):
            found.append((prefix + key, float(value)))
    return found
