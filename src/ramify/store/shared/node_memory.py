"""Columns in memory shared by the processes of a node: read once, sequentially, and verified.

The memory is a file in `/dev/shm` named after the checksums of its content, so that all processes with the same data
find it. Users hold a shared lock on it. The first process gets an exclusive lock and fills it; the last one gets an
exclusive lock and removes it. Locks end with their process: memory left by a killed run is reused by the next run on
the same data, or removed by the next run on other data.
"""

import errno
import fcntl
import hashlib
import mmap
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ramify.errors import RamifyError
from ramify.store.blocks import block_count, block_rows, memory_of
from ramify.store.files import Scratch, StoreFiles, check_block, checksums
from ramify.store.manifest import Manifest

FOLDER = Path(
    os.environ.get("RAMIFY_SHARED_MEMORY", "/dev/shm" if Path("/dev/shm").is_dir() else tempfile.gettempdir())
)
"""Folder of shared memory; on systems other than Linux an ordinary file, which the system caches in memory."""
PREFIX = f"ramify-{os.getuid()}-"
PAGE = 4096
"""Bytes before the columns, and alignment of each column."""
WHOLE = b"ramify-columns-whole"
"""Start of the first page once all data are complete and verified."""
READERS = 4
"""Threads that read and verify: one saturates a disk, more hide the time of verification."""

Progress = Callable[[int], None]
"""Called with the number of bytes read."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Location of a column in the memory."""

    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes per row."""
        return np.dtype(self.dtype).itemsize * int(np.prod(self.shape[1:], dtype=np.int64))


class NodeMemory:
    """Columns of a store, shared by the processes of this node.

    Args:
        files: files of the store.
        names: names of columns.
        progress: called with the number of bytes read, if this process reads.

    Attributes:
        columns: by name, read-only.

    Raises:
        RamifyError: not enough memory, or the files are damaged.
    """

    def __init__(self, files: StoreFiles, names: Sequence[str], progress: Progress = lambda done: None) -> None:
        checksums(files)
        places, size = _layout(files.manifest, names)
        path = FOLDER / (PREFIX + _key(files.manifest, names))
        _remove_abandoned(but=path)
        handle = _attach(path, size, lambda handle: _fill(files, handle, places, progress))
        self.columns = _arrays(mmap.mmap(handle, size, access=mmap.ACCESS_READ), places)
        self._release = weakref.finalize(self, _leave, handle, path)

    def close(self) -> None:
        """Releases the memory for this process; arrays taken from it remain valid while they are referenced."""
        self.columns = {}
        self._release()


def _attach(path: Path, size: int, fill: Callable[[int], None]) -> int:
    """Returns a handle with a shared lock on complete memory of this name, after filling it if necessary."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _still_named(handle, path) and not _is_whole(handle):
                    _make(handle, path, size, fill)
            except BlockingIOError:
                pass  # another process fills or uses it
            fcntl.flock(handle, fcntl.LOCK_SH)  # waits until it is filled
            if _is_whole(handle) and _still_named(handle, path):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # filling failed, or the last user removed it: try again


def _make(handle: int, path: Path, size: int, fill: Callable[[int], None]) -> None:
    try:
        free = shutil.disk_usage(FOLDER).free
        if size > free:
            raise _too_small(size, free)
        os.ftruncate(handle, size)
        try:
            fill(handle)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise _too_small(size, shutil.disk_usage(FOLDER).free) from error
        os.pwrite(handle, WHOLE, 0)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _too_small(size: int, free: int) -> RamifyError:
    return RamifyError(
        f"{size / 1e9:.2f} GB of memory are needed for the columns, {FOLDER} has {free / 1e9:.2f} GB left",
        fix="enlarge it or name another tmpfs by RAMIFY_SHARED_MEMORY; or do not preload mapped stores, or use "
        "data.store: distributed over more nodes",
    )


def _fill(files: StoreFiles, handle: int, places: Mapping[str, _Place], progress: Progress) -> None:
    """Reads columns, block by block in the order of the files, and verifies the checksum of every block.

    Blocks are read into a buffer of each thread, verified there and written to the file while they are in the cache of
    the processor. Reading directly into a map of the file would clear every page first, with a page fault for each,
    which costs more than reading; and without free memory, access to a map terminates the process, while a write only
    fails.
    """
    own = _OfThread()

    def read(name: str, block: int) -> None:
        place = places[name]
        held = block_rows(block, place.shape[0])
        rows = own.scratch.array((held.stop - held.start, *place.shape[1:]), place.dtype)
        files.read(name, held.start, rows)
        check_block(files, name, block, rows)
        rest, at = memory_of(rows), place.offset + held.start * place.row_bytes
        while len(rest):
            count = os.pwrite(handle, rest, at)
            rest, at = rest[count:], at + count
        progress(rows.nbytes)

    with ThreadPoolExecutor(READERS, "ramify-preload") as pool:
        reads = [
            pool.submit(read, name, block) for name in places for block in range(block_count(places[name].shape[0]))
        ]
        try:
            for done in reads:
                done.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


class _OfThread(threading.local):
    """Thread-local data."""

    def __init__(self) -> None:
        self.scratch = Scratch()


def _layout(manifest: Manifest, names: Sequence[str]) -> tuple[dict[str, _Place], int]:
    """Location of each column, and the total size in bytes."""
    places, offset = {}, PAGE
    for name in names:
        column = manifest.columns[name]
        places[name] = _Place(offset, column.dtype, column.shape)
        offset += -(-places[name].row_bytes * column.shape[0] // PAGE) * PAGE
    return places, offset


def _arrays(memory: mmap.mmap, places: Mapping[str, _Place]) -> dict[str, NDArray[Any]]:
    return {name: np.ndarray(place.shape, place.dtype, memory, place.offset) for name, place in places.items()}


def _key(manifest: Manifest, names: Sequence[str]) -> str:
    """Key of the content, independent of location and form of the store."""
    content = "".join(f"{name} {manifest.columns[name].sha256}\n" for name in names)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _is_whole(handle: int) -> bool:
    return os.pread(handle, len(WHOLE), 0) == WHOLE


def _still_named(handle: int, path: Path) -> bool:
    """Returns whether `path` is still the file of `handle`."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    here = os.fstat(handle)
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def _leave(handle: int, path: Path) -> None:
    """Releases the shared lock; the last user removes the memory."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _still_named(handle, path):
            path.unlink(missing_ok=True)
    except BlockingIOError:
        pass
    finally:
        os.close(handle)


def _remove_abandoned(but: Path) -> None:
    """Removes memory left by killed runs: all of this user without a lock, except that at `but`."""
    for path in set(FOLDER.glob(f"{PREFIX}*")) - {but}:
        with suppress(OSError):  # its last user is removing it
            _leave(os.open(path, os.O_RDWR), path)
