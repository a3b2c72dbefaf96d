"""Progress where there is no terminal, and why a run ended."""

import importlib.util
import io
from pathlib import Path

import pytest
from rich.console import Console

from ramify.cli.options import gigabytes
from ramify.cli.progress import ProgressLines, Steps, shows_bars, training_display
from ramify.errors import RamifyError
from ramify.train.reporting import Callbacks
from ramify.train.validation import Validation, Validator
from tests.small import make_recipe, prepare_stores, train


class Clock:
    """A clock that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def log(width: int = 80) -> tuple[Console, io.StringIO]:
    """A console whose output is kept, as a pipe would."""
    kept = io.StringIO()
    return Console(file=kept, width=width, force_terminal=False), kept


def test_a_long_job_says_how_far_it_is_and_how_long_it_may_take() -> None:
    console, kept = log()
    clock = Clock()
    lines = ProgressLines(console, "md", "step", clock=clock)
    for step in range(1001):
        clock.now = float(step)
        lines.at(step, 4000)
    said = kept.getvalue().splitlines()
    assert said[0] == "md: step 30 of 4,000 (1 %), 30 s, about 66.2 min left"
    assert said[-1].startswith("md: step ")
    assert 20 < len(said) < 32  # every 30 s at first, then more seldom


def test_a_job_of_a_day_does_not_fill_its_log() -> None:
    console, kept = log()
    clock = Clock()
    lines = ProgressLines(console, "predict", "structures", clock=clock)
    for second in range(0, 86_400, 5):
        clock.now = float(second)
        lines.at(10.0 * second)
    assert 80 < len(kept.getvalue().splitlines()) < 150
    assert "predict: 300 structures, 30 s" in kept.getvalue()


def test_a_run_that_goes_on_does_not_count_what_was_done_before() -> None:
    console, kept = log()
    clock = Clock()
    lines = ProgressLines(console, "train", "step", clock=clock)
    lines.at(1000, 1100)
    clock.now = 50.0
    lines.at(1050, 1100)
    assert kept.getvalue() == "train: step 1,050 of 1,100 (95 %), 50 s, about 50 s left\n"


def test_short_jobs_and_terminals_get_no_lines() -> None:
    console, kept = log()
    with Steps(console, "evaluate") as steps:
        steps.counted(5)
    assert "evaluate" in kept.getvalue()
    assert len(kept.getvalue().splitlines()) == 1
    terminal = Console(file=io.StringIO(), force_terminal=True)
    clock = Clock()
    lines = ProgressLines(terminal, "train", "step", clock=clock)
    clock.now = 1e4
    lines.at(5, 10)
    assert terminal.file.getvalue() == ""  # type: ignore[attr-defined]


def test_a_training_in_a_job_log() -> None:
    console, kept = log()
    clock = Clock()
    with training_display(console, clock) as (watch, edges):
        clock.now = 40.0
        edges("qm7x", 300)
        watch.step(1, 200)
        watch.trained({"loss": 0.5})
        clock.now = 100.0
        watch.step(50, 200)
    said = kept.getvalue()
    assert "neighbour lists: 300 structures (qm7x), 40 s" in said
    assert "train: step 50 of 200 (25 %), loss 0.500, 1.7 min, about " in said


def test_early_stopping_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = iter([3.0, 2.0, 4.0, 4.0, 4.0])
    found = Validator.__call__
    monkeypatch.setattr(
        Validator, "__call__", lambda self, model: Validation(next(metrics), found(self, model).datasets)
    )
    entries = prepare_stores(tmp_path)
    recipe = make_recipe(
        tmp_path, {"bare": entries["bare"]}, train__max_steps=100, train__patience=2, train__evaluate_every=0.4
    )
    said: list[str] = []
    trainer = train(recipe, tmp_path / "run", Callbacks(noted=said.append))
    assert trainer.progress.step < 100
    (line,) = (line for line in said if "early" in line)
    for fact in (f"step {trainer.progress.step} of 100", "last 2 evaluations", f"step {trainer.progress.best_step}"):
        assert fact in line
    said.clear()
    monkeypatch.undo()
    train(
        make_recipe(tmp_path, {"bare": entries["bare"]}, train__max_steps=5),
        tmp_path / "whole",
        Callbacks(noted=said.append),
    )
    assert not [line for line in said if "early" in line]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("64GB", 64.0),
        ("1e3GB", 1000.0),
        ("1.5e1 GB", 15.0),
        ("2E-1TB", 200.0),
        (".5GB", 0.5),
        ("80GiB", 85.89934592),
        ("4", 4.0),
    ],
)
def test_memory(text: str, expected: float) -> None:
    assert gigabytes(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["1e999GB", "0GB", "-1GB", "e3GB", "lots", "64 XB"])
def test_memory_that_is_none(text: str) -> None:
    with pytest.raises(RamifyError, match="--memory"):
        gigabytes(text)


def test_jupyter_shows_bars_with_ipywidgets_and_else_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ipywidgets, Rich would print a warning instead of a bar."""
    notebook = Console(force_jupyter=True, width=80)
    said: list[str] = []
    monkeypatch.setattr(notebook, "print", lambda *texts, **_: said.extend(map(str, texts)))
    for installed in (True, False):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, there=installed: object() if there else None)
        assert shows_bars(notebook) is installed
        said.clear()
        ticks = iter((0.0, 0.0, 100.0))
        lines = ProgressLines(notebook, "train", "step", clock=lambda ticks=ticks: next(ticks))
        lines.at(0, 10)
        lines.at(5, 10)
        assert bool(said) is not installed
