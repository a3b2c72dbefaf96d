"""Columns in memory that the processes of a node share: read once, in sequence, checked on the way.

The memory is a file of `/dev/shm` named after the checksums of what it holds, so whoever opens the same data finds it.
Users hold a shared lock on it. The first to come gets the lock alone and fills it; the last to go gets it alone and
removes it. Locks end with their process, however it ends: memory that a killed run left behind is found again by the
next run on the same data, or removed by the next run on any.
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
"""Where memory has names; elsewhere than on Linux a file does, which the system keeps in memory too."""
PREFIX = f"ramify-{os.getuid()}-"
PAGE = 4096
"""Bytes before the columns, and what each column begins at a multiple of."""
WHOLE = b"ramify-columns-whole"
"""What the first page begins with once everything is there and checked."""
READERS = 4
"""Threads that read and check: one keeps a disk busy, more hide the checking."""

Progress = Callable[[int], None]
"""Hears how many bytes more have been read."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a column lies in the memory."""

    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return np.dtype(self.dtype).itemsize * int(np.prod(self.shape[1:], dtype=np.int64))


class NodeMemory:
    """Columns of a store, shared by the processes of this node.

    Args:
        files: of the store.
        names: which columns.
        progress: hears of bytes read, if it is this process that reads.

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
        """This process needs the memory no more; arrays taken from it stay as long as anything refers to them."""
        self.columns = {}
        self._release()


def _attach(path: Path, size: int, fill: Callable[[int], None]) -> int:
    """A handle with a shared lock on whole memory of this name; this process fills it if nobody has."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _still_named(handle, path) and not _is_whole(handle):
                    _make(handle, path, size, fill)
            except BlockingIOError:
                pass  # someone fills it, or uses it
            fcntl.flock(handle, fcntl.LOCK_SH)  # waits for whoever fills it
            if _is_whole(handle) and _still_named(handle, path):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its maker failed, or its last user left meanwhile: once more


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
    """Reads columns, block by block in the order of the files, and compares every block with its checksum.

    Blocks are read into memory of each thread's, checked there and written into the file: the processor's cache still
    holds them then. Reading straight into a map of the file would have every page cleared first, and taken one at a
    time by a page fault, which costs more than reading does; and where memory runs out a map ends the process, where
    writing is an error.
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
    """What each thread has of its own."""

    def __init__(self) -> None:
        self.scratch = Scratch()


def _layout(manifest: Manifest, names: Sequence[str]) -> tuple[dict[str, _Place], int]:
    """Where each column goes, and the size of all in bytes."""
    places, offset = {}, PAGE
    for name in names:
        column = manifest.columns[name]
        places[name] = _Place(offset, column.dtype, column.shape)
        offset += -(-places[name].row_bytes * column.shape[0] // PAGE) * PAGE
    return places, offset


def _arrays(memory: mmap.mmap, places: Mapping[str, _Place]) -> dict[str, NDArray[Any]]:
    return {name: np.ndarray(place.shape, place.dtype, memory, place.offset) for name, place in places.items()}


def _key(manifest: Manifest, names: Sequence[str]) -> str:
    """The same for the same values, wherever the store lies and in whatever form."""
    content = "".join(f"{name} {manifest.columns[name].sha256}\n" for name in names)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _is_whole(handle: int) -> bool:
    return os.pread(handle, len(WHOLE), 0) == WHOLE


def _still_named(handle: int, path: Path) -> bool:
    """Whether `path` is the file of `handle`, not another or none."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    here = os.fstat(handle)
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def _leave(handle: int, path: Path) -> None:
    """Gives up the shared lock; whoever is the last removes the memory."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _still_named(handle, path):
            path.unlink(missing_ok=True)
    except BlockingIOError:
        pass
    finally:
        os.close(handle)


def _remove_abandoned(but: Path) -> None:
    """Removes what killed runs left: memory of this user's that nobody holds a lock on, except that at `but`."""
    for path in set(FOLDER.glob(f"{PREFIX}*")) - {but}:
        with suppress(OSError):  # its last user removes it this moment
            _leave(os.open(path, os.O_RDWR), path)
