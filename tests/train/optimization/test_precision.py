"""Precision of steps and of evaluations."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from ramify.checkpoint.checkpoint import open_checkpoint
from ramify.errors import RamifyError
from ramify.evaluate.evaluate import Evaluator
from ramify.run.changes import compare
from ramify.train.optimization.precision import Precision, require_fast
from ramify.train.optimization.product_rates import ProductRates, product_rates
from ramify.train.reporting import Callbacks
from ramify.train.start import start_run
from tests.processes.processors import WITHOUT_BF16, masks_work
from tests.train.conftest import MakeRecipe

CPU = torch.device("cpu")


def test_tf32_is_refused_where_there_is_none(small: MakeRecipe, tmp_path: Path) -> None:
    """bf16 is advised only where it is faster."""
    recipe = small("qm7x", train__precision="tf32", train__device="cpu")
    with pytest.raises(RamifyError, match=r"train.precision: tf32 .*8\.0.* device cpu") as raised:
        start_run(recipe, tmp_path / "run", Callbacks())
    assert list(tmp_path.iterdir()) == []
    advice = str(raised.value).partition("fix: ")[2]
    assert "fp32" in advice
    assert ("bf16" in advice) == (product_rates(CPU).bf16 >= product_rates(CPU).fp32)


def test_bf16_is_refused_where_its_products_are_slower() -> None:
    """By the rates alone, which the message states."""
    with pytest.raises(
        RamifyError, match=r"train\.precision: bf16 .* device cpu.* 0\.9 GFLOP/s .* 50 GFLOP/s"
    ) as raised:
        require_fast(ProductRates(fp32=50e9, bf16=0.9e9), CPU)
    advice = str(raised.value).partition("fix: ")[2]
    assert all(word in advice for word in ("train.precision", "fp32", "train.slow_precision", "allow"))
    require_fast(ProductRates(fp32=50e9, bf16=50e9), CPU)
    require_fast(ProductRates(fp32=50e9, bf16=100e9), CPU)


@pytest.mark.slow
@masks_work
def test_a_processor_without_bf16(small: MakeRecipe, tmp_path: Path) -> None:
    """Refused before anything is written, unless the recipe allows slow products."""
    content = small("qm7x", train__precision="bf16", train__max_steps=1).model_dump(mode="json")
    del content["train"]["slow_precision"]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(content))
    command = [sys.executable, "-m", "ramify", "train", str(recipe), "--run", str(tmp_path / "run")]
    env = os.environ | WITHOUT_BF16

    refused = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "train.precision: bf16" in refused.stderr
    assert "train.slow_precision" in refused.stderr
    assert not (tmp_path / "run").exists()

    allowed = subprocess.run(
        [*command, "train.slow_precision=allow"], env=env, capture_output=True, text=True, check=False
    )
    assert allowed.returncode == 0, allowed.stderr
    assert open_checkpoint(tmp_path / "run/checkpoints/latest").step == 1


def test_a_run_may_go_on_where_bf16_is_slow(small: MakeRecipe) -> None:
    before, now = (small("qm7x", train__precision="bf16", train__slow_precision=word) for word in ("refuse", "allow"))
    assert list(compare(before, now, "the recipe").keys) == ["train.slow_precision"]


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
    """Steps round their products, evaluations do not: the validation errors are those of `ramify evaluate`."""
    recipe = small("qm7x", train__precision="bf16", train__slow_precision="allow", train__max_steps=3)
    run = tmp_path / "run"
    start_run(recipe, run, Callbacks()).fit()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    best = open_checkpoint(run / "checkpoints" / "best").step
    (logged,) = [line["datasets"]["qm7x"] for line in lines if line["kind"] == "val" and line["step"] == best]
    (found,) = Evaluator(run, split="val").evaluate()["rows"]
    for label in ("energy_mae", "forces_mae"):
        assert found[label] == pytest.approx(logged[label], rel=1e-6)
