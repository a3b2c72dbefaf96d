"""The command line: all verbs on two datasets, JSON, interruptions, and output."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ramify import __version__
from ramify.checkpoint.pointers import resolve
from ramify.cli.compare.demo import free_path
from ramify.errors import RamifyError
from ramify.train.loop import Trainer
from tests.corpora import HELD
from tests.small import ENTRIES, MODEL, MOLECULES, metrics

from .conftest import ONE_THREAD, Ramify, recipe, refused

QM7X = 12 * len(MOLECULES)
"""Structures of its molecules."""


def test_the_whole_way(ramify: Ramify, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """prepare, train, interruption, resume, evaluate, tables, report, inspect."""
    path = recipe(tmp_path)
    said = ramify("prepare", path)
    assert (said.status, said.err) == (0, "")
    assert re.search(r"qm7x +\d+ / \d+ / \d+ +", said.out)
    step = Trainer.step

    def interrupted(trainer: Trainer, batch: Any) -> Any:
        if trainer.progress.step == 12:
            raise KeyboardInterrupt
        return step(trainer, batch)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", interrupted)
        said = ramify("train", path, "--run", "run", "train.seed=1")
    assert said.status == 130
    assert "interrupted; the latest checkpoint is step-00000011, resume with `ramify train --resume run`" in said.err
    said = ramify("train", "--resume", "run")
    assert said.status == 0
    assert "continuing at step 11 of 20" in said.out  # 0.1 epochs are 11 steps
    assert re.search(r"20 steps in .*; best metric \d\.\d+ at step \d+; run: run", said.out)
    assert [line["step"] for line in metrics(tmp_path / "run", "train")] == [5, 10, 15, 20]
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["train"]["seed"] == 1
    said = ramify("evaluate", "run")
    assert said.status == 0
    assert "Table 1. MAE of the energy per atom on the test split, eV/atom" in " ".join(said.out.split())
    assert "MTL-All" in said.out
    assert "Trivial" in said.out
    assert "Table 2" in ramify("tables", "run").out
    assert ramify("tables", "run", "--markdown").out.strip() == (tmp_path / "run" / "tables.md").read_text().strip()
    said = ramify("report", "run")
    assert (said.status, said.out.strip()) == (0, "run/report.html")
    assert "</html>" in (tmp_path / "run" / "report.html").read_text()
    said = ramify("inspect", "run")
    assert "step-00000020" not in said.err
    assert '"step": 20' in said.out
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        "recipe.yaml", "data.json", "metrics.jsonl", "evaluation.json", "tables.md", "tables.json", "report.html",
        "tensorboard", "checkpoints", "predictions", "sessions.jsonl",
    }  # fmt: skip


def test_training_longer(ramify: Ramify, own: Path) -> None:
    """A finished run states that it is finished; with changed keys it resumes, prints the changes and stores them."""
    run = own / "run"
    said = ramify("train", "--resume", run)
    assert said.status == 0
    assert "all 20 steps are done; to train on, raise train.epochs" in said.out
    said = ramify("train", "--resume", run, "train.max_steps=30", "optimizer.lr=5e-4", "objective.forces=5")
    assert said.status == 0, said.err
    for change in ("train.max_steps: 20 -> 30", "optimizer.lr: 0.001 -> 0.0005", "objective.forces: 10.0 -> 5.0"):
        assert f"changed since the last session: {change}" in said.out
    assert re.search(r"learning rate: \S+ in the last step, \S+ in the next one; .* schedule.start=20", said.out)
    assert metrics(run, "train")[-1]["step"] == 30
    changed = [line["changed"] for line in map(json.loads, (run / "sessions.jsonl").open()) if line["kind"] == "start"]
    assert changed[-1]["train.max_steps"] == [20, 30]
    assert yaml.safe_load((run / "recipe.yaml").read_text())["objective"]["forces"] == 5.0
    assert ramify("evaluate", run).status == 0


def test_json(ramify: Ramify, finished: Path) -> None:
    """Every `--json` is JSON and nothing else."""
    run = finished / "run"

    def parsed(*arguments: object) -> Any:
        said = ramify(*arguments, "--json")
        assert (said.status, said.err) == (0, "")
        return json.loads(said.out)

    splits = parsed("prepare", finished / "recipe.yaml")["qm7x"]["splits"]
    assert sum(split["structures"] for split in splits.values()) == QM7X
    evaluation = parsed("evaluate", run)
    assert evaluation == json.loads((run / "evaluation.json").read_text())
    tables = parsed("tables", run)
    own = next(r for r in evaluation["rows"] if r["branch"] == r["dataset"] == "mptrj")
    assert tables["tables"][0]["rows"][0]["cells"]["mptrj"]["mae"] == own["energy_mae"]
    assert parsed("inspect", finished / "stores" / "qm7x")["labels"] == {"energy": QM7X, "forces": QM7X, "stress": 0}
    facts = parsed("inspect", run, "--verify")
    assert facts["latest"]["step"] == 20
    checkpoint = parsed("inspect", run / "checkpoints" / "latest")
    assert checkpoint == facts["latest"]
    assert sum(checkpoint["parameters"].values()) == evaluation["model"]["parameters"] + 2 * 2  # with scales
    assert checkpoint["branch_of"] == {"qm7x": "qm7x", "mptrj": "mptrj"}
    energies = parsed("inspect", finished / "stores" / "qm7x")["references"]["energies"]
    assert checkpoint["references"]["qm7x"] == energies


def test_forms_and_workers(ramify: Ramify, finished: Path, tmp_path: Path) -> None:
    """An ADIOS2 file written by two processes, converted, equals the columns written by one process, to the bit."""
    store = tmp_path / "stores" / "qm7x"
    said = ramify("prepare", recipe(tmp_path, qm7x=ENTRIES["qm7x"]), "--store", "adios", "--workers", 2)
    assert (said.status, said.err) == (0, "")
    assert re.search(r"qm7x +\d+ / \d+ / \d+ +", said.out)
    assert not list(store.glob("*.npy"))
    said = ramify("convert", store, "--to", "mapped", "--out", tmp_path / "mapped")
    assert "convert qm7x" in said.out
    assert said.out.strip().splitlines()[1:] == [f"store: {tmp_path / 'mapped'}"]
    expected = {path.name: path.read_bytes() for path in (finished / "stores" / "qm7x").glob("*.npy")}
    assert len(expected) == 11
    assert {path.name: path.read_bytes() for path in (tmp_path / "mapped").glob("*.npy")} == expected
    assert ramify("convert", store, "--to", "mapped").status == 0
    assert {path.name for path in store.glob("*.npy")} == expected.keys()
    refused(ramify("convert", store, "--to", "mapped"), "`mapped`")
    refused(ramify("prepare", tmp_path / "recipe.yaml", "--workers", 0), "--workers 0", "whole number above 0", "mpi")


def test_version_and_help(ramify: Ramify) -> None:
    assert ramify("version").out.strip() == __version__
    said = ramify("--version")
    assert (said.status, said.out.strip(), said.err) == (0, __version__, "")
    said = ramify("--help")
    assert said.status == 0
    for verb in ("demo", "prepare", "convert", "plan", "train", "evaluate", "tables", "report", "inspect"):
        assert verb in said.out
    assert ramify("prepare").status == 2  # usage: typer's own
    assert ramify("trian").status == 2


def test_a_path_with_an_equals_sign(ramify: Ramify, finished: Path, tmp_path: Path) -> None:
    """Path of the recipe, followed by keys to override, in a new run and in a resumed one."""
    path = tmp_path / "a=b" / "own.yaml"
    path.parent.mkdir()
    path.write_text((finished / "recipe.yaml").read_text())
    said = ramify("train", "a=b/own.yaml", "--run", "run", "train.max_steps=1")
    assert (said.status, said.err) == (0, "")
    said = ramify("train", "--resume", "run", "a=b/own.yaml", "train.max_steps=1", "train.log_every=3")
    assert (said.status, said.err) == (0, "")
    assert "train.log_every" in said.out
    refused(ramify("train", "a=b/other.yaml", "--run", "new"), "recipe", "'a=b/other.yaml'", "key to override")


@pytest.mark.parametrize("words", ["inspect stores/qm7x --verify", "tables run", "report run"])
def test_what_reads_no_weights_loads_no_pytorch(finished: Path, words: str) -> None:
    """Which takes seconds."""
    code = "import sys\nfrom ramify.cli import main\ntry:\n main()\nfinally:\n assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", code, *words.split()]
    done = subprocess.run(command, cwd=finished, env=ONE_THREAD, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_debug_shows_the_traceback(ramify: Ramify) -> None:
    with pytest.raises(RamifyError, match=r"my\.yaml"):
        ramify("--debug", "prepare", "my.yaml")
    with pytest.raises(RamifyError, match=r"my\.yaml"):
        ramify("prepare", "my.yaml", "--debug")


@pytest.mark.parametrize("debug", [False, True])
def test_in_a_process_of_its_own(tmp_path: Path, debug: bool) -> None:
    command = [sys.executable, "-m", "ramify", "prepare", "my.yaml", *(["--debug"] if debug else [])]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "my.yaml" in done.stderr
    assert ("Traceback (most recent call last)" in done.stderr) == debug


def test_a_killed_training_goes_on(ramify: Ramify, finished: Path, tmp_path: Path) -> None:
    """SIGKILL after the first checkpoint; after `--resume` the run equals one that was not killed."""
    path, run = finished / "recipe.yaml", tmp_path / "run"
    command = [sys.executable, "-c", KILLED, "train", str(path), "--run", str(run)]
    done = subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert "Traceback" not in done.stderr
    said = ramify("train", "--resume", run)
    assert said.status == 0
    assert "continuing at step 11 of 20" in said.out
    assert metrics(run) == metrics(finished / "run")
    latest = resolve(finished / "run" / "checkpoints" / "latest")
    for file in latest.rglob("*.safetensors"):
        other = run / "checkpoints" / latest.name / file.relative_to(latest)
        assert other.read_bytes() == file.read_bytes()


KILLED = """
import os, signal
from ramify import cli
from ramify.train.loop import Trainer
step = Trainer.step
def killed(trainer, batch):
    if trainer.progress.step == 17:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(trainer, batch)
