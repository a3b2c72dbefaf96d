"""An order of very many rows: each once, in a stretch or one by one, and as good as shuffled."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramify.batches import permutation, sampler
from ramify.batches.permutation import STRETCH, LargePermutation
from ramify.batches.sampler import BatchSampler


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5000), st.integers(0, 2**128 - 1))
def test_every_row_comes_once(size: int, key: int) -> None:
    order = LargePermutation(size, key).rows(0, size)
    np.testing.assert_array_equal(np.sort(order), np.arange(size))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 300), st.lists(st.tuples(st.integers(0, 299), st.integers(0, 200)), max_size=8))
def test_any_stretch_is_part_of_the_whole(size: int, stretches: list[tuple[int, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(permutation, "STRETCH", 16)
        order = LargePermutation(size, 7)
        whole = order.rows(0, size)
        for start, count in stretches:
            start = min(start, size)
            count = min(count, size - start)
            np.testing.assert_array_equal(order.rows(start, count), whole[start : start + count])


def test_it_looks_shuffled() -> None:
    """Statistics of random permutations: fixed points, ascents, correlation of place and row, and of neighbours; and
    the places of the first rows of many permutations."""
    n = 200_000
    order = LargePermutation(n, 12345).rows(0, n)
    assert (order == np.arange(n)).sum() < 10  # 1 expected
    assert (np.diff(order) > 0).mean() == pytest.approx(0.5, abs=0.005)
    for other in (np.arange(n), np.roll(order, 1), np.roll(order, 2), np.arange(n) & 0xFF):
        assert abs(np.corrcoef(order, other)[0, 1]) < 0.012  # 5 standard deviations
    places = np.array([LargePermutation(1000, key << 64 | key).rows(0, 3) for key in range(3000)])
    counts = np.histogram(places, bins=20, range=(0, 1000))[0]
    expected = places.size / 20
    assert ((counts - expected) ** 2 / expected).sum() < 45  # chi² of 19 degrees: 0.1 % lie beyond 43.8
    assert not np.array_equal(LargePermutation(1000, 1).rows(0, 99), LargePermutation(1000, 1 << 64).rows(0, 99))


def test_streams_of_large_datasets_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row once in each pass, another order in the next, the same from anywhere; small ones stay as they were."""
    sizes = {"large": 3 * STRETCH // 2, "small": 100}
    monkeypatch.setattr(sampler, "LARGE", 1000)
    found = BatchSampler(sizes, {"large": 1.0, "small": 1.0}, 64, 3)
    first, second = (found.rows("large", lap * sizes["large"], sizes["large"]) for lap in (0, 1))
    for lap in (first, second):
        np.testing.assert_array_equal(np.sort(lap), np.arange(sizes["large"]))
    assert (first != second).mean() > 0.99
    start = sizes["large"] - 50
    np.testing.assert_array_equal(found.rows("large", start, 100), np.concatenate([first[-50:], second[:50]]))
    monkeypatch.setattr(sampler, "LARGE", 10**9)
    shuffled = BatchSampler(sizes, {"large": 1.0, "small": 1.0}, 64, 3)
    np.testing.assert_array_equal(shuffled.rows("small", 0, 100), found.rows("small", 0, 100))
    assert not np.array_equal(shuffled.rows("large", 0, 100), first[:100])
