"""Cases on real processes: traffic and memory are those of the plan."""

import json
from pathlib import Path
from typing import Any

import pytest

from ramify.bench.case import Case
from ramify.bench.memory import MemoryBench, run_memory
from ramify.bench.scale import RESULT, Sweep, run_scale
from ramify.errors import RamifyError
from tests.bench.conftest import MakeRecipe


@pytest.mark.slow
def test_scale_measures_what_the_plan_says(paper: MakeRecipe, tmp_path: Path) -> None:
    """Two ranks, with a full and a sharded encoder; earlier results in the folder are kept."""
    heard: list[dict[str, Any]] = []
    other = {"mode": "strong", "placement": "auto", "ranks": 1, "branches": 1, "batch": 1}
    times = {"seconds": 1.0, "quartiles": [0.9, 1.1]}
    (tmp_path / RESULT).write_text(json.dumps({"cases": [other | times]}))
    sweep = Sweep(paper(32), [2], ["replicated", "per-branch+shard"], ["weak"], batch=2, branches=2, warmup=1, steps=3)
    content = run_scale(sweep, tmp_path, heard.append, limit=120.0)
    assert content is not None
    assert [case["placement"] for case in heard] == ["replicated", "per-branch+shard"]
    assert [case["placement"] for case in content["cases"]] == ["auto", "per-branch+shard", "replicated"]
    for case in heard:
        assert case["batch"] == 4
        assert case["structures_per_second"] == pytest.approx(4 / case["seconds"])
        assert len(case["rows"]) == 2
        for row in case["rows"]:
            assert row["traffic"] == row["planned"]["traffic"]
            assert row["traffic"]["encoder"] > 0
            assert sum(row["resident"].values()) == pytest.approx(row["planned"]["states"], rel=0.05)
            assert row["operations"] == pytest.approx(row["planned"]["operations"], rel=0.1)
            assert [size for size, _ in row["limits"]["all_reduce"]]
    assert json.loads((tmp_path / RESULT).read_text()) == content
    assert "replicated on 2" in (tmp_path / "scale.svg").read_text()
    assert (tmp_path / "scale.png").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.timeout(600)  # seven processes one after the other, 20 s where cores are free
def test_memory_of_a_rank(paper: MakeRecipe, tmp_path: Path) -> None:
    """Hosting one of three branches needs the memory of hosting the only one; hosting all three needs two branches
    more; a rank alone needs the memory that it needs among others."""
    recipe = paper(384, "optimizer.ema=0")
    content = run_memory(MemoryBench(recipe, [1, 3], check=2), tmp_path, lambda row: None, limit=120.0)
    rows = {(row["placement"], row["branches"], row["alone"]): row for row in content["rows"]}
    one, all_three, spread = (
        rows[key, count, True] for key, count in (("replicated", 1), ("replicated", 3), ("per-branch", 3))
    )
    branch = 16 * one["branch_parameters"]
    assert spread["tensors"] == one["tensors"]
    assert all_three["tensors"] - one["tensors"] == pytest.approx(2 * branch, rel=0.001)
    # the system counts whole pages, and memory of libraries: some MB, independent of the size of the model
    assert spread["process"] == pytest.approx(one["process"], abs=8e6)
    assert all_three["process"] - one["process"] == pytest.approx(2 * branch, abs=8e6)
    for row in content["rows"]:
        assert row["tensors"] == pytest.approx(row["planned"], rel=0.001)
        assert row["process"] == pytest.approx(row["planned"], abs=12e6)
    assert rows["per-branch", 2, False]["tensors"] == spread["tensors"]
    assert len(rows["per-branch", 2, False]["every_rank"]) == 2
    assert content["replicated"]["whole_branch"] == branch


def test_wrong_words_are_refused(paper: MakeRecipe, tmp_path: Path) -> None:
    recipe = paper(16)
    with pytest.raises(RamifyError, match=r"placement twice: .*auto, replicated"):
        Case.of(recipe, {}, mode="weak", placement="twice", ranks=1, batch=1, warmup=1, steps=1)
    with pytest.raises(RamifyError, match="mode middling"):
        run_scale(Sweep(recipe, [1], ["auto"], ["middling"], branches=1), tmp_path, lambda case: None, limit=10.0)
    with pytest.raises(RamifyError, match=r"placement per-branch\+shard"):
        run_memory(MemoryBench(recipe, [2], ["per-branch+shard"]), tmp_path, lambda row: None, limit=10.0)


@pytest.mark.slow
def test_a_rank_that_fails_says_why(paper: MakeRecipe, tmp_path: Path) -> None:
    """The error contains the end of its output, and no process is left waiting for it."""
    sweep = Sweep(paper(16, "train.device=xpu"), [1], ["replicated"], ["weak"], branches=1)
    with pytest.raises(RamifyError, match=r"train\.device: xpu"):
        run_scale(sweep, tmp_path, lambda case: None, limit=120.0)