Trainer.step = killed
cli.main()
"""


def test_names_with_brackets_are_printed_as_they_are(ramify: Ramify, own: Path, tmp_path: Path) -> None:
    """Square brackets are the terminal library's markup."""
    run = tmp_path / "a [bold] run"
    (own / "run").rename(run)
    assert "a [bold] run" in " ".join(ramify("inspect", run).out.split())  # a long path is wrapped
    assert ramify("report", run).out.strip() == f"{run}/report.html"
    assert ramify("evaluate", run).status == 0


def test_quick_demo(ramify: Ramify, tmp_path: Path) -> None:
    """All stages, with few steps of a small model; the name of the folder contains characters of YAML's syntax."""
    small = [f"model.{group}={json.dumps(value)}" for group, value in MODEL.items()]
    said = ramify("demo", "--quick", "--run", "my demo: #1", "train.max_steps=3", *small)
    assert (said.status, said.err) == (0, "")
    assert "report: my demo: #1/report.html" in said.out
    assert {p.name for p in tmp_path.iterdir()} == {"my demo: #1", "my demo: #1-stores"}
    assert len(list((tmp_path / "my demo: #1-stores").iterdir())) == 5
    assert len(json.loads((tmp_path / "my demo: #1" / "evaluation.json").read_text())["rows"]) == 25


