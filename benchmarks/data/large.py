"""Opens a large store in a separate process to measure its memory: `python -m benchmarks.data.large STORE`."""

import json
import sys
import time

import numpy as np
from benchmarks.data.process_memory import memory_bytes
from benchmarks.data.rates import BATCH, draws, rate

from ramify.batches.sampler import BatchSampler
from ramify.store.store import Store

ROWS_AT_ONCE = 1 << 16


def main(path: str) -> None:
    """Prints time and memory as JSON."""
    before = memory_bytes()
    begun = time.perf_counter()
    store = Store.open(path)
    cold = time.perf_counter() - begun
    after = memory_bytes()
    begun = time.perf_counter()
    Store.open(path).close()
    warm = time.perf_counter() - begun

    size = len(store.range("train"))
    before_order = memory_bytes()["private"]
    stream = BatchSampler({"large": size}, {"large": 1.0}, BATCH, 0)
    begun = time.perf_counter()
    stream.rows("large", 0, BATCH)
    first = time.perf_counter() - begun
    begun, steps = time.perf_counter(), 2000
    for step in range(steps):
        stream.rows("large", step * BATCH, BATCH)
    each = (time.perf_counter() - begun) / steps
    order = memory_bytes()["private"] - before_order

    rows = draws(size)
    begun = time.perf_counter()
    store.take(next(rows))  # as at the start of a run: from the disk, with checksums
    first_batch, count = time.perf_counter() - begun, 1
    while time.perf_counter() - begun < 10:
        store.take(next(rows))
        count += 1
    cold_rate = count * BATCH / (time.perf_counter() - begun)
    begun = time.perf_counter()
    for start in range(0, len(store), ROWS_AT_ONCE):
        store.take(np.arange(start, min(start + ROWS_AT_ONCE, len(store))))
    everything = time.perf_counter() - begun
    result = {
        "open_cold_s": cold,
        "open_warm_s": warm,
        # the numbers of atoms are mapped by this process alone, so the system counts them as private
        "private_bytes_of_index": after["private"] - before["private"] - store.n_atoms.nbytes,
        "shared_bytes_of_index": store.n_atoms.nbytes,
        "order_first_batch_s": first,
        "order_each_batch_s": each,
        "order_private_bytes": order,
        "first_batch_s": first_batch,
        "batches_in_the_first_10_s": {"structures_per_s": cold_rate},
        "everything_in_order_s": everything,
        "batches": rate(lambda: store.take(next(rows))),
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
