"""Chunks contain all records, keep their limit, and unusable records are listed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramify.sources import chunks
from ramify.sources.quarantine import Quarantine, ranges
from ramify.structures import Structures


def record(n: int, row: int = 0, **changes: Any) -> chunks.Record:
    values: dict[str, Any] = {
        "numbers": np.full(n, 1 + row % 90),
        "positions": np.arange(3.0 * n).reshape(n, 3) + row,
        "energy": -float(row),
        "forces": np.full((n, 3), 0.5 * row),
        "group": f"g{row % 3}",
        "origin": f"file{row % 2}",
        "row": row,
    }
    return chunks.Record(**values | changes)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 60))
def test_chunked_and_merged_keep_everything_in_order(sizes: list[int], limit: int) -> None:
    before, chunks.CHUNK_ATOMS = chunks.CHUNK_ATOMS, limit
    try:
        parts = list(chunks.chunked((record(n, i) for i, n in enumerate(sizes)), Quarantine()))
        singles = [part.take([i]) for part in parts for i in range(len(part))]
        merged = list(chunks.merged([Structures.make(n_atoms=[], numbers=[], positions=np.zeros((0, 3))), *singles]))
    finally:
        chunks.CHUNK_ATOMS = before
    for found in (parts, merged):
        assert all(len(part.numbers) <= limit or len(part) == 1 for part in found)
        whole = Structures.concatenate(found)
        assert whole.n_atoms.tolist() == sizes
        assert whole.row.tolist() == list(range(len(sizes)))
        assert [whole.name(i) for i in range(len(sizes))] == [f"file{i % 2}[{i}]" for i in range(len(sizes))]
        assert [whole.group_names[g] for g in whole.group] == [f"g{i % 3}" for i in range(len(sizes))]
        np.testing.assert_array_equal(whole.forces[:, 0], np.repeat(np.arange(len(sizes)) * 0.5, sizes))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"positions": np.zeros((2, 3))}, "malformed structure"),
        ({"positions": np.full((3, 3), np.nan)}, "malformed structure"),
        ({"numbers": np.array([1, 0, 1])}, "malformed structure"),
        ({"numbers": np.array([1, 119, 1])}, "malformed structure"),
        ({"energy": None}, "label not computed"),
        ({"energy": np.nan}, "non-finite label"),
        ({"forces": np.full((3, 3), np.inf)}, "non-finite label"),
        ({"forces": np.zeros((2, 3))}, "malformed forces"),
        ({"stress": np.zeros(6)}, "malformed stress"),
        ({"pbc": [True, True, True]}, "periodic without a cell"),
        ({"pbc": [True, False, True], "cell": np.diag([4.0, 4.0, 0.0])}, "periodic without a cell"),
    ],
)
def test_unusable_records_are_quarantined(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    with Quarantine(tmp_path / "q.jsonl") as quarantine:
        (kept,) = chunks.chunked([record(3, 0), record(3, 7, **changes)], quarantine)
    assert kept.row.tolist() == [0]
    assert quarantine.counts == {reason: 1}
    assert json.loads((tmp_path / "q.jsonl").read_text())["record"] == "file1[7]"


def test_absent_forces_are_nan_and_absent_cell_is_zero() -> None:
    (kept,) = chunks.chunked([record(2, 1, forces=None), record(1, 2)], Quarantine())
    assert np.isnan(kept.forces[:2]).all()
    assert (kept.forces[2] == 1.0).all()
    assert not kept.cell.any()
    assert not kept.pbc.any()


def test_slab_may_have_no_vector_along_its_open_axis() -> None:
    slab = record(1, 0, pbc=[True, True, False], cell=np.diag([4.0, 5.0, 0.0]))
    (kept,) = chunks.chunked([slab], Quarantine())
    assert kept.pbc.tolist() == [[True, True, False]]


def test_composition_is_the_hill_formula() -> None:
    assert chunks.composition(np.array([8, 1, 6, 1, 6, 1, 1, 1, 1])) == "C2H6O"
    assert chunks.composition(np.array([11, 17], np.uint8)) == "ClNa"


@given(st.sets(st.integers(0, 60)))
def test_ranges_can_be_read_back(rows: set[int]) -> None:
    found: set[int] = set()
    for part in filter(None, ranges(np.array(sorted(rows), int)).split(",")):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    assert found == rows


def test_one_quarantine_line_may_stand_for_many_rows(tmp_path: Path) -> None:
    with Quarantine(tmp_path / "q.jsonl") as quarantine:
        quarantine.add("f.h5/C2H6[0-4,9]", "label not computed", count=6)
        quarantine.add("f.h5/CH4[1]", "label not computed")
    assert quarantine.counts == {"label not computed": 7}
    assert quarantine.total == 7
    lines = [json.loads(line) for line in (tmp_path / "q.jsonl").read_text().splitlines()]
    assert [line.get("count", 1) for line in lines] == [6, 1]


@pytest.mark.parametrize("number", [-1, 256, 300])
def test_an_atomic_number_is_never_wrapped_round(number: int) -> None:
    """-1 and 300 would become 255 and 44 (Ru) in a column of bytes."""
    with pytest.raises(ValueError, match=f"{number}"):
        Structures.make(n_atoms=[2], numbers=[8, number], positions=np.zeros((2, 3)))
