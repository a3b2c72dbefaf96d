"""A run directory that becomes unwritable: one message with the file and the command that resumes the run."""

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ramify.checkpoint.checkpoint import open_checkpoint
from ramify.errors import RamifyError
from ramify.files import CannotWrite, writing
from ramify.train.reporting import Callbacks
from ramify.train.start import start_run
from tests.processes.programs import Program, run
from tests.small import metrics
from tests.train.conftest import MakeRecipe
from tests.train.resume.test_takeover import SLOW, steps, until


@pytest.fixture
def recipe(small: MakeRecipe, tmp_path: Path) -> Path:
    every = {"train__evaluate_every": 1000.0, "train__checkpoint_every": 3 / 6, "train__log_every": 1}
    path = tmp_path / "recipe.yaml"
    path.write_text(small("bare", train__max_steps=60, parallel__placement="replicated", **every).to_yaml())
    return path


@pytest.fixture
def frozen() -> Iterator[Callable[[Path], None]]:
    """Makes files and folders immutable, even for root (chattr, on ext4, xfs and btrfs)."""
    done: list[Path] = []

    def freeze(path: Path) -> None:
        if subprocess.run(["chattr", "+i", path], capture_output=True, check=False).returncode:
            pytest.skip("chattr +i is not possible here")
        done.append(path)

    yield freeze
    for path in done:
        subprocess.run(["chattr", "-i", path], check=True)


@contextmanager
def between_checkpoints(program: Program, path: Path) -> Iterator[None]:
    """Halts all ranks in the middle of the run at a moment at which no checkpoint is being written."""
    while True:
        until(lambda: steps(path) > 4)
        program.kill(signal.SIGSTOP)
        if not list((path / "checkpoints").glob(".*")):
            break
        program.kill(signal.SIGCONT)
        time.sleep(0.02)
    yield
    program.kill(signal.SIGCONT)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("what", ["checkpoints", "metrics.jsonl", "."])
def test_an_immutable_place(
    recipe: Path, tmp_path: Path, frozen: Callable[[Path], None], what: str, world: int
) -> None:
    """From the middle of the run on: every rank exits with status 1."""
    path = tmp_path / "run"
    program = Program(tmp_path, world, "train", recipe, "--run", path, first=SLOW)
    try:
        with between_checkpoints(program, path):
            frozen(path / what)
        if what in {"metrics.jsonl", "."}:  # an open file can still be written: the next session cannot open it
            program.wait()
            done = run(tmp_path, world, "train", "--resume", path, "train.max_steps=70")
        else:
            done = program.wait()
    finally:
        program.kill(9)
    assert done.statuses == [1] * world
    said = "".join(done.said)
    assert said.count("error:") == 1
    assert "Traceback" not in said
    files = {"checkpoints": "checkpoints", "metrics.jsonl": "metrics.jsonl", ".": "lock.json"}
    assert f"cannot write {path}/{files[what]}" in said
    assert "Operation not permitted" in said
    assert f"ramify train --resume {path}" in said
    assert "chattr -i" in said


def test_a_folder_that_became_something_else(recipe: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    program = Program(tmp_path, 2, "train", recipe, "--run", path, first=SLOW)
    try:
        with between_checkpoints(program, path):
            (path / "checkpoints").rename(path / "kept")
            (path / "checkpoints").write_text("")
        done = program.wait()
    finally:
        program.kill(9)
    assert done.statuses == [1, 1]
    said = "".join(done.said)
    assert said.count("error:") == 1
    assert f"cannot write {path}/checkpoints" in said
    assert "Not a directory" in said
    assert not (path / "lock.json").exists()
    (path / "checkpoints").unlink()
    (path / "kept").rename(path / "checkpoints")
    assert run(tmp_path, 1, "train", "--resume", path).statuses == [0]
    assert [line["step"] for line in metrics(path, "train")] == list(range(1, 61))


FULL = """
import os, resource
from ramify.run.run import MetricsLog
add, calls = MetricsLog.add, []
def adding(log, entry):
    calls.append(entry)
    if len(calls) == 8:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
    return add(log, entry)
MetricsLog.add = adding
"""


@pytest.mark.parametrize("world", [1, 2])
def test_a_full_disk_met_by_the_metrics_ends_all_ranks(recipe: Path, tmp_path: Path, world: int) -> None:
    """Only rank zero writes them; the other ranks end for its reason, not with an error about a lost rank."""
    path = tmp_path / "run"
    done = run(tmp_path, world, "train", recipe, "--run", path, first=FULL)
    assert done.statuses == [1] * world
    assert all(said == "" for said in done.said[1:])
    assert done.said[0].count("error:") == 1
    assert f"cannot write {path}/metrics.jsonl: File too large; the run is kept up to its latest" in done.said[0]
    assert f"resume it: ramify train --resume {path}" in done.said[0]
    assert open_checkpoint(path / "checkpoints" / "latest").step == 6
    assert run(tmp_path, 1, "train", "--resume", path).statuses == [0]
    assert [line["step"] for line in metrics(path, "train")] == list(range(1, 61))


def test_giving_back_the_lock_hides_no_error(small: MakeRecipe, tmp_path: Path, frozen: Callable[[Path], None]) -> None:
    """The run folder can be changed no more when the run ends by something else."""

    def fails(step: int, total: int) -> None:
        if step == 3:
            frozen(tmp_path / "run")
            raise RamifyError("the first reason")

    trainer = start_run(small("bare"), tmp_path / "run", Callbacks(step=fails))
    with pytest.raises(RamifyError, match="the first reason"):
        trainer.fit()


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        (OSError(28, "No space left on device"), "free some space, then go on"),
        (OSError(122, "Disk quota exceeded"), "free some space, then go on"),
        (OSError(30, "Read-only file system"), "make /run writable"),
        (PermissionError(13, "Permission denied"), "make /run writable"),
        (FileNotFoundError(2, "No such file or directory"), "check that /run exists"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_each_cause_has_its_fix(error: OSError, fix: str) -> None:
    with pytest.raises(CannotWrite) as raised, writing(Path("/run/file"), "it is as it was", "go on"):
        raise error
    assert str(raised.value).startswith(f"cannot write /run/file: {error.strerror}; it is as it was\n  fix: {fix}")
    assert str(raised.value).endswith("then go on")