def test_a_taken_name_gets_a_number(tmp_path: Path) -> None:
    assert free_path(tmp_path / "demo-run") == tmp_path / "demo-run"
    for name in ("demo-run", "demo-run-2"):
        (tmp_path / name).mkdir()
    assert free_path(tmp_path / "demo-run") == tmp_path / "demo-run-3"


def test_look_prints_a_recipe_that_prepares(ramify: Ramify, tmp_path: Path) -> None:
    file = Path(ENTRIES["qm7x"]["path"])
    said = ramify("look", file)
    assert (said.status, said.err) == (0, "")
    facts = {line[:12].strip(): line[12:] for line in said.out.splitlines()}
    assert facts["format"].startswith("qm7x, PBE0")
    assert facts["structures"].startswith(f"{HELD['qm7x_mini'].structures}, the whole file; ")
    assert any("ePBE0: " in line for line in said.out.splitlines())
    found = json.loads(ramify("look", file, "--json").out)
    (entry,) = yaml.safe_load(found["recipe"])["datasets"].values()
    assert entry["format"] == "qm7x"
    assert entry["path"] == str(file)
    assert entry["labels"] == "pbe0"  # the only pair that it has
    assert found["structures"] == HELD["qm7x_mini"].structures
    refused(ramify("look", tmp_path / "none"), "does not exist")
