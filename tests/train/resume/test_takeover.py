"""A program that lost its run, to another program or because the folder was moved, stops and writes nothing."""

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ramify.errors import RamifyError
from ramify.run.lock import GONE, NAME
from ramify.train.reporting import Callbacks
from ramify.train.start import start_run
from tests.processes.programs import Program, run
from tests.small import files_of, metrics, tensors
from tests.train.conftest import MakeRecipe

ELSEWHERE = "import socket\nsocket.gethostname = lambda: 'elsewhere'\n"
SLOW = """
import time
from ramify.train.loop import Trainer
accumulate = Trainer.accumulate_gradients
def slow(trainer, *arguments):
    time.sleep(0.05)
    accumulate(trainer, *arguments)
Trainer.accumulate_gradients = slow
"""


def until(ready: Callable[[], bool], limit: float = 90.0) -> None:
    deadline = time.monotonic() + limit
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def steps(path: Path) -> int:
    """Of the last line of metrics."""
    file = path / "metrics.jsonl"
    lines = file.read_text().splitlines()[:-1] if file.exists() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


@pytest.fixture
def recipe(small: MakeRecipe, tmp_path: Path) -> Path:
    """Long enough to be caught; checkpoints every fourth step."""
    every = {"train__evaluate_every": 1.0, "train__checkpoint_every": 0.5, "train__log_every": 1}
    path = tmp_path / "recipe.yaml"
    path.write_text(small("bare", train__max_steps=60, parallel__placement="replicated", **every).to_yaml())
    return path


@pytest.mark.parametrize("world", [1, 2])
def test_one_that_was_frozen_while_another_took_over(recipe: Path, tmp_path: Path, world: int) -> None:
    """On one rank and on two: the resumed program ends with one message, and only the other one has written."""
    path = tmp_path / "run"
    first = Program(tmp_path, world, "train", recipe, "--run", path, first=ELSEWHERE + SLOW)
    second = None
    try:
        until(lambda: steps(path) > 6)
        first.kill(signal.SIGSTOP)
        past = time.time() - GONE - 1
        os.utime(path / NAME, (past, past))  # as if it had been silent for that long
        second = Program(tmp_path, 1, "train", recipe, "--run", path, "--continue", first=SLOW)
        holder = second.ranks[0].pid
        until(lambda: json.loads((path / NAME).read_text())["pid"] == holder)
        began = steps(path)
        until(lambda: steps(path) > began + 2)
        first.kill(signal.SIGCONT)
        lost = first.wait(60)
        assert second.wait().statuses == [0]
    finally:
        first.kill(signal.SIGKILL)
        if second is not None:
            second.kill(signal.SIGKILL)
    assert lost.statuses == [1] * world
    said = "".join(lost.said)
    assert said.count("error:") == 1
    assert "Traceback" not in said
    assert f"taken over while this process sent no heartbeat, and is being trained by process {holder} on " in said
    ends = [line for line in map(json.loads, (path / "sessions.jsonl").open()) if line["kind"] == "end"]
    assert [end["ended"] for end in ends] == ["finished"]
    alone = tmp_path / "alone"
    assert run(tmp_path, 1, "train", recipe, "--run", alone).statuses == [0]
    assert [(line["kind"], line["step"]) for line in metrics(path)] == [
        (line["kind"], line["step"]) for line in metrics(alone)
    ]
    assert set(files_of(path / "checkpoints")) == set(files_of(alone / "checkpoints"))
    assert set(tensors(path)) == set(tensors(alone))


@pytest.mark.parametrize("world", [1, 2])
def test_a_run_that_is_moved_while_it_trains(recipe: Path, tmp_path: Path, world: int) -> None:
    """It stops, nothing is written at the old path, and it can be resumed at the new one."""
    path, moved = tmp_path / "run", tmp_path / "moved"
    program = Program(tmp_path, world, "train", recipe, "--run", path, first=SLOW)
    try:
        until(lambda: steps(path) > 6)
        path.rename(moved)
        done = program.wait(60)
    finally:
        program.kill(signal.SIGKILL)
    assert done.statuses == [1] * world
    said = "".join(done.said)
    assert said.count("error:") == 1
    assert "Traceback" not in said
    assert f"{path} no longer exists" in said
    assert "ramify train --resume" in said
    assert not path.exists()
    assert run(tmp_path, 1, "train", "--resume", moved).statuses == [0]
    assert [line["step"] for line in metrics(moved, "train")] == list(range(1, 61))


def test_nothing_is_written_after_the_lock_is_gone(small: MakeRecipe, tmp_path: Path) -> None:
    """At the very next write, whichever it is, without waiting for a beat of the lock."""
    path = tmp_path / "run"
    left: list[dict[str, bytes]] = []

    def lose(step: int, total: int) -> None:
        if step == 5:
            content = json.loads((path / NAME).read_text())
            (path / NAME).write_text(json.dumps(content | {"token": "another", "host": socket.gethostname()}))
            left.append(files_of(path))

    trainer = start_run(small("bare", train__log_every=1), path, Callbacks(step=lose))
    with pytest.raises(RamifyError, match="was taken over"):
        trainer.fit()
    assert files_of(path) == left[0]
