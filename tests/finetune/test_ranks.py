"""Fine-tuning on two processes takes the steps that one takes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ramify.finetune.resolve import FinetuneRequest
from ramify.finetune.run import finetune
from ramify.parallel.world import World
from ramify.train.reporting import Callbacks
from tests.processes.worlds import run_world
from tests.small import make_recipe, tensors, train

from .conftest import assert_same, predictions, prepare_entries, recipe_for

pytestmark = pytest.mark.timeout(300)


def tuned(rank: int, folder: Path, base: Path, path: Path, mode: str, datasets: tuple[str, ...], world: int) -> Any:
    """A fine-tuning as one of `world` ranks; the rows of its report on the first."""
    changes: dict[str, Any] = {"train__precision": "fp64"}
    if world > 1:
        changes["parallel__placement"] = "per-branch" if len(datasets) > 1 else "replicated"
    ranks = World(rank=rank, size=world)
    request = FinetuneRequest(mode, str(base), "ani1x", 4)
    found = finetune(request, recipe_for(folder, *datasets, **changes), path, Callbacks(), world=ranks)
    found.fit()
    return found.report.to_dict() if found.report is not None else None


@pytest.fixture(scope="module")
def base(folder: Path) -> Path:
    """The model in float64."""
    entries = {name: prepare_entries(folder)[name] for name in ("ani1x", "mptrj")}
    changes = {"model__force_head__kind": "conservative", "train__precision": "fp64", "train__max_steps": 4}
    train(make_recipe(folder, entries, **changes), folder / "exact")
    return folder / "exact"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "datasets"), [("lora", ("qm7x",)), ("frozen-encoder", ("qm7x",)), ("replay", ("qm7x", "ani1x", "mptrj"))]
)
def test_two_processes(folder: Path, base: Path, tmp_path: Path, mode: str, datasets: tuple[str, ...]) -> None:
    """Weights, moments and the errors before and after; the branches that are carried along, to the bit."""
    alone = tuned(0, folder, base, tmp_path / "one", mode, datasets, 1)
    together = run_world(2, tuned, folder, base, tmp_path / "two", mode, datasets, 2)
    assert together[1] is None
    for when in ("before", "after"):
        for one, two in zip(alone[when], together[0][when], strict=True):
            assert (one["branch"], one["dataset"], one["trained"]) == (two["branch"], two["dataset"], two["trained"])
            assert two["energy_mae"] == pytest.approx(one["energy_mae"], rel=1e-9)
            assert two["forces_mae"] == pytest.approx(one["forces_mae"], rel=1e-9)
    found, expected = tensors(tmp_path / "two"), tensors(tmp_path / "one")
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-9, atol=1e-12, msg=name)
    if mode == "frozen-encoder":
        assert_same(predictions(tmp_path / "two"), predictions(base))
