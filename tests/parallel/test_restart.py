"""torchrun starts the ranks again when one was killed, and they go on; it passes on the signal to stop."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ramify.checkpoint.checkpoint import open_checkpoint
from tests.processes.worlds import free_port
from tests.small import metrics

from .conftest import MakeFive


def until(ready: Callable[[], object], program: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not ready():
        assert program.poll() is None, program.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def last_step(path: Path) -> int:
    return max((line["step"] for line in metrics(path)), default=0) if (path / "metrics.jsonl").exists() else 0


def has_started(path: Path, times: int) -> bool:
    file = path / "sessions.jsonl"
    return file.exists() and file.read_text().count('"kind": "start"') == times


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_killed_rank_and_a_signal_to_stop(five: MakeFive, tmp_path: Path) -> None:
    """The first rank is killed (SIGKILL) once there is a checkpoint; torchrun itself is ended (SIGTERM) later."""
    path, recipe = tmp_path / "run", tmp_path / "recipe.yaml"
    every = {
        "train__evaluate_every": 1000.0,
        "train__checkpoint_every": 3 * 7 / 176,
        "train__log_every": 1,
        "train__max_steps": 100_000,
    }
    recipe.write_text(five(train__batch=7, parallel__placement="per-branch", **every).to_yaml())
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=1", f"--master-port={free_port()}"]
    command = [sys.executable, *launcher, "-m", "ramify", "train", str(recipe), "--run-dir", str(path)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    program = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        until(lambda: last_step(path) > 4, program)
        os.kill(json.loads((path / "lock.json").read_text())["pid"], signal.SIGKILL)
        killed_at = last_step(path)
        until(lambda: has_started(path, 2) and last_step(path) > killed_at + 4, program)
        program.terminate()
        out, err = program.communicate(timeout=60)
    finally:
        program.kill()
    assert program.returncode != 0  # torchrun's own: it tells nobody how the ranks ended
    first, second = (line for line in map(json.loads, (path / "sessions.jsonl").open()) if line["kind"] == "start")
    assert (first["step"], first["ranks"]) == (0, 2)
    assert killed_at - 4 <= second["step"] <= killed_at + 3
    assert f"continuing at step {second['step']} of 100000" in out
    ended = json.loads((path / "sessions.jsonl").read_text().splitlines()[-1])
    assert ended["ended"] == "stopped: SIGTERM", err
    assert open_checkpoint(path / "checkpoints" / "latest").step == ended["step"] == last_step(path)
    assert [line["step"] for line in metrics(path, "train")] == list(range(1, ended["step"] + 1))
    assert not (path / "lock.json").exists()
