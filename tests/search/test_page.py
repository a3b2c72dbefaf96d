"""search.html: of a table of made-up results."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ramify.recipe import load_recipe
from ramify.search.results.figures import importances
from ramify.search.results.page import page, values_text
from ramify.search.samplers import sample
from ramify.search.settings import Settings
from ramify.search.space import Space, make_space
from ramify.search.trials import RungResult, Trial

RECIPE = load_recipe("demo").model_dump(mode="json")
CONTENT = {
    "optimizer.lr": {"low": 1e-4, "high": 1e-1, "log": True},
    "model.encoder.kind": ["egnn", "painn"],
    "model.encoder.vector_channels": {"low": 2, "high": 64, "when": {"model.encoder.kind": "egnn"}},
    "model.force_head.kind": ["direct", "conservative"],
}


@pytest.fixture(scope="module")
def space() -> Space:
    return make_space(CONTENT, RECIPE, "space.yaml")


def searched(space: Space, count: int) -> list[Trial]:
    """Trials whose metric grows with the learning rate; every fourth is trained to its end."""
    found: list[Trial] = []
    for number in range(count):
        params, _, attributes = sample("random", 4, space, found, ["metric"])
        metric = 0.1 + 5 * params["optimizer.lr"]
        results = tuple(
            RungResult(100 * 3**k, metric / (k + 1), 60.0 * 3**k) for k in range(3 if number % 4 == 0 else 1)
        )
        state = "complete" if len(results) == 3 else "paused"
        found.append(Trial(number, params, state, 900, results, len(results) - 1, 1.0, system_attrs=attributes))
    return found


@pytest.fixture(scope="module")
def trials(space: Space) -> list[Trial]:
    """Twelve trials; one failed, one was refused."""
    found = searched(space, 12)
    found[5] = Trial(5, found[5].params, "failed", 900, reason="the loss is <nan>")
    found[6] = Trial(6, found[6].params, "refused", 900, memory=9.0, reason="needs 9.00 GB")
    return found


@pytest.mark.parametrize("objectives", [["metric"], ["metric", "time", "memory"]])
def test_the_page(space: Space, trials: list[Trial], objectives: list[str], tmp_path: Path) -> None:
    settings = Settings(recipe=RECIPE, space=CONTENT, objectives=objectives)
    html = page(tmp_path / "my <search>", settings, space, trials)
    complete = [trial for trial in trials if trial.state == "complete"]
    best = min(complete, key=lambda trial: trial.results[2].metric)
    assert html.count("<svg") == 5 + len(objectives[1:])
    assert "my &lt;search&gt;" in html
    assert "the loss is &lt;nan&gt;" in html
    assert "needs 9.00 GB" in html
    assert f"trial {best.number}" in html.lower()
    assert not re.findall(r'(?:src|href)="(?!#|data:)', html)
    # 3 trials take 540 s, 7 take 60 s and would take 480 s more
    assert "34 min" in html
    assert "≈ 56 min" in html
    if shutil.which("chromium") is not None and len(objectives) > 1:
        (tmp_path / "page.html").write_text(html)
        done = subprocess.run(
            ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0",
             f"--user-data-dir={tmp_path}/chromium", "--dump-dom", f"file://{tmp_path}/page.html"],
            capture_output=True, text=True, timeout=200, check=True,
        )  # fmt: skip
        assert "CONSOLE" not in done.stderr


def test_the_key_that_decides_is_the_most_important(space: Space) -> None:
    trials = searched(space, 60)
    found = importances(space, trials)
    assert max(found, key=lambda name: found[name]) == "optimizer.lr"
    assert sum(found.values()) == pytest.approx(1)
    assert importances(space, trials[:3]) == {}


def test_before_the_first_result(space: Space, tmp_path: Path) -> None:
    html = page(tmp_path, Settings(recipe=RECIPE, space=CONTENT), space, [])
    assert "No trial has a result yet" in html
    assert "<svg" not in html


def test_values_with_equal_names() -> None:
    values = {"model.encoder.kind": "egnn", "model.force_head.kind": "direct", "optimizer.lr": 0.00123456}
    assert values_text(values) == "encoder.kind egnn, force_head.kind direct, lr 0.001235"
