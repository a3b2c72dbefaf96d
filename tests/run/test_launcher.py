"""Command line templates of trainings."""

import sys
import time
from pathlib import Path

import pytest

from ramify.errors import RamifyError
from ramify.run.launcher import Launcher

TRAIN = ["train", "my recipe.yaml"]
COMMAND = [sys.executable, "-m", "ramify", *TRAIN]


@pytest.mark.parametrize(
    ("template", "expected"),
    {
        "": COMMAND,
        "srun -N 4": ["srun", "-N", "4", *COMMAND],
        "srun -J {name} {command} --": ["srun", "-J", "a", *COMMAND, "--"],
        "env CUDA_VISIBLE_DEVICES={slot} {command}": ["env", "CUDA_VISIBLE_DEVICES=3", *COMMAND],
        "torchrun -m ramify {arguments}": ["torchrun", "-m", "ramify", *TRAIN],
        "sh -c 'exec {command}'": ["sh", "-c", f"exec {sys.executable} -m ramify train 'my recipe.yaml'"],
    }.items(),
)
def test_command(template: str, expected: list[str]) -> None:
    assert Launcher(template).command(TRAIN, slot=3, name="a") == expected


@pytest.mark.parametrize(
    ("template", "facts"), [("srun {nodes}", r"\{nodes\}.*\{command\}"), ("srun 'x", "srun 'x"), ("{", r"\{")]
)
def test_refused(template: str, facts: str) -> None:
    with pytest.raises(RamifyError, match=facts):
        Launcher(template)


def test_a_process_is_started_logged_and_stopped(tmp_path: Path) -> None:
    """`ramify` is left out: `true` and `sleep` take its place as programs of the template."""
    log = tmp_path / "log"
    script = "trap 'echo stopped; exit 75' TERM; echo $OMP_NUM_THREADS; while :; do sleep 0.01; done"
    started = Launcher(f'sh -c "{script}" {{command}}').start(["version"], log)
    while not log.read_text():
        time.sleep(0.01)
    assert started.poll() is None
    started.stop()
    while started.poll() is None:
        time.sleep(0.01)
    assert started.poll() == 75
    assert log.read_text().split()[-1] == "stopped"  # a shell may also report its `sleep`, which the signal reaches too
    with pytest.raises(RamifyError, match="no-such-program"):
        Launcher("no-such-program").start(["version"], log)
