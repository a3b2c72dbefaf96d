"""Ctrl-C and SIGTERM at any moment: a checkpoint after the first step, the exit status, and a correct message."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ramify.checkpoint.checkpoint import open_checkpoint
from ramify.run.stop import INTERRUPTED, STOPPED
from tests.processes.programs import TERM, Program, run
from tests.small import metrics
from tests.train.conftest import MakeRecipe
from tests.train.resume.test_takeover import SLOW, until

INT = int(signal.SIGINT)
STUCK = """
import ctypes, time
from ramify.run import stop
from ramify.train.loop import Trainer
stop.PATIENCE = 0.5
accumulate = Trainer.accumulate_gradients
def stuck(trainer, *arguments):
    if trainer.progress.step == {step}:
        print("stuck", flush=True)
        {how}
    accumulate(trainer, *arguments)
Trainer.accumulate_gradients = stuck
"""
SLEEPS = "time.sleep(600)"
"""Like a compiler that Python waits for."""
DEADLOCK = "mutex = (ctypes.c_long * 8)(); [ctypes.CDLL(None).pthread_mutex_lock(mutex) for _ in range(2)]"
"""Like a library that ignores signals: the second call never returns, and signals do not end it (POSIX)."""


@pytest.fixture
def recipe(small: MakeRecipe, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    every = {"train__evaluate_every": 1000.0, "train__checkpoint_every": 3 / 6, "train__log_every": 1}
    path.write_text(small("bare", train__max_steps=10_000, parallel__placement="replicated", **every).to_yaml())
    return path


def step_of(path: Path) -> int:
    return open_checkpoint(path / "checkpoints" / "latest").step


def stuck(program: Program) -> Callable[[], bool]:
    return lambda: all(output.exists() and "stuck" in output.read_text() for output in program.outputs)


def heard(program: Program) -> Callable[[], bool]:
    """Whether no SIGINT is pending (proc(5): ShdPnd): a second one would be lost while the first one is."""

    def pending() -> int:
        lines = Path(f"/proc/{program.ranks[0].pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("ShdPnd")).split()[1], 16)

    return lambda: not pending() >> (INT - 1) & 1


@pytest.mark.parametrize("world", [1, 2])
def test_ctrl_c_keeps_a_checkpoint(recipe: Path, tmp_path: Path, world: int) -> None:
    """Sent to all ranks, as a terminal does: status 130, and the run resumes from that step."""
    path = tmp_path / "run"
    at = {"rank": world - 1, "step": 7, "signal": INT}
    done = run(tmp_path, world, "train", recipe, "--run", path, at=at)
    assert done.statuses == [INTERRUPTED] * world
    assert step_of(path) == 7  # not 6, the last one that was due
    assert f"stopped (SIGINT) before step 10000; resume with `ramify train --resume {path}`" in done.said[0]
    assert "step 7" in done.said[0]
    assert "Traceback" not in "".join(done.said)
    assert not (path / "lock.json").exists()
    assert run(tmp_path, 1, "train", "--resume", path, "train.max_steps=9").statuses == [0]
    assert [line["step"] for line in metrics(path, "train")] == list(range(1, 10))


def test_a_second_ctrl_c_aborts(recipe: Path, tmp_path: Path) -> None:
    """The message names the latest checkpoint."""
    path = tmp_path / "run"
    program = Program(tmp_path, 1, "train", recipe, "--run", path, first=STUCK.format(step=4, how=SLEEPS))
    until(stuck(program))
    program.kill(INT)
    until(heard(program))
    time.sleep(0.5)
    assert program.ranks[0].is_alive()
    program.kill(INT)
    done = program.wait()
    assert done.statuses == [INTERRUPTED]
    assert step_of(path) == 3
    assert (
        f"interrupted; the latest checkpoint is step-00000003, resume with `ramify train --resume {path}`"
        in done.said[0]
    )
    assert not (path / "lock.json").exists()


def test_an_abort_before_the_first_checkpoint_promises_none(recipe: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    program = Program(tmp_path, 1, "train", recipe, "--run", path, first=STUCK.format(step=1, how=SLEEPS))
    until(stuck(program))
    program.kill(INT)
    until(heard(program))
    time.sleep(0.3)
    program.kill(INT)
    done = program.wait()
    assert done.statuses == [INTERRUPTED]
    assert "before the first checkpoint" in done.said[0]
    assert "--continue" in done.said[0]
    assert run(tmp_path, 1, "train", recipe, "--run", path, "--continue", "train.max_steps=2").statuses == [0]


@pytest.mark.parametrize("how", [SLEEPS, DEADLOCK], ids=["waits", "deadlock"])
@pytest.mark.parametrize(("number", "status"), [(TERM, STOPPED), (INT, INTERRUPTED)])
def test_a_first_step_that_takes_minutes(recipe: Path, tmp_path: Path, how: str, number: int, status: int) -> None:
    """As while it is compiled: the process ends within seconds, and the same command restarts the run."""
    path = tmp_path / "run"
    program = Program(tmp_path, 1, "train", recipe, "--run", path, first=STUCK.format(step=0, how=how))
    until(stuck(program))
    program.kill(number)
    done = program.wait()
    assert done.statuses == [status]
    assert "before its first step: nothing is lost and no checkpoint was written" in done.said[0]
    assert "Traceback" not in done.said[0]
    assert run(tmp_path, 1, "train", recipe, "--run", path, "--continue", "train.max_steps=2").statuses == [0]


def listens(pid: int) -> bool:
    """Whether a process has a handler for SIGTERM (proc(5): SigCgt)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = int(next(line for line in lines if line.startswith("SigCgt")).split()[1], 16)
    return bool(caught >> (TERM - 1) & 1)


