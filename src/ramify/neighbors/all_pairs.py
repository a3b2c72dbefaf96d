"""Neighbour search over all pairs of atoms of many small structures in one vectorised pass, periodic images included.

Structures of similar size are padded to one size and stacked, so that every operation is one loop over contiguous
memory without indexing. Separations are wrapped to fractional coordinates within ±1/2 along periodic axes. A pair
closer than r then differs by at most r/h + 1/2 lattice steps along an axis of height h (the distance between opposite
faces of the cell), which bounds the images to test; this is exact for skewed cells and for cells smaller than r.
Squared distances to all images are one matrix product: |d + t|² = |d|² + 2 d·t + |t|².
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

from ramify.neighbors.distances import complete_cells
from ramify.packing import pieces_of
from ramify.structures import Structures, atom_rows

Rows = NDArray[np.int64]
Floats = NDArray[np.float64]

CANDIDATES_AT_ONCE = 1 << 17
"""Padded candidates (pairs times images) per pass, so that the working arrays fit into the cache of a core."""

CANDIDATES_OF_ONE = 20_000
"""Maximum number of candidates of a structure; for larger structures, a cell list is faster."""

PADDED = 60_000
"""Maximum number of padding candidates in one pass, whose cost equals that of another pass and sorting its pairs."""

FAR = 1e12
"""Å or Å², placeholder larger than any radius; its square does not overflow."""

MARGIN = 1e-6
"""Å, tolerance much larger than the rounding error of squared distances from a matrix product."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """P pairs of atoms within some radius, sorted by receiver.

    Attributes:
        receiver: (P,) int64, central atom.
        sender: (P,) int64, neighbouring atom.
        shift: (P, 3) int32, lattice vectors added to the sender.
        distance: (P,) float64, Å.
    """

    receiver: Rows
    sender: Rows
    shift: NDArray[np.int32]
    distance: Floats


@dataclass(frozen=True, slots=True)
class Images:
    """Range of the search for periodic images of S structures.

    Attributes:
        steps: (S, 3) maximum lattice steps in both directions of each axis; 0 along axes without periodicity.
        cell: (S, 3, 3) cells, completed by vectors for the axes without periodicity.
        candidates: (S,) pairs times images.
    """

    steps: Rows
    cell: Floats
    candidates: Rows


def images_within(structures: Structures, radius: float) -> Images:
    """Range of images within `radius` (Å) of an atom after wrapping separations; cells must have a volume."""
    pbc = structures.pbc
    S = len(structures)
    steps, cell = np.zeros((S, 3), np.int64), np.broadcast_to(np.eye(3), (S, 3, 3))
    if pbc.any():
        cell = complete_cells(structures.cell.astype(np.float64), pbc, np.ones(S))
        heights = 1 / np.linalg.norm(np.linalg.inv(cell), axis=1)
        steps = np.where(pbc, np.floor(radius / heights + 0.5 + 1e-9), 0).astype(np.int64)
    return Images(steps, cell, structures.n_atoms**2 * (2 * steps + 1).prod(axis=1))


def all_pairs(
    structures: Structures, images: Images, chosen: Rows, radius: float, *, distances: bool = True
) -> Iterator[Pairs]:
    """Yields the pairs closer than `radius` (Å) of the structures `chosen`, in parts with ascending receivers.

    Args:
        structures: any structures.
        images: range of images of `structures` for this radius.
        chosen: indices of structures, ascending.
        radius: Å.
        distances: whether distances are needed; otherwise they may be NaN.
    """
    n_images = (2 * images.steps + 1).prod(axis=1)
    periodic, offsets = np.atleast_1d(structures.pbc.any(axis=1)), structures.offsets
    for part in pieces_of(images.candidates[chosen], CANDIDATES_AT_ONCE):
        block = chosen[part]
        found = [
            _periodic(structures, images, rows, radius)
            if periodic[rows].any()
            else _isolated(structures, rows, radius, distances)
            for rows in _alike(block, structures.n_atoms[block], n_images[block])
        ]
        first, last = int(offsets[block[0]]), int(offsets[block[-1] + 1])
        yield found[0] if len(found) == 1 else merged(found, first, last)


def merged(parts: Sequence[Pairs], first: int, last: int) -> Pairs:
    """Merges lists of pairs in which the pairs of each receiver are contiguous to one list sorted by receiver.

    Args:
        parts: lists of pairs with disjoint receivers.
        first, last: range of the receivers.
    """
    joint = together(parts)
    receiver = joint.receiver
    count = np.bincount(receiver - first, minlength=last - first)
    begins = np.flatnonzero(np.diff(receiver, prepend=-1))  # only these runs must be sorted
    at = np.zeros(last - first, np.int64)
    at[receiver[begins] - first] = begins
    order = atom_rows(at, count)
    return Pairs(
        np.repeat(np.arange(first, last), count),
        np.take(joint.sender, order),
        np.take(joint.shift, order, axis=0),
        np.take(joint.distance, order),
    )


def together(parts: Sequence[Pairs]) -> Pairs:
    """Concatenates lists of pairs."""
    none = Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 3), np.int32), np.zeros(0))
    columns = ("receiver", "sender", "shift", "distance")
    return Pairs(*(np.concatenate([getattr(part, name) for part in (*parts, none)]) for name in columns))


def _alike(rows: Rows, n_atoms: Rows, n_images: Rows) -> Iterator[Rows]:
    """Yields `rows` in groups of similar size and number of images; one group if padding costs less than more calls."""
    work_of_all = int((n_atoms**2 * n_images).sum())
    if len(rows) * int(n_atoms.max()) ** 2 * int(n_images.max()) <= work_of_all + PADDED:
        yield rows
        return
    order = np.lexsort((n_atoms, n_images))
    size, count = n_atoms[order].tolist(), n_images[order].tolist()
    start, work, largest = 0, 0, 0
    for at in range(len(order)):
        own, largest = size[at] ** 2 * count[at], max(largest, size[at])
        if at > start and (at + 1 - start) * largest**2 * count[at] > work + own + PADDED:
            yield np.sort(rows[order[start:at]])
            start, work, largest = at, 0, size[at]
        work += own
    yield np.sort(rows[order[start:]])


@dataclass(frozen=True, slots=True)
class _Stack:
    """B structures padded to n atoms each.

    Attributes:
        first: (B,) first atoms of the structures.
        x: (3, B, n) Å; arbitrary for padding.
        empty: (B, n) mask of padding; None if there is none.
    """

    first: Rows
    x: Floats
    empty: NDArray[np.bool_] | None

    def of_pairs(self, pair: Rows) -> tuple[Rows, Rows]:
        """Receivers and senders among all atoms, from flat indices of pairs in (B, n, n)."""
        _, B, n = self.x.shape
        row = pair // n  # flat index of (B, n)
        rows = np.arange(B * n)
        begin = np.repeat(self.first, n)
        receiver = np.take(rows + begin - np.repeat(n * np.arange(B), n), row)
        sender = np.take(begin - n * rows, row)
        sender += pair
        return receiver, sender


def _stacked(structures: Structures, rows: Rows) -> _Stack:
    n_atoms, first = structures.n_atoms[rows], structures.offsets[rows]
    places = np.arange(int(n_atoms.max()))
    atom = first[:, None] + np.minimum(places, n_atoms[:, None] - 1)
    x = np.take(structures.positions, atom, axis=0)
    empty = places >= n_atoms[:, None]
    return _Stack(first, np.moveaxis(x, 2, 0).astype(np.float64, order="C"), empty if empty.any() else None)


def _isolated(structures: Structures, rows: Rows, radius: float, distances: bool) -> Pairs:
    """Pairs of structures without periodicity."""
    stack = _stacked(structures, rows)
    _, B, n = stack.x.shape
    if stack.empty is not None:  # far from all atoms and from one another
        np.copyto(stack.x, FAR * np.arange(1, n + 1), where=stack.empty)
    d = np.subtract(stack.x[:, :, None, :], stack.x[:, :, :, None])
    np.multiply(d, d, out=d)
    square = d[0]
    square += d[1]
    square += d[2]
    square.reshape(B, n * n)[:, :: n + 1] = FAR  # an atom is not its own neighbour
    flat = square.reshape(-1)
    pair = np.flatnonzero(flat < radius * radius)
    distance = np.sqrt(np.take(flat, pair)) if distances else np.broadcast_to(np.nan, pair.shape)
    return Pairs(*stack.of_pairs(pair), np.zeros((len(pair), 3), np.int32), distance)


def _periodic(structures: Structures, images: Images, rows: Rows, radius: float) -> Pairs:
    """Pairs of structures of which some are periodic along some axes.

    The matrix product only finds candidates, because its rounding may depend on the other structures in it. Wrapping
    and the final distances are computed elementwise.
    """
    stack = _stacked(structures, rows)
    _, B, n = stack.x.shape
    cell, pbc = images.cell[rows], structures.pbc[rows]
    d, wraps = _wrapped(stack.x, cell, pbc)
    steps, t, missing = _lattice_vectors(images.steps[rows], cell)
    M = t.shape[2]
    left, right = np.empty((B, n * n, 5)), np.empty((B, 5, M))
    left[:, :, :3], left[:, :, 4] = np.moveaxis(d, 0, 2), 1.0
    np.einsum("cbp,cbp->bp", d, d, out=left[:, :, 3])
    if stack.empty is not None:
        left[:, :, 3][(stack.empty[:, None, :] | stack.empty[:, :, None]).reshape(B, n * n)] = FAR
    np.multiply(np.moveaxis(t, 0, 1), 2, out=right[:, :3])
    right[:, 3] = 1.0
    np.einsum("cbm,cbm->bm", t, t, out=right[:, 4])
    if missing is not None:
        right[:, 4][missing] = FAR
    square = np.matmul(left, right)
    square[:, :: n + 1, 0] = FAR  # an atom is not its own neighbour, but of its images
    at = np.flatnonzero(square.reshape(-1) < (radius + MARGIN) ** 2)
    pair = at // M
    image = at - pair * M
    of_structure = pair // (n * n) * M + image
    d_at = np.take(d.reshape(3, -1), pair, axis=1)
    d_at += np.take(t.reshape(3, -1), of_structure, axis=1)
    np.multiply(d_at, d_at, out=d_at)
    distance = np.sqrt(d_at[0] + d_at[1] + d_at[2])
    inside = np.flatnonzero(distance < radius)
    pair = pair[inside]
    shift = np.take(steps, (image if len(steps) == M else of_structure)[inside], axis=0)
    shift -= np.take(wraps, pair, axis=0)
    return Pairs(*stack.of_pairs(pair), shift, distance[inside])


def _wrapped(x: Floats, cell: Floats, pbc: NDArray[np.bool_]) -> tuple[Floats, NDArray[np.int32]]:
    """(3, B, n n) Å, separations of all pairs (receiver, sender) of positions (3, B, n), wrapped to half a cell along
    periodic axes; and (B n n, 3) the subtracted lattice steps."""
    _, B, n = x.shape
    x = x - x[:, :, :1]
    inverse = np.linalg.inv(cell)
    d, wraps = np.zeros((3, B, n * n)), np.empty((B * n * n, 3), np.int32)
    for k in range(3):
        s = x[0] * inverse[:, 0, k, None]
        s += x[1] * inverse[:, 1, k, None]
        s += x[2] * inverse[:, 2, k, None]
        fraction = (s[:, None, :] - s[:, :, None]).reshape(B, n * n)
        wrap = np.rint(fraction)
        wrap *= pbc[:, k, None]
        wraps[:, k] = wrap.reshape(-1)
        fraction -= wrap
        for c in range(3):
            d[c] += fraction * cell[:, k, c, None]
    return d, wraps


def _lattice_vectors(steps: Rows, cell: Floats) -> tuple[NDArray[np.int32], Floats, NDArray[np.bool_] | None]:
    """Images of B structures: lattice steps, (M, 3), or (B M, 3) if they differ between structures; lattice vectors (3,
    B, M) Å; and a mask of padding among them, None if there is none."""
    tables = {tuple(row): _steps_within(*row) for row in steps.tolist()}
    M = max(len(table) for table in tables.values())
    missing = None
    if len(tables) == 1:
        table = next(iter(tables.values()))
        per_structure = table[None]
    else:
        per_structure = np.zeros((len(steps), M, 3), np.int32)
        missing = np.ones((len(steps), M), np.bool_)
        for at, row in enumerate(steps.tolist()):
            own = tables[tuple(row)]
            per_structure[at, : len(own)] = own
            missing[at, : len(own)] = False
        table = per_structure.reshape(-1, 3)
    t = np.zeros((3, len(steps), M))
    for k in range(3):
        for c in range(3):
            t[c] += per_structure[:, :, k] * cell[:, k, c, None]
    return table, t, missing


@lru_cache(maxsize=1024)
def _steps_within(a: int, b: int, c: int) -> NDArray[np.int32]:
    """(M, 3) all lattice steps up to a, b and c in both directions; the zero step is first."""
    axes = [sorted(range(-m, m + 1), key=abs) for m in (a, b, c)]
    return np.array(list(product(*axes)), np.int32)
