"""The recipe key `limit`: a random subset of a dataset's structures."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ramify.prepare.checks.fingerprints import scramble
from ramify.prepare.split import group_hash


def random_subset(
    rows: NDArray[np.integer], origin: NDArray[np.integer], origins: Sequence[str], limit: int, seed: int
) -> NDArray[np.bool_]:
    """(S,) whether each of S structures is in the subset: those whose hash is smallest. The hash is of the seed, the
    file and the place in it: it does not depend on the other structures, and a larger limit adds to a smaller one.

    Args:
        rows: (S,) position of each inside its origin.
        origin: (S,) index of each into `origins`.
        origins: names of files and places in them.
        limit: size of the subset.
        seed: another one gives another subset.
    """
    hashes = np.zeros(len(origins), np.uint64)
    for number in np.unique(origin).tolist():
        hashes[number] = group_hash(seed, "limit", origins[number])
    order = np.lexsort((rows, scramble(hashes[origin] ^ scramble(rows.astype(np.uint64)))))
    chosen = np.zeros(len(rows), np.bool_)
    chosen[order[:limit]] = True
    return chosen
