"""One rank of the benchmark of the distributed store, as JSON: `mpiexec -n 4 python -m benchmarks.data.ranks STORE`."""

import json
import sys
import time

from benchmarks.data.process_memory import memory_bytes
from benchmarks.data.rates import BATCH, draws, rate
from benchmarks.data.stores import column_bytes

from ramify.store.shared.distributed import open_distributed
from ramify.store.store import Store


def main(path: str) -> None:
    """Opens the store on all ranks, draws batches, and compares some with those of the mapped store."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    before = memory_bytes()["proportional"]
    begun = time.perf_counter()
    store = open_distributed(path)
    opened = time.perf_counter() - begun
    rows = draws(len(store), seed=world.rank)
    store.take(next(rows))
    taken = memory_bytes()["proportional"] - before
    share = column_bytes(store.manifest) // world.size
    world.Barrier()
    found = rate(lambda: store.take(next(rows)))
    world.Barrier()
    with Store.open(path) as mapped:
        same = all(_same(store.take(some), mapped.take(some)) for some in (next(rows) for _ in range(50)))
    store.close()
    result = {
        "rank": world.rank,
        "open_s": opened,
        "share_bytes": share,
        "memory_over_share": taken / share,
        **found,
        "bit_identical": same,
        "batch": BATCH,
    }
    sys.stdout.write(json.dumps(result) + "\n")


def _same(a: object, b: object) -> bool:
    """Whether all columns are bit-identical."""
    arrays = (
        (getattr(a, name), getattr(b, name)) for name in ("numbers", "positions", "forces", "energy", "cell", "row")
    )
    return all(x.tobytes() == y.tobytes() for x, y in arrays)


if __name__ == "__main__":
    main(sys.argv[1])
