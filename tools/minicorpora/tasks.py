"""Resumable tasks in worker processes, shared by all generator scripts.

A task is one molecule, reaction or material. Its result is one `.npz` in the work folder, written when it is finished,
so that a run can be stopped and resumed at any time.
"""

import argparse
import os
import time
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

Arrays = dict[str, Any]


class Task(Protocol):
    """Anything with a `key`: the name of its result file."""

    @property
    def key(self) -> str:
        """Name of the result file."""
        ...


T = TypeVar("T", bound=Task)


def seed_of(*parts: object) -> int:
    """A random seed that depends on `parts` alone, not on the order in which tasks happen to run."""
    return zlib.crc32("|".join(map(str, parts)).encode())


def parser(description: str | None, *, assembles: bool = True) -> argparse.ArgumentParser:
    """The options of a generator; `assembles` is true if it also writes the file of its corpus."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, required=True, help="folder for the corpora: OUT/<corpus>/<file>, OUT/work/")
    made.add_argument("--workers", type=int, default=1, help="worker processes, one thread each")
    made.add_argument("--limit", type=int, help="only the first LIMIT tasks")
    made.add_argument("--earlier", type=Path, help="folder of the earlier corpora: what they hold is not repeated")
    if assembles:
        made.add_argument("--assemble-only", action="store_true", help="write the file from the finished tasks")
    return made


def run_tasks(label: Callable[[T], Arrays], tasks: Sequence[T], folder: Path, workers: int) -> None:
    """Labels `tasks` in fresh processes, one result file each in `folder`; those that have one are skipped.

    A task that fails is reported and left out, it does not end the run: repeat the command to try it again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for library in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # read by the workers when they load their libraries
        os.environ.setdefault(library, "1")
    todo = [task for task in tasks if not _result(folder, task.key).exists()]
    begin, failed = time.time(), 0
    with get_context("spawn").Pool(workers, maxtasksperchild=8) as pool:
        for done, (text, good) in enumerate(pool.imap_unordered(partial(_run_one, label, folder), todo), 1):
            failed += not good
            print(f"{done}/{len(todo)} {time.time() - begin:.0f} s: {text}", flush=True)
    if failed:
        print(f"{failed} of {len(todo)} tasks failed and are missing from the corpus")


def load_result(folder: Path, key: str) -> Arrays | None:
    """The arrays of a finished task, None when it is not finished."""
    path = _result(folder, key)
    return dict(np.load(path)) if path.exists() else None


def _result(folder: Path, key: str) -> Path:
    return folder / f"{key}.npz"


def _run_one(label: Callable[[T], Arrays], folder: Path, task: T) -> tuple[str, bool]:
    begin = time.time()
    try:
        arrays = label(task)
    except Exception as error:  # whatever goes wrong with one system, the others are still wanted
        return f"{task.key} FAILED {type(error).__name__}: {error}", False
    seconds = time.time() - begin
    unfinished = folder / f".{task.key}.tmp.npz"
    columns: Arrays = {name: np.asarray(column) for name, column in arrays.items()}
    np.savez_compressed(unfinished, seconds=seconds, **columns)
    unfinished.replace(_result(folder, task.key))
    return f"{task.key} {len(arrays['energy'])} structures in {seconds:.0f} s", True
