"""A slow rank is not taken for a hung one, in any phase of a run: reading, planning, compiling, waiting, writing."""

from pathlib import Path

import pytest

from ramify.run.stop import STOPPED
from tests.parallel.conftest import MakeFive
from tests.processes.programs import TERM, Program
from tests.small import metrics

TIMEOUT = 3.0
"""Seconds, `parallel.timeout` of the run."""
LIMIT = 600.0
"""Seconds after which the ranks are killed: many times what they take on a machine with other work."""

SLOWED = """
import os, time
import ramify.batches.loader, ramify.checkpoint.checkpoint, ramify.model.compiled, ramify.planning.plan
import ramify.parallel.watchdog, ramify.run.lock, ramify.run.run, ramify.store.store, ramify.train.validation
from pathlib import Path
notes, seen, print_slow_ranks = Path(os.environ["NOTES"]), set(), ramify.parallel.watchdog.Watchdog._print_slow_ranks
def noted(watchdog):  # on rank zero, once the run has made no progress for longer than its timeout
    with notes.open("a") as file:
        file.write("note\\n")
    return print_slow_ranks(watchdog)
ramify.parallel.watchdog.Watchdog._print_slow_ranks = noted
def slow(rank, owner, name):
    work = getattr(owner, name)
    def slowly(*arguments, **options):
        if os.environ["RANK"] == str(rank) and name not in seen:
            seen.add(name)
            print("slow:", name, flush=True)
            before = notes.read_text() if notes.exists() else ""
            while not notes.exists() or notes.read_text() == before:
                time.sleep(0.05)
        return work(*arguments, **options)
    setattr(owner, name, slowly)
"""
"""The named functions begin on one rank only after rank zero has noted that the run is slow but continues."""
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
    path, recipe, notes = tmp_path / "run", tmp_path / "recipe.yaml", str(tmp_path / "notes")
    options = {"train__max_steps": 3, "train__batch": 20, "train__log_every": 1, "train__compile": "default"}
    recipe.write_text(five(parallel__placement="auto", parallel__timeout=TIMEOUT, **options).to_yaml())
    stop = {"rank": 1, "step": 2, "signal": TERM}
    done = Program(tmp_path, 2, "train", recipe, "--run", path, first=STARTING, at=stop, NOTES=notes).wait(LIMIT)
    assert done.statuses == [STOPPED, STOPPED], done.said
    assert [said.count("slow: ") for said in done.said] == [2, 6]
    assert done.said[0].count("so the run continues") >= 8
    done = Program(tmp_path, 2, "train", "--resume", path, first=RESUMING, NOTES=notes).wait(LIMIT)
    assert done.statuses == [0, 0], done.said
    assert [said.count("slow: ") for said in done.said] == [1, 1]
    assert [line["step"] for line in metrics(path, "train")] == [1, 2, 3]
