"""Pieces of rows, against simple loops."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ramify.packing import filled, pieces_of

SIZES = st.lists(st.integers(0, 30), max_size=80)


@given(SIZES, st.integers(1, 60))
def test_pieces_of_about_a_size(sizes: list[int], about: int) -> None:
    pieces = list(pieces_of(np.array(sizes, np.int32), about))
    assert [row for piece in pieces for row in range(len(sizes))[piece]] == list(range(len(sizes)))
    expected: list[list[int]] = []
    before, number = 0, -1
    for row, size in enumerate(sizes):
        if before // about != number:
            expected.append([])
            number = before // about
        expected[-1].append(row)
        before += size
    assert [list(range(len(sizes))[piece]) for piece in pieces] == expected


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=200),
    st.one_of(st.integers(1, 300), st.just(math.inf)),
    st.one_of(st.integers(1, 300), st.just(math.inf)),
)
def test_pieces_filled_up_to_limits(rows: list[tuple[int, int]], atoms: float, edges: float) -> None:
    """Each piece keeps to both limits or is one row, and the row after it would not have fitted."""
    first, second = np.array(rows, np.int64).reshape(-1, 2).T
    expected: list[list[int]] = []
    for row, (a, b) in enumerate(rows):
        held = expected[-1] if expected else []
        if held and first[held].sum() + a <= atoms and second[held].sum() + b <= edges:
            held.append(row)
        else:
            expected.append([row])
    found = [list(range(len(rows))[piece]) for piece in filled((first, second), (atoms, edges))]
    assert found == expected


def test_sums_beyond_32_bits() -> None:
    sizes = np.full(4, 2**30, np.int32)
    assert list(pieces_of(sizes, 2**32)) == [slice(0, 4)]
    assert list(filled((sizes,), (3 * 2**30,))) == [slice(0, 3), slice(3, 4)]
