"""Padding of batches for a compiled step, so that programs compiled for a few sizes can be used for all batches.

Padding rows only change sizes:
    atoms        of one dummy structure, after the others and, where segments fill whole tiles, after each segment;
                 only padding edges refer to them
    edges        of a padding atom to an image of itself at distance `EDGE_LENGTH`, beyond its cutoff: their
                 weights, messages and derivatives are exactly zero
    cutoff pairs the same, with gain 0
    structures   without labels and without a cell
    slots        of neighbours
Segments and datasets contain only real rows, so that losses and errors exclude padding. The order of rows is preserved,
and edges stay sorted by receiver. Results of real atoms are equal to those without padding, within rounding.
"""

from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ramify.batches.batch import Batch, Segment

EDGE_LENGTH, ATOM_CUTOFF = 2.0, 1.0
"""Å: length of a padding edge, and cutoff of a padding atom; arbitrary, but the first must be larger."""

FEWEST = 2
"""Minimum number of rows of each kind in a padded batch: compilers specialise programs for sizes 0 and 1."""

SMALLEST_TILE, LARGEST_TILE = 8, 256
"""Atoms per tile. Matrix products are slower with smaller tiles, and not faster with larger ones."""


@dataclass(frozen=True, slots=True)
class PaddedBatch(Batch):
    """A batch with rows that belong to no segment.

    Attributes:
        tile_branch: (K,) int64, index (in `Padding.branches`) of the branch of each tile of N / K atoms; 0 for tiles
            without real atoms. Empty (K = 0) with tiles of one atom.
    """

    tile_branch: Tensor = field(kw_only=True)


