"""The directory of a run: its files, its lock, and its checkpoints."""

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, Self

from ramify.checkpoint.checkpoint import Checkpoint, open_checkpoint
from ramify.checkpoint.committee import refuse_committee
from ramify.checkpoint.pointers import NAME as POINTERS
from ramify.checkpoint.pointers import after_failure, resolve, step_folders
from ramify.errors import RamifyError
from ramify.files import parse_json, write_json, write_whole, writing
from ramify.notebook import html_table
from ramify.recipe import Recipe, load_recipe
from ramify.run.lock import NAME as LOCK
from ramify.run.lock import RunLock
from ramify.run.sessions import Sessions
from ramify.run.trackers.tracker import Ending
from ramify.run.trackers.trackers import Trackers
from ramify.store.manifest import Manifest


class Run:
    """The folder of one run: recipe.yaml, data.json, metrics.jsonl, sessions.jsonl, checkpoints/, trackers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sessions = Sessions(path)
        self.changed: dict[str, Any] = {}  # keys of the recipe that differ from the session before, see `Changes`
        self._lock: RunLock | None = None

    def create(self, recipe: Recipe, data: Mapping[str, Manifest]) -> None:
        """Creates the folder of a new run and locks it; it must not exist, or hold only files of an interrupted
        `create`.

        Args:
            recipe: written as recipe.yaml, with all defaults.
            data: manifests of the stores by dataset, written as data.json.

        Raises:
            RamifyError: the folder exists already.
        """
        self.require_free(self.path)
        made = not self.path.exists()
        with writing(self.path, "nothing was left behind", "run the same command again"):
            self.path.mkdir(parents=True, exist_ok=True)
        self.lock()
        try:
            with self.writing(self.checkpoints):
                self.checkpoints.mkdir(exist_ok=True)
            self.write(recipe, data)
        except BaseException:
            self.unlock()
            with suppress(OSError):  # must not hide the error
                (self.path / "data.json").unlink(missing_ok=True)
            for folder in (self.checkpoints, self.path) if made else (self.checkpoints,):
                shutil.rmtree(folder, ignore_errors=True)
            raise

    @classmethod
    def require_free(cls, path: Path) -> None:
        """Refuses a folder that is not available for a new run.

        Raises:
            RamifyError: the folder exists already.
        """
        if path.exists() and (not path.is_dir() or not cls._is_incomplete(path)):
            raise RamifyError(
                f"{path} exists already; a run is never overwritten",
                fix=f"choose another --run folder, or resume it: ramify train --resume {path}",
            )

    @staticmethod
    def _is_incomplete(path: Path) -> bool:
        """Whether a folder is empty or holds only files of a killed `create`, which writes recipe.yaml last."""
        checkpoints = path / "checkpoints"
        if checkpoints.exists() and (not checkpoints.is_dir() or any(checkpoints.iterdir())):
            return False
        early = {"checkpoints", LOCK, *(("data.json",) if checkpoints.exists() else ())}
        incomplete = tuple(f".{name}." for name in ("data.json", "recipe.yaml", LOCK))
        names = {entry.name for entry in path.iterdir()}
        return all(name in early or name.startswith(incomplete) for name in names)

    @staticmethod
    def exists(path: Path) -> bool:
        """Whether there is a run at `path`."""
        return (path / "recipe.yaml").is_file()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Opens an existing run.

        Raises:
            RamifyError: `path` is not a run directory.
        """
        if not cls.exists(path):
            refuse_committee(path)
            raise RamifyError(f"{path} is not a run directory: it has no recipe.yaml", fix="give the folder of --run")
        return cls(path)

    def _repr_html_(self) -> str:
        """In Jupyter: datasets and branches, the state of the training, the best evaluation, the end of the session."""
        recipe, evaluations = self.recipe(), self.evaluations()
        best = min(evaluations, key=lambda entry: entry["metric"]) if evaluations else None
        steps = [folder.name for folder in step_folders(self.checkpoints)] if self.checkpoints.is_dir() else []
        ends = [line["ended"] for line in self.sessions.lines() if line["kind"] == "end"]
        rows = [
            ("datasets", ", ".join(recipe.datasets)),
            ("branches", ", ".join(recipe.datasets_of_branches())),
            ("encoder", recipe.model.encoder.kind),
            ("latest checkpoint", steps[-1] if steps else None),
            ("best validation metric", f"{best['metric']:.4g} at step {best['step']:,}" if best else None),
            ("last session", ends[-1] if ends else None),
        ]
        return html_table(f"Run {self.path}", ("", ""), rows)

    def write(self, recipe: Recipe, data: Mapping[str, Manifest]) -> None:
        """Writes data.json and recipe.yaml, the latter last.

        Raises:
            RamifyError: they cannot be written, or another program has taken over the run.
        """
        self.check_lock()
        with self.writing(self.path / "data.json"):
            write_json(self.path / "data.json", {name: manifest.to_json() for name, manifest in data.items()})
        with self.writing(self.path / "recipe.yaml"):
            write_whole(self.path / "recipe.yaml", recipe.to_yaml())

    def writing(self, file: Path) -> AbstractContextManager[None]:
        """Context for writing a file of the run: errors name it and how to continue, see `ramify.files.writing`."""
        return writing(file, *after_failure(self.path))

    def lock(self, *, wait: bool = False) -> None:
        """Prevents other programs from training this run until `unlock`; see `RunLock`.

        Raises:
            RamifyError: another program trains it.
        """
        lock = RunLock(self.path, wait=wait)
        with self.writing(lock.path):
            lock.acquire()
        self._lock = lock

    def check_lock(self) -> None:
        """Checks that this program still holds the lock, if it has locked the run; call it before writing.

        Raises:
            RamifyError: another program has taken it over, or the folder was moved; see `RunLock.check`.
        """
        if self._lock is not None:
            self._lock.check()

    @property
    def lost(self) -> bool:
        """Whether this program is known to have lost the lock; reads no file."""
        return self._lock is not None and self._lock.lost

    def unlock(self) -> None:
        """Releases the lock; does nothing where the run is not locked."""
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
                fix="start it again with the same command and --continue, or remove it",
            )
        path = resolve(self.checkpoints / which)
        if which == "latest" and not path.is_dir():
            there = ", ".join(folder.name for folder in step_folders(self.checkpoints))
            if not there:
                raise RamifyError(
                    f"{self.path} has had checkpoints, but {self.checkpoints / which} is missing",
                    fix="restore the folder from a copy, or start a new run",
                )
            named = POINTERS if (self.checkpoints / POINTERS).is_file() else which
            raise RamifyError(
                f"{self.checkpoints / named}: latest is {path.name}, which does not exist; existing: {there}",
                fix=f"restore {path.name} from a copy, or remove {self.checkpoints / named} to resume from the "
                "newest one that exists",
            )
        return open_checkpoint(path)

    def evaluations(self) -> list[dict[str, Any]]:
        """The `val` lines of metrics.jsonl, oldest first.

        Raises:
            RamifyError: a line is damaged.
        """
        return [entry for _, entry in _lines(self.path / "metrics.jsonl") if entry["kind"] == "val"]

    def never_had_checkpoint(self) -> bool:
        """Whether the run ended before its first checkpoint: there is none, and no session has recorded one."""
        there = self.checkpoints.is_dir() and any(not p.name.startswith(".") for p in self.checkpoints.iterdir())
        return not there and not self.sessions.had_checkpoint


