"""Program of the tests of the distributed store, under mpiexec: `mpi_program.py JOB STORE [WIDTH]`."""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
from mpi4py import MPI

from ramify.errors import RamifyError
from ramify.store.shared.distributed import DistributedStorage, open_distributed
from ramify.store.store import Store
from ramify.structures import ATOM_COLUMNS, STRUCTURE_COLUMNS, Structures

world = MPI.COMM_WORLD


def assert_same(found: Structures, expected: Structures) -> None:
    """Equal to the bit, NaN included."""
    for name in (*STRUCTURE_COLUMNS, *ATOM_COLUMNS):
        a, b = getattr(found, name), getattr(expected, name)
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), name
    assert (found.group_names, found.origin_names) == (expected.group_names, expected.origin_names)


def compare(store: Store, path: str) -> None:
    """Random rows, repeats, sorted rows, nothing, everything, and again after everything was read."""
    rng = np.random.default_rng(world.rank)
    with Store.open(path) as expected:
        assert store.manifest == expected.manifest
        for size in (0, 1, 128, len(expected), 128):
            rows = rng.integers(0, len(expected), size)
            for some in (rows, np.sort(rows), np.unique(rows)):
                assert_same(store.take(some), expected.take(some))
        assert_same(store.take(range(len(expected))), expected.take(range(len(expected))))


def same(path: str, width: int | None) -> None:
    """The same structures as from the mapped store; the rows of each rank."""
    with open_distributed(path, width=width) as store:
        compare(store, path)
        storage = store._storage
        assert isinstance(storage, DistributedStorage)
        say(
            f"holds {np.diff(storage.shares)[storage._group.rank]} of {len(store)} "
            f"answers {storage._answering is not None}"
        )


def some(path: str, _: int | None) -> None:
    """Two stores, each shared by other ranks, the middle one of three in both; opened in the same order by all."""
    stores = [open_distributed(path, ranks=ranks) for ranks in ((0, 1), (1, 2)) if world.rank in ranks]
    for store in stores:
        compare(store, path)
    for store in stores:
        store.close()
    say(f"shared {len(stores)}")


def busy(path: str, _: int | None) -> None:
    """Rank 0 reads what rank 1 holds while that does not call MPI; it goes on when rank 0 has read."""
    was_read = Path(f"{path}-was-read")
    with open_distributed(path) as store:
        if world.rank == 0:
            for _ in range(5):
                store.take(range(len(store)))
            was_read.touch()
            say("read while the other was busy")
        else:
            while not was_read.exists():
                time.sleep(0.01)


def refused(path: str, _: int | None) -> None:
    """The message of the error, on every rank."""
    try:
        open_distributed(path)
    except RamifyError as error:
        say(str(error).replace("\n", " "))


def killed(path: str, _: int | None) -> None:
    """The last rank dies while the others read; they go on until somebody ends them."""
    store = open_distributed(path)
    for step in range(10**9):
        store.take(np.arange(0, len(store), 3))
        if step == 20:
            say("reads")
        if step == 50 and world.rank == world.size - 1:
            os.kill(os.getpid(), signal.SIGKILL)


def say(text: str) -> None:
    sys.stdout.write(f"{world.rank}: {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    job, path, *width = sys.argv[1:]
    {f.__name__: f for f in (same, some, busy, refused, killed)}[job](path, int(width[0]) if width else None)