@dataclass(frozen=True, slots=True)
class Padding:
    """Pads batches.

    Attributes:
        branches: names of all branches that may occur.
        tile: atoms per tile; every segment is padded to whole tiles.
        steps: whether sizes are rounded up by `rounded_up`, so that few different sizes occur.
    """

    branches: tuple[str, ...]
    tile: int = 1
    steps: bool = False

    def __call__(self, batch: Batch) -> PaddedBatch:
        """Pads a batch, on its device."""
        starts, used = self._starts(batch.segments)
        size = {name: self._size(count) for name, count in _counts(batch).items()}
        tiles = self._size(-(-(used + 1) // self.tile))  # at least one padding atom at the end
        atoms, structures = tiles * self.tile, self._size(len(batch.n_atoms) + 1)
        move = np.concatenate([np.arange(s.atoms.start, s.atoms.stop) - s.atoms.start + a for s, a in starts])
        added = range(used, atoms)

        def by_atom(tensor: Tensor, filling: float) -> Tensor:
            return _placed(tensor, move, atoms, filling)

        new: dict[str, Tensor] = {
            "numbers": by_atom(batch.numbers, 1),
            "positions": by_atom(batch.positions, 0.0),
            "structure": by_atom(batch.structure, structures - 1),
            "forces": by_atom(batch.forces, np.nan),
            "atom_cutoff": by_atom(batch.atom_cutoff, ATOM_CUTOFF),
            "n_atoms": _longer(batch.n_atoms, structures, 1.0),
            "volume": _longer(batch.volume, structures, 0.0),
            "energy": _longer(batch.energy, structures, np.nan),
            "stress": _longer(batch.stress, structures, np.nan),
            "slots": _on(batch.slots.device, np.arange(self._size(len(batch.slots)))),
            "cutoff_gain": _longer(batch.cutoff_gain, size["cutoff_"], 0.0),
            "tile_branch": _on(batch.slots.device, self._tile_branch(starts, tiles)),
        }
        if batch.conditions is not None:
            new["conditions"] = _longer(batch.conditions, structures, 0.0)
        for kind, count in size.items():
            for end in ("receiver", "sender"):
                rows = getattr(batch, kind + end)
                new[kind + end] = _moved_ends(rows, move, _spread_over(added, count - len(rows)))
            new[f"{kind}shift"] = _longer(getattr(batch, f"{kind}shift"), count, (EDGE_LENGTH, 0.0, 0.0))
        given: dict[str, Any] = {f.name: getattr(batch, f.name) for f in fields(Batch)}
        segments = tuple(_moved(s, s.atoms.start, a) for s, a in starts)
        further = {name: _longer(tensor, structures, np.nan) for name, tensor in batch.further.items()}
        rows = {"segments": segments, "datasets": _datasets(batch, starts), "further": further}
        return PaddedBatch(**given | new | rows)

    def _starts(self, segments: tuple[Segment, ...]) -> tuple[list[tuple[Segment, int]], int]:
        """First row of each segment, and the row after the last real atom."""
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
    """Rounds up to the next of 1, 2, ... 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, ...: four sizes per factor of two, so
    that less than a quarter is added, a tenth on average."""
    unit = 1 << max(0, (count - 1).bit_length() - 3)
    return -(-count // unit) * unit


def tile_for(atoms: float, branches: int) -> int:
    """Atoms per tile for batches of about `atoms` atoms and `branches` branches.

    A branch leaves half a tile empty on average: with at least four tiles per branch, this is at most an eighth of all
    atoms. Tiles are not smaller because each one needs a copy of the weights of its energy head.
    """
    if branches == 1:
        return 1
    tile = SMALLEST_TILE
    while tile < LARGEST_TILE and 2 * tile * 4 * branches <= atoms:
        tile *= 2
    return tile


def _counts(batch: Batch) -> dict[str, int]:
    """Number of pairs of each kind, by the prefix of their columns."""
    return {"": len(batch.receiver), "cutoff_": len(batch.cutoff_gain)}


def _longer(tensor: Tensor, rows: int, filling: float | tuple[float, ...]) -> Tensor:
    return _placed(tensor, np.arange(len(tensor)), rows, filling)


def _placed(tensor: Tensor, at: NDArray[np.int64], rows: int, filling: float | tuple[float, ...]) -> Tensor:
    """The rows of a tensor at the places `at` among `rows` rows, of which the others contain `filling`."""
    shape = (rows, *tensor.shape[1:])
    if tensor.is_cpu:  # by NumPy: PyTorch would start a thread pool for each thread that makes batches
        given = tensor.numpy()
        found = np.full(shape, filling, given.dtype)
        found[at] = given
        return torch.from_numpy(found)
    return tensor.new_tensor(filling).expand(shape).clone().index_copy_(0, _on(tensor.device, at), tensor)


def _moved_ends(ends: Tensor, move: NDArray[np.int64], added: NDArray[np.int64]) -> Tensor:
    """The atoms `ends` at their new places, followed by those of the padding."""
    if ends.is_cpu:
        return torch.from_numpy(np.concatenate([move[ends.numpy()], added]))
    return torch.cat([_on(ends.device, move)[ends], _on(ends.device, added)])


def _on(device: torch.device, array: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(array).to(device)


def _spread_over(rows: range, count: int) -> NDArray[np.int64]:
    """Repeats rows in order to `count` rows, each about equally often."""
    return rows.start + np.arange(count) * len(rows) // max(1, count)


def _moved(segment: Segment, old: int, new: int) -> Segment:
    """Moves a segment by `new` - `old` rows."""
    atoms = slice(segment.atoms.start - old + new, segment.atoms.stop - old + new)
    return replace(segment, atoms=atoms)


def _datasets(batch: Batch, starts: list[tuple[Segment, int]]) -> tuple[Segment, ...]:
    """Segments of datasets, moved with the segments of their branches."""
    found = []
    for dataset in batch.datasets:
        for segment, first in starts:
            if segment.atoms.start <= dataset.atoms.start < segment.atoms.stop:
                found.append(_moved(dataset, segment.atoms.start, first))
    return tuple(found)
