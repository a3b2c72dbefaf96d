"""Batches laid out for a compiled step: filled up such that programs made for some sizes serve all others.

What is added is there for its size only:
    atoms      of one more structure, behind the others and, where segments fill whole tiles, behind each segment;
               nothing refers to them but added edges
    edges      of an added atom to an image of itself, `APART` away, beyond its reach: their weight and all that
               they send is exactly zero, and so are its derivatives
    rim pairs  the same, of gain 0
    structures without labels and without a cell
    slots      of neighbours
Segments and datasets say which rows are real, so that losses and errors count no other. Rows stay in their order, and
edges sorted by receiver. A real atom gets the same numbers as without padding, to rounding.
"""

from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ramify.batches.batch import Batch, Segment

APART, REACH = 2.0, 1.0
"""Å: length of an added edge, and the reach of an added atom. Any two lengths will do, if the first is the larger."""

FEWEST = 2
"""Rows of anything in a padded batch, at least: a compiler makes programs of their own for sizes of 0 and 1."""

SMALLEST_TILE, LARGEST_TILE = 8, 256
"""Atoms. Smaller tiles than this make slow products, larger ones gain nothing more."""


@dataclass(frozen=True, slots=True)
class PaddedBatch(Batch):
    """A batch with rows that belong to no segment.

    Attributes:
        tile_branch: (K,) int64, for each tile of N / K atoms the branch whose segment it belongs to, by its place among
            the names of `Padding`; 0 where it has no real atoms. With tiles of one atom there are none (K = 0).
    """

    tile_branch: Tensor = field(kw_only=True)


@dataclass(frozen=True, slots=True)
class Padding:
    """How batches are filled up.

    Attributes:
        branches: names of all that a batch may have.
        tile: atoms; every segment takes whole tiles.
        steps: whether sizes are rounded up by `rounded_up`, so that there are few of them.
    """

    branches: tuple[str, ...]
    tile: int = 1
    steps: bool = False

    def __call__(self, batch: Batch) -> PaddedBatch:
        """The batch, filled up; on the CPU."""
        starts, used = self._starts(batch.segments)
        size = {name: self._size(count) for name, count in _counts(batch).items()}
        tiles = self._size(-(-(used + 1) // self.tile))  # one added atom at least stands behind all others
        atoms, structures = tiles * self.tile, self._size(len(batch.n_atoms) + 1)
        move = np.concatenate([np.arange(s.atoms.start, s.atoms.stop) - s.atoms.start + a for s, a in starts])
        added = range(used, atoms)

        def by_atom(tensor: Tensor, filling: float) -> Tensor:
            given = tensor.numpy()
            found = np.full((atoms, *given.shape[1:]), filling, given.dtype)
            found[move] = given
            return torch.from_numpy(found)

        new: dict[str, Tensor] = {
            "numbers": by_atom(batch.numbers, 1),
            "positions": by_atom(batch.positions, 0.0),
            "structure": by_atom(batch.structure, structures - 1),
            "forces": by_atom(batch.forces, np.nan),
            "atom_cutoff": by_atom(batch.atom_cutoff, REACH),
            "n_atoms": _longer(batch.n_atoms, structures, 1.0),
            "volume": _longer(batch.volume, structures, 0.0),
            "energy": _longer(batch.energy, structures, np.nan),
            "stress": _longer(batch.stress, structures, np.nan),
            "slots": torch.from_numpy(np.arange(self._size(len(batch.slots)))),
            "cutoff_gain": _longer(batch.cutoff_gain, size["cutoff_"], 0.0),
            "tile_branch": torch.from_numpy(self._tile_branch(starts, tiles)),
        }
        for kind, count in size.items():
            receiver = getattr(batch, f"{kind}receiver").numpy()
            own = _spread_over(added, count - len(receiver))
            for end in ("receiver", "sender"):
                new[kind + end] = torch.from_numpy(np.concatenate([move[getattr(batch, kind + end).numpy()], own]))
            new[f"{kind}shift"] = _longer(getattr(batch, f"{kind}shift"), count, 0.0)
            new[f"{kind}shift"].numpy()[len(receiver) :, 0] = APART
        given: dict[str, Any] = {f.name: getattr(batch, f.name) for f in fields(Batch)}
        segments = tuple(_moved(s, s.atoms.start, a) for s, a in starts)
        further = {name: _longer(tensor, structures, np.nan) for name, tensor in batch.further.items()}
        rows = {"segments": segments, "datasets": _datasets(batch, starts), "further": further}
        return PaddedBatch(**given | new | rows)

    def _starts(self, segments: tuple[Segment, ...]) -> tuple[list[tuple[Segment, int]], int]:
        """The first row of each segment, and the row behind the last real atom."""
        starts, first, used = [], 0, 0
        for segment in segments:
            starts.append((segment, first))
            used = first + segment.atoms.stop - segment.atoms.start
            first = -(-used // self.tile) * self.tile
        return starts, used

    def _tile_branch(self, starts: list[tuple[Segment, int]], tiles: int) -> NDArray[np.int64]:
        found = np.zeros(tiles if self.tile > 1 else 0, np.int64)
        if self.tile > 1:
            for segment, first in starts:
                last = first + segment.atoms.stop - segment.atoms.start
                found[first // self.tile : -(-last // self.tile)] = self.branches.index(segment.name)
        return found

    def _size(self, count: int) -> int:
        count = max(count, FEWEST)
        return rounded_up(count) if self.steps else count


def rounded_up(count: int) -> int:
    """The next of 1, 2, ... 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, ...: four sizes to every doubling, so that less than
    a quarter is added, a tenth on average."""
    unit = 1 << max(0, (count - 1).bit_length() - 3)
    return -(-count // unit) * unit


def tile_for(atoms: float, branches: int) -> int:
    """Atoms of a tile where batches have about so many atoms of so many branches.

    A branch leaves half a tile empty on average: with four tiles or more to a branch that is an eighth of all atoms at
    most. Every tile takes a copy of the weights of its energy head, which is why they are not smaller.
    """
    if branches == 1:
        return 1
    tile = SMALLEST_TILE
    while tile < LARGEST_TILE and 2 * tile * 4 * branches <= atoms:
        tile *= 2
    return tile


def _counts(batch: Batch) -> dict[str, int]:
    """Pairs of each kind, by what their columns begin with."""
    return {"": len(batch.receiver), "cutoff_": len(batch.cutoff_gain)}


def _longer(tensor: Tensor, rows: int, filling: float) -> Tensor:
    given = tensor.numpy()
    found = np.full((rows, *given.shape[1:]), filling, given.dtype)
    found[: len(given)] = given
    return torch.from_numpy(found)


def _spread_over(rows: range, count: int) -> NDArray[np.int64]:
    """`count` of these rows in their order, each about equally often."""
    return rows.start + np.arange(count) * len(rows) // max(1, count)


def _moved(segment: Segment, old: int, new: int) -> Segment:
    """The segment where rows that began at `old` begin at `new`."""
    atoms = slice(segment.atoms.start - old + new, segment.atoms.stop - old + new)
    return replace(segment, atoms=atoms)


def _datasets(batch: Batch, starts: list[tuple[Segment, int]]) -> tuple[Segment, ...]:
    """Each dataset moves with the branch that it lies in."""
    found = []
    for dataset in batch.datasets:
        for segment, first in starts:
            if segment.atoms.start <= dataset.atoms.start < segment.atoms.stop:
                found.append(_moved(dataset, segment.atoms.start, first))
    return tuple(found)
