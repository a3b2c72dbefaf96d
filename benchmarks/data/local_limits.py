"""Limits of this machine: bandwidth of memory copies, and of sequential writing and reading of a file."""

import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

COPIED = 1 << 28
"""Bytes per copy: much more than any cache holds."""
PIECE = 1 << 25
"""Bytes per write or read."""


def best_seconds(work: Callable[[], Any], repeats: int) -> float:
    """The shortest time of `work`, since other programs only increase it."""
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return min(times)


def copy_bandwidth() -> float:
    """GB/s of copies in memory by one core."""
    source, target = np.ones(COPIED, np.uint8), np.ones(COPIED, np.uint8)
    return COPIED / best_seconds(lambda: np.copyto(target, source), 5) / 1e9


def file_bandwidth(folder: Path, size: int) -> dict[str, float]:
    """GB/s of writing (to the disk, not only to memory) and reading back a file of about `size` bytes in sequence.

    Reading is measured twice: into reused memory, and into new memory, which the system must first allocate, as for
        data
    that are kept.
    """
    path = folder / ".bandwidth"
    try:
        write = min(write_seconds(path, size) for _ in range(2))
        again, fresh = (min(read_seconds(path, fresh=kept) for _ in range(2)) for kept in (False, True))
        size = path.stat().st_size
    finally:
        path.unlink(missing_ok=True)
    rates = {"write": write, "read": again, "read_into_fresh_memory": fresh}
    return {name: size / seconds / 1e9 for name, seconds in rates.items()}


def write_seconds(path: Path, size: int) -> float:
    """Seconds for sequential writing of a file of about `size` bytes (whole pieces) to the disk."""
    piece = np.random.default_rng(0).integers(0, 255, PIECE, np.uint8)
    return timed(lambda: _write(path, piece, max(1, round(size / PIECE))))


def read_seconds(path: Path, *, fresh: bool) -> float:
    """Seconds for sequential reading of an uncached file, into reused or new memory."""
    drop_from_cache(path)
    if fresh:
        return timed(lambda: _read(path, memoryview(mmap.mmap(-1, path.stat().st_size)), 1))
    piece = np.zeros(PIECE, np.uint8)
    piece[:] = 1  # allocates its pages
    return timed(lambda: _read(path, piece.data, 0))


def timed(work: Callable[[], Any]) -> float:
    """Seconds of `work`, started when no writes to the disk are pending."""
    os.sync()
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def drop_from_cache(path: Path) -> None:
    """Removes a file, or all files in a folder, from the page cache."""
    for file in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def _write(path: Path, piece: np.ndarray, count: int) -> None:
    with path.open("wb", buffering=0) as file:
        for _ in range(count):
            file.write(piece.data)
        os.fsync(file.fileno())


def _read(path: Path, memory: memoryview, step: int) -> None:
    """Reads a file in pieces, each `step` pieces further in `memory`."""
    at = 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(memory[at : at + PIECE]):
            at += step * count