class MetricsLog:
    """Writes metrics.jsonl and to the trackers; on resume, lines after the checkpoint are removed first.

    Args:
        run: of the metrics.
        step: current step of the run.
        evaluated: last step with an evaluation; None if it is the current one.
        warned: called with each warning of a tracker.

    Attributes:
        evaluations: the existing `val` lines, oldest first.

    Raises:
        RamifyError: the files cannot be written, a line of metrics.jsonl is damaged, or a tracker cannot be used.
    """

    def __init__(
        self,
        run: Run,
        step: int,
        evaluated: int | None = None,
        warned: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._run = run
        self._path = run.path / "metrics.jsonl"
        last = {"train": step, "val": step if evaluated is None else evaluated}
        there = _lines(self._path)
        kept = [(line, entry) for line, entry in there if entry["step"] <= last[entry["kind"]]]
        repeated = [entry for _, entry in there if entry["step"] > last[entry["kind"]]]
        self.evaluations = [entry for _, entry in kept if entry["kind"] == "val"]
        with run.writing(self._path):
            if self._path.exists():
                write_whole(self._path, b"".join(line + b"\n" for line, _ in kept))
            self._file = self._path.open("a", encoding="utf-8")
        with run.writing(run.path / "tensorboard"):
            self._trackers = Trackers(run.path, run.recipe(), step, repeated, warned)

    def add(self, entry: dict[str, Any]) -> None:
        """Writes one line; numbers that are not finite become null.

        Raises:
            RamifyError: it cannot be written.
        """
        entry = finite(entry)
        with self._run.writing(self._path):
            self._file.write(json.dumps(entry, allow_nan=False) + "\n")
            self._file.flush()
        with self._run.writing(self._path.with_name("tensorboard")):
            self._trackers.add(entry)

    def close(self, ended: Ending) -> None:
        """Writes all data to the disk and closes the files."""
        with self._run.writing(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._trackers.close(ended)


def _lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Lines of metrics.jsonl and their content, without incomplete lines of a killed program at the end of the file.

    Raises:
        RamifyError: a damaged line is followed by valid ones.
    """
    if not path.exists():
        return []
    found: list[tuple[bytes, dict[str, Any]]] = []
    damaged: tuple[int, str] | None = None
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        try:
            entry = parse_json(line)
            if entry["kind"] not in ("train", "val") or not isinstance(entry["step"], int):
                raise ValueError("it has no `kind` train or val with a whole `step`")
        except (ValueError, KeyError, TypeError) as error:
            damaged = damaged or (number, str(error))
            continue
        if damaged is not None:
            raise RamifyError(
                f"{path}, line {damaged[0]}, is damaged: {damaged[1]}",
                fix="remove that line; the run continues without it, and reports omit that point",
            )
        found.append((line, entry))
    return found


def finite(value: Any) -> Any:
    """The same value with None in place of numbers that JSON cannot represent."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
