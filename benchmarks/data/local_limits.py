"""What this machine can do at best: how fast it copies memory, and writes and reads a file in sequence."""

import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

COPIED = 1 << 28
"""Bytes copied at a time: far more than any cache holds."""
PIECE = 1 << 25
"""Bytes written or read at a time."""


def best_seconds(work: Callable[[], Any], repeats: int) -> float:
    """The shortest time that `work` took: what other programs do beside it only makes it longer."""
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return min(times)


def copy_bandwidth() -> float:
    """GB/s, bytes copied from memory to memory by one core."""
    source, target = np.ones(COPIED, np.uint8), np.ones(COPIED, np.uint8)
    return COPIED / best_seconds(lambda: np.copyto(target, source), 5) / 1e9


def file_bandwidth(folder: Path, size: int) -> dict[str, float]:
    """GB/s of writing (to the disk, not only to memory) and reading back a file of about `size` bytes in sequence.

    Reading is measured twice: into memory that is used again and again, and into fresh memory of that size, which the
    system must first provide, as for whatever is to be kept.
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
    """Time of writing a file of about `size` bytes (whole pieces) in sequence, until it is on the disk."""
    piece = np.random.default_rng(0).integers(0, 255, PIECE, np.uint8)
    return timed(lambda: _write(path, piece, max(1, round(size / PIECE))))


def read_seconds(path: Path, *, fresh: bool) -> float:
    """Time of reading a file in sequence that the system keeps nothing of, into memory used again or fresh memory."""
    drop_from_cache(path)
    if fresh:
        return timed(lambda: _read(path, memoryview(mmap.mmap(-1, path.stat().st_size)), 1))
    piece = np.zeros(PIECE, np.uint8)
    piece[:] = 1  # or its pages would be fresh too
    return timed(lambda: _read(path, piece.data, 0))


def timed(work: Callable[[], Any]) -> float:
    """Seconds that `work` takes, begun when nothing waits to be written to the disk."""
    os.sync()
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def drop_from_cache(path: Path) -> None:
    """Lets the system forget what it keeps in memory of a file, or of all files in a folder."""
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
    """Reads piece after piece, each `step` pieces further on in `memory`."""
    at = 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(memory[at : at + PIECE]):
            at += step * count