@pytest.mark.parametrize("after", [0.0, 0.7, 2.0])
@pytest.mark.parametrize(("number", "status"), [(TERM, STOPPED), (INT, INTERRUPTED)])
def test_a_signal_in_the_first_seconds(recipe: Path, tmp_path: Path, after: float, number: int, status: int) -> None:
    """While the command line and PyTorch are imported, and afterwards, but not while the interpreter starts."""
    path, env = tmp_path / "run", os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ramify", "train", str(recipe), "--run", str(path)]
    program = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(lambda: listens(program.pid))
    assert "libtorch" not in Path(f"/proc/{program.pid}/maps").read_text()
    time.sleep(after)
    program.send_signal(number)
    _, err = program.communicate(timeout=60)
    assert program.returncode == status, err
    assert err.count(f"stopped ({signal.Signals(number).name}) before ") == 1
    assert "Traceback" not in err
    assert not (path / "lock.json").exists()
    kept = (path / "checkpoints" / "pointers.json").exists()
    assert ("resume with" in err) == kept


def test_a_terminal_that_closes(recipe: Path, tmp_path: Path) -> None:
    """After SIGHUP every write to the terminal fails; the checkpoint is written nevertheless."""
    path, env = tmp_path / "run", os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ramify", "train", str(recipe), "--run", str(path)]
    process, terminal = pty.fork()
    if process == 0:
        os.execvpe(command[0], command, env)
    try:
        while not (path / "metrics.jsonl").exists() or len(metrics(path)) < 3:
            os.read(terminal, 65536)
    finally:
        os.close(terminal)
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == STOPPED
    ended = json.loads((path / "sessions.jsonl").read_text().splitlines()[-1])
    assert ended["ended"] == "stopped: SIGHUP"
    assert step_of(path) == ended["step"] >= 3
    assert not (path / "lock.json").exists()


def test_ctrl_c_in_the_demo(tmp_path: Path) -> None:
    """The training writes a checkpoint, and the message names the commands for the remaining stages."""
    path = tmp_path / "demo-run"
    program = Program(tmp_path, 1, "demo", "--quick", "--run", path, "train.log_every=1", first=SLOW)
    until(lambda: path.exists() and (path / "metrics.jsonl").exists() and bool(metrics(path)))
    program.kill(INT)
    done = program.wait(60)
    assert done.statuses == [INTERRUPTED]
    assert step_of(path) >= 1
    assert f"`ramify train --resume {path}`, then `ramify evaluate {path}`" in done.said[0]
    assert json.loads((path / "sessions.jsonl").read_text().splitlines()[-1])["ended"] == "stopped: SIGINT"


def test_ctrl_c_in_a_fine_tuning(recipe: Path, tmp_path: Path) -> None:
    """The same command with --continue resumes it."""
    base, path = tmp_path / "base", tmp_path / "run"
    assert run(tmp_path, 1, "train", recipe, "--run", base, "train.max_steps=2").statuses == [0]
    words = ("finetune", base, recipe, "--run", path, "--mode", "keep-branch", "--steps", 6)
    done = run(tmp_path, 1, *words, at={"rank": 0, "step": 2, "signal": INT})
    assert done.statuses == [INTERRUPTED], done.said
    assert step_of(path) == 2
    assert "resume with the same command and --continue" in done.said[0]
    assert run(tmp_path, 1, *words, "--continue").statuses == [0]
    assert json.loads((path / "finetune.json").read_text())["after"] is not None


def test_ranks_that_wait_for_one_that_compiles(recipe: Path, tmp_path: Path) -> None:
    """All ranks get the signal; one is in its first step, the other waits for it in a sum, which ignores signals."""
    path = tmp_path / "run"
    only = "import os\nif os.environ['RANK'] == '1':\n    " + STUCK.format(step=0, how=SLEEPS).replace("\n", "\n    ")
    program = Program(tmp_path, 2, "train", recipe, "--run", path, first=only)
    until(lambda: program.outputs[1].exists() and "stuck" in program.outputs[1].read_text())
    until(lambda: (path / "sessions.jsonl").exists())
    program.kill(TERM)
    done = program.wait()
    assert done.statuses == [STOPPED, STOPPED]
    assert done.said[0].count("before its first step") == 1
    assert "Traceback" not in "".join(done.said)
    assert run(tmp_path, 1, "train", recipe, "--run", path, "--continue", "train.max_steps=2").statuses == [0]
