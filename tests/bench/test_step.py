"""A step compared with the matrix product of the machine: operations, times and memory."""

import json
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from ramify.bench.limits import PRODUCT, SLOW_PRODUCT
from ramify.bench.profiling.phases import PHASES
from ramify.bench.step import RESULT, StepBench, chosen, run_bench, run_case
from ramify.bench.text import step_lines
from ramify.errors import RamifyError
from ramify.files import read_json, write_json
from ramify.model import compiled
from ramify.planning.workload import StatedSize
from tests.bench.conftest import MakeRecipe
from tests.processes.processors import WITHOUT_BF16, masks_work

SIZE = {"qm7x": StatedSize(structures=1000, atoms=12, neighbors=8)}


@pytest.mark.slow
def test_a_step_by_phase_beside_the_machines_product(paper: MakeRecipe, tmp_path: Path) -> None:
    """Direct forces with two message layers; operations against the equation of `ramify.planning.model_profile`,
    times three (forward and backward), less the derivatives with respect to inputs, which are not computed."""
    recipe = paper(60, "train.batch=4", "model.encoder.vector_channels=8")
    heard: list[dict[str, Any]] = []
    bench = StepBench(recipe, ["qm7x"], SIZE, ["fp32", "bf16"], ["direct"], warmup=1, steps=3, profile=True)
    content = run_bench(bench, tmp_path, heard.append, limit=600.0)
    assert json.loads((tmp_path / RESULT).read_text()) == content == {"cases": heard}
    assert [case["precision"] for case in heard] == ["fp32", "bf16"]
    for case in heard:
        assert case["structures"] == 4
        assert case["quartiles"][0] <= case["seconds"] <= case["quartiles"][1]
        assert list(case["phases"]) == list(PHASES)
        assert case["phases"]["encoder"] > 0
        assert case["phases"]["backward"] > 0
        assert case["phases"]["optimizer"] > 0
        assert case["phases"]["forces"] == 0
        assert case["memory"]["peak"] > case["memory"]["step"] > 0
        F, C, R, W = 60, 8, 8, 60
        forward_atom = 2 * F**2 + 9 * C**2 + (2 * F + C) * F + F * (F + C)
        forward_atom += 2 * (F * W + 2 * W**2) + W + F + W * C + 3 * C
        edge = 2 * 2 * R * F + 3 * F**2 + 3 * F * C  # distances need no derivative: direct forces
        for row in case["rows"]:
            counted = row["operations"] / 2
            assert counted == pytest.approx(3 * forward_atom * row["atoms"] + edge * row["edges"], rel=0.02)
            assert row["product"] > 0
        ratios = [row["operations"] / row["seconds"] / row["product"] for row in case["rows"]]
        assert case["ratio"] == pytest.approx(median(ratios))
        assert len(case["most_expensive"]) == 10
        assert sum(row["share"] for row in case["most_expensive"]) < 1
        assert Path(case["trace"]).stat().st_size > 1000


@pytest.mark.slow
@masks_work
def test_slow_products_are_measured_on_less(paper: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a processor without bfloat16 instructions, with a note."""
    for name, value in WITHOUT_BF16.items():
        monkeypatch.setenv(name, value)
    recipe = paper(16, "train.batch=2")
    bench = StepBench(recipe, ["qm7x"], SIZE, ["fp32", "bf16"], ["direct"], warmup=0, steps=1)
    cases = run_bench(bench, tmp_path, lambda case: None, limit=600.0)["cases"]
    sizes = {case["precision"]: case["product_size"] for case in cases}
    assert sizes == {"fp32": PRODUCT, "bf16": SLOW_PRODUCT}
    for case in cases:
        said = [line for line in step_lines(case) if str(SLOW_PRODUCT) in line and "slower" in line]
        assert len(said) == (case["precision"] == "bf16")


@pytest.mark.slow
def test_conservative_forces_are_a_phase_and_checkpointing_is_not_counted(paper: MakeRecipe, tmp_path: Path) -> None:
    found = {}
    for kind in ("none", "layers"):
        recipe = paper(32, "train.batch=2", f"train.checkpointing={kind}")
        bench = StepBench(recipe, ["qm7x"], SIZE, [], ["conservative"], warmup=1, steps=1)
        (found[kind],) = run_bench(bench, tmp_path, lambda case: None, limit=600.0)["cases"]
    assert found["none"]["phases"]["forces"] > 0
    assert found["none"]["operations"] == found["layers"]["operations"]
    assert [found[kind]["checkpointing"] for kind in found] == ["none", "layers"]


def test_wrong_datasets_are_named(paper: MakeRecipe) -> None:
    with pytest.raises(RamifyError, match=r"--datasets qm9: .*ani1x, qm7x"):
        chosen(paper(16), ["qm9"])
    weighed = paper(16, "objective.weights={qm7x: 2.0, mptrj: 3.0}", "train.sampling={mptrj: 2.0}")
    one = chosen(weighed, ["qm7x"])
    assert (list(one.datasets), one.objective.weights, one.train.sampling) == (["qm7x"], {"qm7x": 2.0}, "proportional")


@pytest.mark.slow
def test_a_compiled_step(paper: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a program that needs no compiler; operations are those of the batch without padding."""
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    rows = {}
    for mode in ("none", "default"):
        recipe = paper(16, "train.batch=2", f"train.compile={mode}", "train.threads=1")
        (case,) = StepBench(recipe, ["qm7x"], SIZE, [], ["conservative"], warmup=1, steps=2).cases(tmp_path / mode)
        source = tmp_path / f"{mode}.json"
        write_json(source, case)
        run_case(source, tmp_path / f"{mode}-found.json")
        found = read_json(tmp_path / f"{mode}-found.json")
        assert found["compile"] == mode
        assert found["phases"]["encoder"] > 0
        assert (found["padding"]["atoms"] > 0) == (mode == "default")
        assert any("padding" in line for line in step_lines(found)) == (mode == "default")
        rows[mode] = [[row[what] for what in ("structures", "atoms", "edges", "operations")] for row in found["rows"]]
    assert rows["default"] == rows["none"]
