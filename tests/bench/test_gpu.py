"""The measurements on a GPU: their parts on a CPU, and the page."""

import pytest
from benchmarks.gpu.__main__ import LIMITS
from benchmarks.gpu.page import page
from benchmarks.gpu.parts import PARTS

ROWS = {"edges": 2, "steps": 2, "loader": 3, "calculator": 2, "memory": 1}
"""Parts that need no further process, and their rows in a dry run."""


def test_the_parts_fit_into_eight_minutes() -> None:
    assert list(LIMITS) == list(PARTS)
    assert sum(LIMITS.values()) <= 480


def test_a_page_shows_rows_errors_and_other_values() -> None:
    results = {"steps": {"rows": [{"a": 1.23456, "b": "x|y"}, {"c": 2}], "error": "late"}, "machine": {"torch": "2"}}
    found = page(results, dry=True)
    assert "| a | b | c |" in found
    assert "| 1.23 | x/y |  |" in found
    assert "error: late" in found
    assert "torch: 2" in found


@pytest.mark.parametrize("part", ROWS)
def test_a_part_runs_on_a_cpu(part: str) -> None:
    found = PARTS[part](60.0, True)
    assert len(found["rows"]) == ROWS[part]
    for row in found["rows"]:
        assert not {"refused", "error"} & set(row)
        assert row.get("equal", True)
        measured = [value for name, value in row.items() if name.endswith(", ms") and not isinstance(value, str)]
        assert all(value > 0 for value in measured)
