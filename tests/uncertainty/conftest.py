"""Small runs in float64 with error bars."""

from pathlib import Path

import pytest
import torch

from ramify.uncertainty.calibrate import calibrate_run
from tests.small import make_recipe, prepare_stores, train


@pytest.fixture(scope="session")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs `direct` and `conservative` of branches ani1x and bare (water without forces)."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("uncertainty")
    entries = prepare_stores(folder)
    chosen = {name: entries[name] for name in ("ani1x", "bare")}
    for kind in ("direct", "conservative"):
        changes = {"model__force_head__kind": kind, "train__precision": "fp64", "train__max_steps": 20}
        train(make_recipe(folder, chosen, **changes), folder / kind)
        calibrate_run(folder / kind, directions=1000)  # more than there are: exact
    return folder
