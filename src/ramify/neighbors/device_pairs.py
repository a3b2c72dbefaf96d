"""Neighbour search for all structures of a batch at once by a cell list in PyTorch, on the device of the batch.

Cells are divided into bins along periodic axes, the box around the atoms along the others. The neighbours of an atom
are in its own bin and those near it, or in images of the cell where this is smaller than the radius. Atoms are sorted
by bin, and those of a bin are found by binary search, so that memory grows with the number of atoms and not of bins.
Exact for skewed cells, cells smaller than the radius and any periodicity, like `ramify.neighbors.edges` on the CPU.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ramify.packing import pieces_of

CANDIDATES_AT_ONCE = 1 << 20
"""About this many candidates (pairs of an atom and an atom in a near bin) per pass, which take about 0.2 GB."""

BINS_PER_RADIUS = 2
"""Maximum number of bins within a radius, along periodic axes: crystals then have 1.4 to 6 times fewer candidates than
with 1, and more would rather increase the number of bins to search. Molecules have so few atoms that 1 is best."""

SLACK = 1e-6
"""Fraction added to the radius when bins are chosen, much larger than rounding errors of fractional coordinates."""

MOST_BINS = 1 << 15
"""Maximum number of bins along an axis, so that numbers of bins of a large batch do not overflow."""


@dataclass(frozen=True, slots=True)
class TensorPairs:
    """P pairs of atoms within some radius, sorted by receiver.

    Attributes:
        receiver: (P,) int64, central atom.
        sender: (P,) int64, neighbouring atom.
        shift: (P, 3) float64, Å, displacement of the sender to its periodic image.
        distance: (P,) float64, Å.
    """

    receiver: Tensor
    sender: Tensor
    shift: Tensor
    distance: Tensor

    def chosen(self, which: Tensor) -> "TensorPairs":
        """The pairs with these indices or this mask."""
        return TensorPairs(self.receiver[which], self.sender[which], self.shift[which], self.distance[which])


def pairs_within(positions: Tensor, structure: Tensor, cell: Tensor, periodic: Tensor, radius: float) -> TensorPairs:
    """Finds all pairs of atoms within each structure strictly closer than `radius` (Å), images included.

    Args:
        positions: (N, 3) float64, Å.
        structure: (N,) int64, index of the structure of each atom.
        cell: (S, 3, 3) float64, Å, with a volume also where there is no periodicity
            (`ramify.neighbors.distances.complete_cells`).
        periodic: (S, 3) bool, axes with periodicity.
        radius: Å.
    """
    bins = _Bins.of(positions, structure, cell, periodic, radius)
    parts = [_closer(candidates, positions, structure, cell, radius) for candidates in bins.candidates(structure)]
    return TensorPairs(
        torch.cat([part.receiver for part in parts]),
        torch.cat([part.sender for part in parts]),
        torch.cat([part.shift for part in parts]),
        torch.cat([part.distance for part in parts]),
    )


@dataclass(frozen=True, slots=True)
class _Candidates:
    """C pairs of atoms of near bins: receiver and sender (C,), and lattice steps of the sender (C, 3) int64."""

    receiver: Tensor
    sender: Tensor
    steps: Tensor


@dataclass(frozen=True, slots=True)
class _Bins:
    """The bins of N atoms of S structures.

    Attributes:
        periodic: (S, 3) bool.
        counts: (S, 3) int64, bins along each axis.
        reach: (S, 3) int64, bins to search in both directions.
        first: (S,) int64, number of the first bin of each structure.
        place: (N, 3) int64, bin of each atom along each axis.
        wraps: (N, 3) int64, lattice steps subtracted from each atom to wrap it into the cell.
        order: (N,) int64, the atoms sorted by the number of their bin.
        number: (N,) int64, the number of the bin of each atom in this order.
    """

    periodic: Tensor
    counts: Tensor
    reach: Tensor
    first: Tensor
    place: Tensor
    wraps: Tensor
    order: Tensor
    number: Tensor

    @classmethod
    def of(cls, positions: Tensor, structure: Tensor, cell: Tensor, periodic: Tensor, radius: float) -> "_Bins":
        """Divides cells into bins and sorts the atoms into them."""
        width = radius * (1 + SLACK)
        inverse = torch.linalg.inv(cell)
        heights = 1 / torch.linalg.vector_norm(inverse, dim=1)  # distances between opposite faces
        fraction = torch.einsum("nc,nck->nk", positions, inverse[structure])
        wraps = torch.floor(fraction) * periodic[structure]
        fraction = fraction - wraps
        rows = structure[:, None].expand(-1, 3)
        lowest = torch.full_like(heights, torch.inf).scatter_reduce(0, rows, fraction, "amin")
        extent = torch.full_like(heights, -torch.inf).scatter_reduce(0, rows, fraction, "amax") - lowest
        lowest = torch.where(periodic, 0.0, lowest)
        density = torch.where(  # bins per lattice vector
            periodic,
            torch.floor(BINS_PER_RADIUS * heights / width).clamp(1, MOST_BINS),
            torch.minimum(heights / width, MOST_BINS / extent.clamp(min=1e-300)),
        )
        counts = torch.where(periodic, density, torch.floor(extent * density) + 1).long()
        place = torch.floor((fraction - lowest[structure]) * density[structure]).long()
        place = torch.minimum(place, counts[structure] - 1)  # a fraction just below 0 is 1 after wrapping
        reach = torch.ceil(width * density / heights - 1e-9).long()  # rounding must not add another bin
        reach = torch.where(periodic, reach, torch.minimum(reach, counts - 1))
        size = counts.prod(dim=1)
        first = size.cumsum(0) - size
        number = _number(first[structure], place, counts[structure])
        number, order = number.sort(stable=True)
        return cls(periodic, counts, reach, first, place, wraps.long(), order, number)

    def candidates(self, structure: Tensor) -> Iterator[_Candidates]:
        """All pairs of atoms of near bins, in parts with ascending receivers."""
        per_atom = (2 * self.reach + 1).prod(dim=1)
        atoms = torch.zeros_like(self.first).index_add(0, structure, torch.ones_like(structure))
        in_a_bin = 1 + atoms // self.counts.prod(dim=1)
        for piece in pieces_of((per_atom * in_a_bin)[structure].cpu().numpy(), CANDIDATES_AT_ONCE):
            receiver = torch.arange(piece.start, piece.stop, device=structure.device)
            receiver, which = _repeated(receiver, per_atom[structure[piece]])
            yield self._in_bins(receiver, structure[receiver], which)

    def _in_bins(self, atom: Tensor, structure: Tensor, which: Tensor) -> _Candidates:
        """The atoms in one near bin of each of `atom` (R,), that with the number `which` (R,)."""
        counts, reach = self.counts[structure], self.reach[structure]
        _, y, z = (2 * reach + 1).unbind(1)
        offset = torch.stack([which // (y * z), which // z % y, which % z], 1) - reach
        place = self.place[atom] + offset
        steps = torch.where(self.periodic[structure], torch.div(place, counts, rounding_mode="floor"), 0)
        place = place - steps * counts
        exists = ((place >= 0) & (place < counts)).all(dim=1)
        number = _number(self.first[structure], place, counts)
        begin = torch.searchsorted(self.number, number)
        end = torch.searchsorted(self.number, number, right=True)
        row, k = _repeated(torch.arange(len(atom), device=atom.device), torch.where(exists, end - begin, 0))
        receiver, sender = atom[row], self.order[begin[row] + k]
        return _Candidates(receiver, sender, steps[row] - self.wraps[sender] + self.wraps[receiver])


def _number(first: Tensor, place: Tensor, counts: Tensor) -> Tensor:
    """Number of a bin among those of all structures, from its place along each axis."""
    return first + (place[:, 0] * counts[:, 1] + place[:, 1]) * counts[:, 2] + place[:, 2]


def _repeated(values: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Every value as often as its count says, and 0, 1, ... count - 1 for its repetitions."""
    rows = torch.repeat_interleave(counts)
    first = counts.cumsum(0) - counts
    return values[rows], torch.arange(len(rows), device=rows.device) - first[rows]


def _closer(candidates: _Candidates, positions: Tensor, structure: Tensor, cell: Tensor, radius: float) -> TensorPairs:
    """The candidates strictly closer than the radius, without atoms paired with themselves."""
    receiver, sender, steps = candidates.receiver, candidates.sender, candidates.steps
    shift = torch.einsum("pk,pkc->pc", steps.to(cell.dtype), cell[structure[receiver]])
    distance = torch.linalg.vector_norm(positions[sender] - positions[receiver] + shift, dim=1)
    other = (receiver != sender) | (steps != 0).any(dim=1)
    return TensorPairs(receiver, sender, shift, distance).chosen(torch.nonzero((distance < radius) & other)[:, 0])
