"""Reading of a file in a process of its own, with its processor time and memory."""

import multiprocessing
import resource
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from ramify.sources.formats import formats
from ramify.sources.quarantine import Quarantine


def read(kind: str, path: Path, keys: dict[str, Any]) -> int:
    """Reads a file; returns the number of structures."""
    name = kind.split(".")[0]
    options = formats()[name].options.model_validate({"format": name, "path": str(path)} | keys)
    return sum(len(chunk) for chunk in formats()[name].read(path, options, Quarantine()))


def measured(work: Callable[..., int], *args: Any) -> dict[str, float]:
    """Structures, processor time and peak memory of `work` in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as workers:
        return workers.submit(_measure, work, args).result()


def _measure(work: Callable[..., int], args: tuple[Any, ...]) -> dict[str, float]:
    formats()  # imports are not part of the reading
    peak, done = [_private()], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak.append(max(peak.pop(), _private()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.process_time()
    structures = work(*args)
    cpu = time.process_time() - began
    done.set()
    watcher.join()
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"structures": structures, "cpu_s": cpu, "private_mib": peak[0], "resident_mib": resident}


def _private() -> float:
    """Private memory of this process, MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no RssAnon in /proc/self/status")
