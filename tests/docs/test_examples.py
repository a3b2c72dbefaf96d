"""The job scripts: their syntax is valid, and the commands and exit statuses in them exist."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer.main

from ramify import cli
from ramify.recipe import load_recipe
from ramify.run.stop import SIGNALS, STOPPED

SCRIPTS = sorted((Path(__file__).parents[2] / "examples/slurm").glob("*.sh"))
script = pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)


def commands(text: str) -> list[list[str]]:
    """The arguments of every `python -m ramify ...`."""
    lines = re.findall(r"python -m ramify (.*?)(?: \|\||\n)", text.replace("\\\n", " "))
    return [shlex.split(line) for line in lines]


def test_there_are_four() -> None:
    assert [path.stem for path in SCRIPTS] == ["aurora", "frontier", "generic", "perlmutter"]


@script
def test_bash_takes_it(path: Path) -> None:
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@script
def test_what_it_asks_of_ramify_exists(path: Path) -> None:
    verbs = typer.main.get_command(cli.app).commands
    found = commands(path.read_text(encoding="utf-8"))
    assert [words[0] for words in found] == ["train"]
    for verb, *words in found:
        options = {name for parameter in verbs[verb].params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} == {"--run", "--continue"}
        assert {"--run", "--continue"} <= options
        for override in (word for word in words if re.match(r"[a-z_.]+=", word)):
            load_recipe("five", [re.sub(r"\$\w+", "1", override)])


@script
def test_it_goes_on_after_the_status_of_a_stop(path: Path) -> None:
    """And sends a signal that ramify handles, or sets a time limit."""
    text = path.read_text(encoding="utf-8")
    (status,) = re.findall(r'"\$status" -eq (\d+)', text)
    assert int(status) == STOPPED
    signals = re.findall(r"--signal=(\w+)@", text)
    assert {f"SIG{name}" for name in signals} <= {number.name for number in SIGNALS}
    assert signals or "train.time_limit=" in text
    assert "B:" not in re.sub(r"#.*\"B:\".*", "", text)  # would signal the script instead of the ranks


@script
def test_it_ends_with_the_status_of_the_ranks(path: Path, tmp_path: Path) -> None:
    """With replacements of the commands of the cluster: status 75 requeues the job, any other status does not."""
    calls = tmp_path / "calls"
    for name in ("srun", "mpiexec", "scontrol", "qsub", "module", "source", "hostname", "sort"):
        (tmp_path / name).write_text(f'#!/bin/bash\necho "{name} $*" >> {calls}\n')
        (tmp_path / name).chmod(0o755)
    for name in ("srun", "mpiexec"):
        (tmp_path / name).write_text(f'#!/bin/bash\necho "{name} $*" >> {calls}\nexit "$ENDED"\n')
    (tmp_path / "venv/bin").mkdir(parents=True)
    (tmp_path / "venv/bin/activate").write_text("")
    text = path.read_text(encoding="utf-8").replace("source activate", ": activate")
    (tmp_path / "job.sh").write_text(text)
    env = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "SLURM_JOB_ID": "123456",
        "SLURM_JOB_NODELIST": "node1",
        "SLURM_CPUS_PER_TASK": "8",
        "RAMIFY_ENV": str(tmp_path / "venv"),
        "PBS_O_WORKDIR": str(tmp_path),
        "PBS_NODEFILE": "/dev/null",
        "PROJECT": "p",
        "RECIPE": "recipe.yaml",
        "RUN": "runs/x",
    }
    for status in (0, 1, STOPPED):
        calls.write_text("")
        command = ["bash", str(tmp_path / "job.sh"), "recipe.yaml", "runs/x"]
        done = subprocess.run(command, env=env | {"ENDED": str(status)}, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stderr
        said = calls.read_text()
        assert "python -m ramify train recipe.yaml --run runs/x --continue" in said
        assert ("scontrol requeue 123456" in said or "qsub -A p" in said) == (status == STOPPED)
