"""A slow rank is not taken for a hung one, in any phase of a run: reading, planning, compiling, waiting, writing."""

from pathlib import Path

import pytest

from ramify.run.stop import STOPPED
from tests.parallel.conftest import MakeFive
from tests.processes.programs import TERM, run
from tests.small import metrics

TIMEOUT, SLOW = 1.2, 2.8
"""Seconds: timeout of the run, and delay of each phase on one of the ranks."""

SLOWED = f"""
import os, time
import ramify.batches.loader, ramify.checkpoint.checkpoint, ramify.model.compiled, ramify.planning.plan
import ramify.run.lock, ramify.run.run, ramify.store.store, ramify.train.validation
seen = set()
def slow(rank, owner, name):
    work = getattr(owner, name)
    def slowly(*arguments, **options):
        if os.environ["RANK"] == str(rank) and name not in seen:
            seen.add(name)
            print("slow:", name, flush=True)
            time.sleep({SLOW})
        return work(*arguments, **options)
    setattr(owner, name, slowly)
"""
STARTING = (
    SLOWED
    + """
class Compiler:
    def program(graph, inputs):
        return graph.forward
ramify.model.compiled.BACKEND = lambda graph, inputs: Compiler.program(graph, inputs)
slow(1, Compiler, "program")
slow(0, ramify.planning.plan, "profile_model")
slow(1, ramify.batches.loader, "EdgeCache")
slow(1, ramify.store.store.Store, "load")
slow(1, ramify.train.validation, "trivial_errors")
slow(0, ramify.run.run.MetricsLog, "add")
slow(1, ramify.checkpoint.checkpoint, "sync")
slow(1, ramify.batches.loader.SplitReader, "part")
"""
)
RESUMING = (
    SLOWED
    + """
ramify.model.compiled.BACKEND = lambda graph, inputs: graph.forward
slow(0, ramify.run.lock.RunLock, "acquire")
slow(1, ramify.checkpoint.checkpoint.Checkpoint, "training")
"""
)


@pytest.mark.slow
def test_slow_phases(five: MakeFive, tmp_path: Path) -> None:
    path, recipe = tmp_path / "run", tmp_path / "recipe.yaml"
    options = {"train__max_steps": 3, "train__batch": 20, "train__log_every": 1, "train__compile": "default"}
    recipe.write_text(five(parallel__placement="auto", parallel__timeout=TIMEOUT, **options).to_yaml())
    stop = {"rank": 1, "step": 2, "signal": TERM}
    done = run(tmp_path, 2, "train", recipe, "--run", path, first=STARTING, at=stop)
    assert done.statuses == [STOPPED, STOPPED], done.said
    assert [said.count("slow: ") for said in done.said] == [2, 6]
    assert "so the run continues" in done.said[0]
    done = run(tmp_path, 2, "train", "--resume", path, first=RESUMING)
    assert done.statuses == [0, 0], done.said
    assert [said.count("slow: ") for said in done.said] == [1, 1]
    assert [line["step"] for line in metrics(path, "train")] == [1, 2, 3]
