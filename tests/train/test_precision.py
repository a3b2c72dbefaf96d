"""What steps and evaluations are computed in."""

import json
from pathlib import Path

import pytest
import torch

from ramify.checkpoint import open_checkpoint
from ramify.errors import RamifyError
from ramify.evaluate.evaluate import Evaluator
from ramify.train.precision import Precision
from ramify.train.reporting import Callbacks
from ramify.train.start import start_run

from .conftest import MakeRecipe

CPU = torch.device("cpu")


def test_tf32_is_refused_where_there_is_none(small: MakeRecipe, tmp_path: Path) -> None:
    recipe = small("qm7x", train__precision="tf32", train__device="cpu")
    with pytest.raises(RamifyError, match=r"train.precision: tf32 is for NVIDIA GPUs .* this run is on device cpu"):
        start_run(recipe, tmp_path / "run", Callbacks())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_tf32_rounds_products_inside_only() -> None:
    device = torch.device("cuda")
    x = torch.tensor([[1.0 + 2.0**-12]], device=device).expand(256, 256).contiguous()  # 10 bits hold 1 alone
    exact = 256 * (1.0 + 2.0**-12) ** 2
    with Precision("tf32", device).products():
        assert torch.allclose(x @ x, torch.tensor(256.0, device=device), rtol=1e-5)
    assert torch.allclose(x @ x, torch.tensor(exact, device=device), rtol=1e-6)


@pytest.mark.parametrize("name", ["fp32", "fp64", "bf16"])
def test_types(name: str) -> None:
    """Of a product in a forward pass, and of all else."""
    precision = Precision(name, CPU)  # type: ignore[arg-type]
    x = torch.ones(2, 2, dtype=precision.dtype)
    with precision.products(), precision.forward():
        product = (x @ x).dtype
        rest = (x + x).dtype
    expected = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16}
    assert product == expected[name]
    assert rest == (torch.float64 if name == "fp64" else torch.float32)


def test_errors_of_a_run_in_bf16_are_those_of_evaluate(small: MakeRecipe, tmp_path: Path) -> None:
    """Steps round their products, evaluations do not: what chose the best model is what `ramify evaluate` finds."""
    recipe = small("qm7x", train__precision="bf16", train__max_steps=3)
    run = tmp_path / "run"
    start_run(recipe, run, Callbacks()).fit()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    best = open_checkpoint(run / "checkpoints" / "best").step
    (logged,) = [line["datasets"]["qm7x"] for line in lines if line["kind"] == "val" and line["step"] == best]
    (found,) = Evaluator(run, split="val").evaluate()["rows"]
    for label in ("energy_mae", "forces_mae"):
        assert found[label] == pytest.approx(logged[label], rel=1e-6)
