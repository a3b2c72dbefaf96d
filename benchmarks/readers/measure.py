"""Reading of a file in a process of its own, with its processor time and memory."""

import multiprocessing
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
    peak, done = [_memory("RssAnon")], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak.append(max(peak.pop(), _memory("RssAnon")))

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.process_time()
    structures = work(*args)
    cpu = time.process_time() - began
    done.set()
    watcher.join()
    return {"structures": structures, "cpu_s": cpu, "private_mib": peak[0], "resident_mib": _memory("VmHWM")}


def _memory(name: str) -> float:
    """Memory of this process, MiB: `RssAnon` is its private memory, `VmHWM` the largest resident so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {name} in /proc/self/status")
