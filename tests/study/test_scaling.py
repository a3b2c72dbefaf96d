"""The scaling of a study: measured once, with a prediction beside it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ramify.recipe import Recipe
from ramify.study.scaling import PLACEMENTS, measure_scaling, scaling_rows


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_scaling_is_measured_once_and_predicted(recipe: Recipe, tmp_path: Path) -> None:
    """On one process and two, in both modes and both placements; a second call measures nothing again."""
    said: list[dict[str, Any]] = []
    measure_scaling(recipe, [1, 2], tmp_path, said.append)
    rows = scaling_rows(tmp_path)
    two = {(mode, placement, 2) for mode in ("weak", "strong") for placement in PLACEMENTS}
    one = {(mode, "replicated", 1) for mode in ("weak", "strong")}
    assert {(row["mode"], row["placement"], row["ranks"]) for row in rows} == two | one
    assert [row["mode"] for row in rows] == ["weak"] * 3 + ["strong"] * 3
    assert all(row["measured"] > 0 for row in rows)
    assert all(np.isfinite(row["predicted"]) and row["predicted"] > 0 for row in rows if row["ranks"] == 2)
    measured = len(said)
    assert measured >= len(rows)
    measure_scaling(recipe, [1, 2], tmp_path, said.append)
    assert len(said) == measured
