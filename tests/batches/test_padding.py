"""Padded batches for compiled steps: real rows do not change, added rows have no effect."""

import math

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from hypothesis import given
from hypothesis import strategies as st

from ramify.batches.batch import Batch, BatchPart, Segment
from ramify.batches.padding import FEWEST, PaddedBatch, Padding, rounded_up, tile_for
from ramify.neighbors.edges import find_edges
from ramify.structures import Structures

BRANCHES = ("alloys", "unused", "molecules")
SAME = ("numbers", "positions", "forces", "atom_cutoff")
PAIRS = ("", "cutoff_")


def part(dataset: str, branch: str, images: list[Atoms]) -> BatchPart:
    for atoms in images:
        atoms.calc = SinglePointCalculator(atoms, energy=1.0, forces=np.ones((len(atoms), 3)))
    structures = Structures.from_ase(images)
    return BatchPart(dataset, branch, structures, find_edges(structures, 4.0, 8), np.zeros(119))


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Three datasets of two branches; 9 + 11 and 10 atoms."""
    copper = bulk("Cu", cubic=True)
    copper.rattle(0.1, rng=np.random.default_rng(0))
    parts = [
        part("cu", "alloys", [copper, Atoms("He")]),
        part("nacl", "alloys", [bulk("NaCl", "rocksalt", a=5.6) * (1, 1, 2)]),
        part("organic", "molecules", [molecule("CH3CH2OH"), molecule("H2O"), molecule("N2")]),
    ]
    return Batch.make(parts, torch.float64)


def assert_equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    """To the bit; labels may be absent."""
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def rows_of(padded: Batch, segments: tuple[Segment, ...]) -> torch.Tensor:
    return torch.cat([torch.arange(s.atoms.start, s.atoms.stop) for s in segments])


@pytest.mark.parametrize("tile", [1, 4, 8, 64])
@pytest.mark.parametrize("steps", [False, True])
def test_what_is_real_stays(batch: Batch, tile: int, steps: bool) -> None:
    padded = Padding(BRANCHES, tile, steps)(batch)
    rows = rows_of(padded, padded.segments)
    assert torch.equal(rows, rows_of(padded, padded.datasets))
    for name in SAME:
        assert_equal(getattr(padded, name)[rows], getattr(batch, name))
    assert torch.equal(padded.structure[rows], batch.structure)
    for kind in PAIRS:
        count = len(getattr(batch, f"{kind}receiver"))
        for end in ("receiver", "sender"):
            assert torch.equal(getattr(padded, kind + end)[:count], rows[getattr(batch, kind + end)])
        assert torch.equal(getattr(padded, f"{kind}shift")[:count], getattr(batch, f"{kind}shift"))
    for name in ("n_atoms", "volume", "energy", "stress"):
        assert_equal(getattr(padded, name)[: len(batch.n_atoms)], getattr(batch, name))
    assert [(s.name, s.structures) for s in padded.segments] == [(s.name, s.structures) for s in batch.segments]
    assert [(s.name, s.structures) for s in padded.datasets] == [(s.name, s.structures) for s in batch.datasets]


@pytest.mark.parametrize("tile", [1, 4, 8, 64])
@pytest.mark.parametrize("steps", [False, True])
def test_what_is_added_touches_nothing(batch: Batch, tile: int, steps: bool) -> None:
    padded = Padding(BRANCHES, tile, steps)(batch)
    added = torch.ones(len(padded.numbers), dtype=torch.bool)
    added[rows_of(padded, padded.segments)] = False
    assert added[-1]
    assert (padded.structure[added] >= len(batch.n_atoms)).all()
    assert padded.forces[added].isnan().all()
    assert padded.energy[len(batch.n_atoms) :].isnan().all()
    assert padded.stress[len(batch.n_atoms) :].isnan().all()
    assert (padded.volume[len(batch.n_atoms) :] == 0).all()
    assert (padded.n_atoms > 0).all()
    for kind in PAIRS:
        receiver, sender = getattr(padded, f"{kind}receiver"), getattr(padded, f"{kind}sender")
        new = slice(len(getattr(batch, f"{kind}receiver")), None)
        assert (receiver.diff() >= 0).all()
        assert added[receiver[new]].all()
        assert torch.equal(receiver[new], sender[new])
        assert (getattr(padded, f"{kind}shift")[new].norm(dim=1) > padded.atom_cutoff[receiver[new]]).all()
        assert len(receiver) >= FEWEST
    assert (padded.cutoff_gain[len(batch.cutoff_gain) :] == 0).all()


def test_every_tile_belongs_to_one_branch(batch: Batch) -> None:
    padded = Padding(BRANCHES, 4)(batch)
    assert len(padded.numbers) == 4 * len(padded.tile_branch)
    for segment in padded.segments:
        of_atoms = padded.tile_branch.repeat_interleave(4)[segment.atoms]
        assert (of_atoms == BRANCHES.index(segment.name)).all()


def test_sizes_of_0_and_1_do_not_occur() -> None:
    """A compiler would make programs of their own for them."""
    alone = Batch.make([part("he", "alloys", [Atoms("He")])], torch.float32)
    assert len(alone.receiver) == 0
    for tile in (1, 8):
        padded = Padding(BRANCHES, tile)(alone)
        assert min(len(t) for name, t in padded.tensors().items() if tile > 1 or name != "tile_branch") >= FEWEST


def test_it_goes_where_batches_go(batch: Batch) -> None:
    padded = Padding(BRANCHES, 4)(batch)
    moved = padded.to("cpu")
    assert isinstance(moved, PaddedBatch)
    assert moved.tensors().keys() == batch.tensors().keys() | {"tile_branch"}


@given(st.integers(1, 10**7), st.integers(1, 10**7))
def test_sizes_are_few_and_close(count: int, other: int) -> None:
    """At most a quarter more, four sizes to a doubling, in order."""
    size = rounded_up(count)
    assert count <= size < 1.25 * count + 1
    assert rounded_up(size) == size
    assert (rounded_up(other) <= size) or other > count
    below = {rounded_up(n) for n in range(1, min(count, 2000) + 1)}
    assert len(below) <= 4 * math.log2(max(2, min(count, 2000))) + 4


@pytest.mark.parametrize(("atoms", "branches", "tile"), [(220, 5, 8), (3000, 5, 128), (1e6, 5, 256), (3000, 1, 1)])
def test_tiles_by_the_size_of_batches(atoms: float, branches: int, tile: int) -> None:
    assert tile_for(atoms, branches) == tile
