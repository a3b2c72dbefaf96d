"""A run that is stopped and resumed on other numbers of ranks ends with the weights of an uninterrupted run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ramify.checkpoint.checkpoint import open_checkpoint
from ramify.run.stop import STOPPED
from tests.parallel.conftest import MakeFive
from tests.processes.programs import TERM, USR1, run
from tests.small import assert_same, files_of, metrics, tensors

WriteRecipe = Callable[..., Path]
EPOCH = 176 / 7
LENGTH: dict[str, Any] = {
    "train__batch": 7,
    "train__max_steps": 18,
    "train__log_every": 1,
    "train__evaluate_every": 4 / EPOCH,
    "train__checkpoint_every": 5 / EPOCH,
}
"""Evaluations every 4 steps, checkpoints every 5."""


@pytest.fixture
def write_recipe(five: MakeFive, tmp_path: Path) -> WriteRecipe:
    """Writes the recipe of a short run over five datasets, in float64, with clipping and averaged weights."""

    def write(name: str = "recipe.yaml", **changes: Any) -> Path:
        (tmp_path / name).write_text(five(**(LENGTH | changes)).to_yaml())
        return tmp_path / name

    return write


@pytest.fixture
def unbroken(write_recipe: WriteRecipe, tmp_path: Path) -> Path:
    """An uninterrupted run of one process."""
    done = run(tmp_path, 1, "train", write_recipe(), "--run", tmp_path / "unbroken")
    assert done.statuses == [0], done.said
    return tmp_path / "unbroken"


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """To 1e-12, relative to the largest number of each tensor."""
    assert set(found) == set(expected)
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype
        assert torch.allclose(tensor, expected[name], rtol=0, atol=1e-12 * float(expected[name].abs().max())), name


def sessions(path: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (path / "sessions.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


@pytest.mark.slow
def test_on_other_ranks_after_every_stop(write_recipe: WriteRecipe, tmp_path: Path, unbroken: Path) -> None:
    """Two ranks with different branches, then three, one, and two that host all branches. A signal to one rank stops
    each session during a step: before due evaluations (4, 12), and between two checkpoints (7)."""
    path = tmp_path / "run"
    stages: list[tuple[int, str, dict[str, int] | None, list[object]]] = [
        (2, "per-branch", {"rank": 1, "step": 4, "signal": TERM}, [tmp_path / "recipe.yaml", "--run", path]),
        (3, "per-branch", {"rank": 2, "step": 7, "signal": USR1}, ["--resume", path]),
        (1, "auto", {"rank": 0, "step": 12, "signal": TERM}, ["--resume", path]),
        (2, "replicated", None, ["--resume", path]),
    ]
    for world, placement, at, words in stages:
        done = run(tmp_path, world, "train", *words, f"parallel.placement={placement}", at=at)
        assert done.statuses == [0 if at is None else STOPPED] * world, done.said
        if at is not None:
            name = {TERM: "SIGTERM", USR1: "SIGUSR1"}[at["signal"]]
            assert f"stopped ({name}) before step 18; resume with `ramify train --resume {path}`" in done.said[0]
            assert open_checkpoint(path / "checkpoints" / "latest").step == at["step"]
        assert all(said == "" for said in done.said[1:])
        assert ("changed since the last session: parallel.placement: " in done.said[0]) == (
            world < 3 and "--run" not in words
        )
        assert not list((path / "checkpoints").glob(".*"))
        assert not (path / "lock.json").exists()
    for which in ("latest", "best"):
        assert_close(tensors(path, which), tensors(unbroken, which))
    found, expected = metrics(path), metrics(unbroken)
    assert [(line["kind"], line["step"]) for line in found] == [(line["kind"], line["step"]) for line in expected]
    for mine, theirs in zip(found, expected, strict=True):
        for key in {"loss", "grad_norm", "metric"} & theirs.keys():
            assert mine[key] == pytest.approx(theirs[key], rel=1e-11)
    starts = sessions(path, "start")
    assert [(line["step"], line["ranks"], line["placement"]) for line in starts] == [
        (0, 2, "per-branch"), (4, 3, "per-branch"), (7, 1, "replicated"), (12, 2, "replicated"),
    ]  # fmt: skip
    assert [line["changed"] for line in starts] == [
        {}, {}, {"parallel.placement": ["per-branch", "auto"]}, {"parallel.placement": ["auto", "replicated"]},
    ]  # fmt: skip
    assert [line["ended"] for line in sessions(path, "end")] == [
        "stopped: SIGTERM", "stopped: SIGUSR1", "stopped: SIGTERM", "finished",
    ]  # fmt: skip


REWRITE = """
from pathlib import Path
from ramify.train.loop import Trainer
fit = Trainer.fit
def rewrite(trainer):
    target = Path({target!r})
    target.mkdir(exist_ok=True)
    trainer.state.save(target, trainer.recipe, trainer.data, best=False)
    return fit(trainer)
Trainer.fit = rewrite
"""


def test_files_do_not_depend_on_the_ranks_that_wrote_them(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """Three processes that read the checkpoint of one process and write it again produce the same bytes."""
    recipe, path = write_recipe(train__max_steps=5), tmp_path / "run"
    assert run(tmp_path, 1, "train", recipe, "--run", path).statuses == [0]
    before = files_of(path / "checkpoints" / "step-00000005")
    again = REWRITE.format(target=str(tmp_path / "again"))
    done = run(tmp_path, 3, "train", "--resume", path, "parallel.placement=per-branch", first=again)
    assert done.statuses == [0] * 3, done.said
    after = files_of(tmp_path / "again" / "step-00000005")
    assert set(after) == set(before)
    assert [name for name in before if name.endswith(".safetensors") and after[name] != before[name]] == []


def test_one_process_resumes_to_the_bit(write_recipe: WriteRecipe, tmp_path: Path, unbroken: Path) -> None:
    """Stopped by signals and by its time limit; every session uses the same command."""
    recipe, path = write_recipe("other.yaml"), tmp_path / "run"
    limits = ["null", "1e-6", "1e-6", "null", "1e-6", "null"]
    signals = [{"rank": 0, "step": 6, "signal": TERM}, None, None, {"rank": 0, "step": 16, "signal": USR1}, None, None]
    statuses = []
    for limit, at in zip(limits, signals, strict=True):
        words = ("train", recipe, "--run", path, "--continue", f"train.time_limit={limit}")
        statuses += run(tmp_path, 1, *words, at=at).statuses
    assert statuses == [STOPPED] * 5 + [0]
    for which in ("latest", "best"):
        assert_same(tensors(path, which), tensors(unbroken, which))
    assert metrics(path) == metrics(unbroken)
    assert [(line["step"], line["ended"]) for line in sessions(path, "end")] == [
        (6, "stopped: SIGTERM"), (7, "stopped: time limit"), (8, "stopped: time limit"), (16, "stopped: SIGUSR1"),
        (17, "stopped: time limit"), (18, "finished"),
    ]  # fmt: skip
