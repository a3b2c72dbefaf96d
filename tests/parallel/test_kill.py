"""SIGKILL at critical moments: a run can always be read and resumed; at most one checkpoint interval is lost."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ramify.checkpoint.checkpoint import open_checkpoint
from ramify.checkpoint.pointers import read_pointers
from ramify.parallel.watchdog import HUNG
from tests.parallel.placements.test_elastic import EPOCH, assert_close
from tests.processes.programs import KILL, Program, run
from tests.small import metrics, tensors

from .conftest import MakeFive

EVERY = 3
"""Steps between checkpoints."""
LENGTH: dict[str, Any] = {
    "train__batch": 7,
    "train__max_steps": 16,
    "train__log_every": 1,
    "train__evaluate_every": 6 / EPOCH,
    "train__checkpoint_every": EVERY / EPOCH,
}
DIES = """
import os
from ramify import files
from ramify.checkpoint import checkpoint
from ramify.run import run
from ramify.train import loop
module, name, count = {module}, {name!r}, {count}
original, calls = getattr(module, name), []
def dying(*arguments, **options):
    calls.append(name)
    if len(calls) == count and os.environ.get("RANK") == "{rank}":
        os.kill(os.getpid(), 9)
    return original(*arguments, **options)
setattr(module, name, dying)
"""
MOMENTS: dict[str, dict[str, Any]] = {
    "before recipe.yaml is there": {"module": "run", "name": "write_whole", "count": 1, "rank": 0},
    "before the first checkpoint": {"module": "loop.Trainer", "name": "accumulate_gradients", "count": 2, "rank": 1},
    "while it writes a part": {"module": "checkpoint", "name": "sync", "count": 5, "rank": 1},
    "before the manifest": {"module": "checkpoint", "name": "write_json", "count": 1, "rank": 0},
    "after the folder, before its pointers": {"module": "checkpoint", "name": "move_pointers", "count": 2, "rank": 0},
    "before old ones are removed": {"module": "checkpoint", "name": "remove_unneeded", "count": 2, "rank": 0},
    "in a step": {"module": "loop.Trainer", "name": "accumulate_gradients", "count": 4, "rank": 1},
}
"""In this order, each in a session that goes on from the one before."""


def reached(path: Path) -> int:
    """The last step that is known to have been taken."""
    return max((line["step"] for line in metrics(path)), default=0) if (path / "metrics.jsonl").exists() else 0


def readable(path: Path) -> int:
    """The step of the latest checkpoint, all of which is read; 0 before the first."""
    checkpoints = path / "checkpoints"
    pointers = read_pointers(checkpoints)
    if not pointers:
        return 0
    for name in pointers:
        checkpoint = open_checkpoint(checkpoints / name)
        checkpoint.weights()
        checkpoint.training()
    return open_checkpoint(checkpoints / "latest").step


@pytest.mark.slow
def test_killed_at_the_worst_moments(five: MakeFive, tmp_path: Path) -> None:
    """Two ranks, one of which is killed in every session; the message of the other names the lost rank."""
    path, recipe = tmp_path / "run", tmp_path / "recipe.yaml"
    recipe.write_text(five(parallel__placement="per-branch", **LENGTH).to_yaml())
    words = ("train", recipe, "--run", path, "--continue")
    for moment, where in MOMENTS.items():
        done = run(tmp_path, 2, *words, first=DIES.format(**where))
        killed = int(where["rank"])
        assert done.statuses[killed] == -KILL, (moment, done.said)
        assert done.statuses[1 - killed] == 1, moment
        assert f"rank {1 - killed} of 2 has lost another rank at " in done.said[1 - killed], moment
        assert readable(path) >= reached(path) - EVERY, moment
    done = run(tmp_path, 2, *words)
    assert done.statuses == [0, 0], done.said
    assert [p.name for p in path.glob("**/.*")] == []
    assert not (path / "lock.json").exists()
    whole = tmp_path / "whole"
    assert run(tmp_path, 1, "train", recipe, "--run", whole, "parallel.placement=auto").statuses == [0]
    assert_close(tensors(path), tensors(whole))
    assert [(line["kind"], line["step"]) for line in metrics(path)] == [
        (line["kind"], line["step"]) for line in metrics(whole)
    ]


FULL = """
import os, resource
if os.environ["RANK"] == "1":
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000))
"""


@pytest.mark.slow
def test_a_full_disk_on_one_rank_is_one_message(five: MakeFive, tmp_path: Path) -> None:
    """Every rank exits with status 1, rank zero prints the reason; with free space the run resumes."""
    path, recipe = tmp_path / "run", tmp_path / "recipe.yaml"
    recipe.write_text(five(parallel__placement="per-branch", **LENGTH).to_yaml())
    words = ("train", recipe, "--run", path, "--continue")
    done = run(tmp_path, 2, *words, first=FULL)
    assert done.statuses == [1, 1]
    assert done.said[1] == ""
    assert re.search(
        r"error: rank 1 of 2: cannot write \S+/run/checkpoints/step-00000003/branches/\w+\.safetensors: File too "
        r"large; nothing was left behind, the run has no checkpoint yet\n  fix: free some space, then start it again "
        "with .* --continue",
        done.said[0],
    )
    assert "Traceback" not in done.said[0]
    assert list((path / "checkpoints").iterdir()) == []
    ended = json.loads((path / "sessions.jsonl").read_text().splitlines()[-1])["ended"]
    assert ended.startswith("error: RamifyError: rank 1 of 2: cannot write")
    assert run(tmp_path, 2, *words, "train.max_steps=16").statuses == [0, 0]


def test_a_second_program_is_refused(five: MakeFive, tmp_path: Path) -> None:
    """While the first one trains; on any number of ranks, with one message."""
    path, recipe = tmp_path / "run", tmp_path / "recipe.yaml"
    recipe.write_text(five(**LENGTH).to_yaml())
    slow = (
        "import time\nfrom ramify.train.loop import Trainer\nTrainer.accumulate_gradients = lambda *_: time.sleep(60)\n"
    )
    first = Program(tmp_path, 1, "train", recipe, "--run", path, first=slow)
    try:
        while not (path / "recipe.yaml").exists():
            assert first.ranks[0].is_alive()
        done = run(tmp_path, 2, "train", recipe, "--run", path, "--continue", "parallel.placement=replicated")
    finally:
        first.kill(KILL)
    assert done.statuses == [1, 1]
    assert f"run is being trained already: process {first.ranks[0].pid} on " in done.said[0]
    assert done.said[0].count("error:") == 1
    assert done.said[1] == ""
    first.wait()
    assert run(tmp_path, 1, "train", recipe, "--run", path, "--continue").statuses == [0]


HANGS = """
import os, time
from ramify.train.loop import Trainer
accumulate = Trainer.accumulate_gradients
def hanging(trainer, *arguments):
    if trainer.progress.step == 4 and os.environ["RANK"] == "1":
        time.sleep(1000)
    accumulate(trainer, *arguments)
Trainer.accumulate_gradients = hanging
"""


@pytest.mark.slow
def test_a_hung_rank_ends_the_run(five: MakeFive, tmp_path: Path) -> None:
    """With a message that names it, the step, and the line that it is at; the checkpoints before stay."""
    path, recipe = tmp_path / "run", tmp_path / "recipe.yaml"
    recipe.write_text(five(parallel__placement="replicated", **LENGTH).to_yaml())
    done = run(tmp_path, 2, "train", recipe, "--run", path, "parallel.timeout=4", first=HANGS)
    assert done.statuses == [HUNG, HUNG]
    said = "".join(done.said)
    assert "error: the run hangs: no rank has made progress for 4 s (parallel.timeout); did not arrive: rank 1 " in said
    assert "(last seen at step 5); the others wait at the sums of step 5" in said
    assert "rank 1 of 2 has not got further than step 5; it is at\n" in done.said[1]
    assert "in hanging\n" in done.said[1]
    assert readable(path) == 3
