"""The command line: the whole way on two datasets, JSON, and what happens when something is wrong.

Whatever a user can act on ends as one message on stderr and status 1, without a traceback unless `--debug` is given,
and with nothing half-written.
"""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.io import write
from rich.console import Console

from ramify import __version__, cli
from ramify.demo import free_path
from ramify.errors import RamifyError
from ramify.train.loop import Trainer

from .small import ENTRIES, MODEL, files_of, flip_byte, metrics


@dataclass(frozen=True)
class Said:
    """How a command ended and what it wrote."""

    status: int
    out: str
    err: str


Ramify = Callable[..., Said]


@pytest.fixture
def ramify(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Ramify:
    """`ramify("train", recipe, ...)`: runs a command in this process, from the folder `tmp_path`."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Said:
        capsys.readouterr()
        status = call(*arguments)
        said = capsys.readouterr()
        return Said(status, said.out, said.err)

    return run


def call(*arguments: object) -> int:
    """Runs a command in this process, on a wide terminal; its exit status."""
    torch.set_num_threads(1)
    words = ["ramify", *map(str, arguments)]
    with mock.patch.object(sys, "argv", words), mock.patch.object(cli, "console", Console(width=200)):
        try:
            cli.main()
        except SystemExit as end:
            return int(end.code or 0)
    return 0


def recipe(folder: Path, **datasets: dict[str, Any]) -> Path:
    """Writes `folder` / recipe.yaml: a small model over `datasets` (qm7x and mptrj if none is given), for 20 steps."""
    content = {
        "stores": str(folder / "stores"),
        "datasets": datasets or {name: ENTRIES[name] for name in ("qm7x", "mptrj")},
        "model": MODEL,
        "schedule": {"warmup_steps": 3},
        "train": {"batch": 8, "max_steps": 20, "evaluate_every": 0.1, "checkpoint_every": 0.1, "log_every": 5},
    }
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with recipe.yaml, stores and an evaluated run."""
    folder = tmp_path_factory.mktemp("finished")
    assert call("prepare", recipe(folder)) == 0
    assert call("train", folder / "recipe.yaml", "--run", folder / "run") == 0
    assert call("evaluate", folder / "run") == 0
    return folder


ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture
def own(finished: Path, tmp_path: Path) -> Path:
    """A copy of `finished` that a test may spoil; its recipe and checkpoints still name the original's stores."""
    shutil.copytree(finished, tmp_path / "own", symlinks=True)
    text = (tmp_path / "own" / "recipe.yaml").read_text()
    (tmp_path / "own" / "recipe.yaml").write_text(text.replace(str(finished), str(tmp_path / "own")))
    return tmp_path / "own"


def test_the_whole_way(ramify: Ramify, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """prepare, train, interruption, resume, evaluate, tables, report, inspect."""
    path = recipe(tmp_path)
    said = ramify("prepare", path)
    assert (said.status, said.err) == (0, "")
    assert re.search(r"qm7x +│ 288 / 36 / 36 +│", said.out)
    step = Trainer._step

    def interrupted(trainer: Trainer, batch: Any) -> Any:
        if trainer.progress.step == 12:
            raise KeyboardInterrupt
        return step(trainer, batch)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_step", interrupted)
        said = ramify("train", path, "--run", "run", "train.seed=1")
    assert said.status == 130
    assert "interrupted; a run goes on from its latest checkpoint with `ramify train --resume DIR`" in said.err
    said = ramify("train", "--resume", "run")
    assert said.status == 0
    assert "continuing at step 7 of 20" in said.out  # 0.1 epochs are 7 steps
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
        "tensorboard", "checkpoints", "predictions",
    }  # fmt: skip


def test_json(ramify: Ramify, finished: Path) -> None:
    """Every `--json` is JSON and nothing else."""
    run = finished / "run"

    def parsed(*arguments: object) -> Any:
        said = ramify(*arguments, "--json")
        assert (said.status, said.err) == (0, "")
        return json.loads(said.out)

    assert parsed("prepare", finished / "recipe.yaml")["qm7x"]["splits"]["train"]["structures"] == 288
    evaluation = parsed("evaluate", run)
    assert evaluation == json.loads((run / "evaluation.json").read_text())
    tables = parsed("tables", run)
    own = next(r for r in evaluation["rows"] if r["branch"] == r["dataset"] == "mptrj")
    assert tables["tables"][0]["rows"][0]["cells"]["mptrj"]["mae"] == own["energy_mae"]
    assert parsed("inspect", finished / "stores" / "qm7x")["labels"] == {"energy": 360, "forces": 360, "stress": 0}
    facts = parsed("inspect", run, "--verify")
    assert facts["latest"]["step"] == 20
    checkpoint = parsed("inspect", run / "checkpoints" / "latest")
    assert checkpoint == facts["latest"]
    assert sum(checkpoint["parameters"].values()) == evaluation["model"]["parameters"] + 2 * 2  # with scales
    assert checkpoint["branch_of"] == {"qm7x": "qm7x", "mptrj": "mptrj"}
    energies = parsed("inspect", finished / "stores" / "qm7x")["references"]["energies"]
    assert checkpoint["references"]["qm7x"] == energies


def test_version_and_help(ramify: Ramify) -> None:
    assert ramify("version").out.strip() == __version__
    said = ramify("--help")
    assert said.status == 0
    for verb in ("demo", "prepare", "train", "evaluate", "tables", "report", "inspect"):
        assert verb in said.out
    assert ramify("prepare").status == 2  # usage: typer's own
    assert ramify("trian").status == 2


def refused(said: Said, *texts: str) -> None:
    """One message on stderr, status 1, no traceback."""
    assert said.status == 1
    assert said.err.startswith("error: ")
    assert said.err.count("error: ") == 1
    assert "Traceback" not in said.err + said.out
    for text in texts:
        assert text in said.err


@pytest.mark.parametrize("verb", ["prepare", "train"])
def test_unknown_recipe_key(ramify: Ramify, tmp_path: Path, verb: str) -> None:
    path = recipe(tmp_path)
    arguments = ("--run", "run") if verb == "train" else ()
    said = ramify(verb, path, "train.bacth=3", *arguments)
    refused(
        said, "recipe.yaml is not a valid recipe:\n  train.bacth: unknown key, did you mean 'batch'?; accepted: batch,"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.yaml"]


def test_missing_files(ramify: Ramify, tmp_path: Path) -> None:
    refused(
        ramify("train", "my.yaml", "--run", "run"), "no recipe at my.yaml\n  fix: give a YAML file or one of: demo, "
    )
    path = recipe(tmp_path, qm7x={"format": "qm7x", "path": "nowhere.h5"})
    refused(ramify("prepare", path), "datasets.qm7x.path: ", "nowhere.h5 does not exist")
    path = recipe(tmp_path, qm7x={"format": "qm7x", "path": "*.h5"})
    refused(ramify("prepare", path), "datasets.qm7x.path: no file matches ")
    refused(ramify("train", path, "--run", "run"), "dataset 'qm7x' has no store at ", "fix: run `ramify prepare`")
    refused(ramify("train", "--resume", "run"), "run is not a run directory: it has no recipe.yaml")
    refused(ramify("evaluate", "run"), "run")
    refused(ramify("tables", "run"), "run is not a run directory: it does not exist")
    refused(ramify("report", "run"), "run is not a run directory: it does not exist")
    refused(ramify("inspect", "run"), "run is neither a store nor a run directory nor a checkpoint")
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.yaml"]


def test_wrong_format(ramify: Ramify, tmp_path: Path) -> None:
    (tmp_path / "not.h5").write_text("name,energy\nH2,-1\n")
    path = recipe(tmp_path, a={"format": "qm7x", "path": "not.h5"})
    refused(ramify("prepare", path), "not.h5")
    path = recipe(tmp_path, a={"format": "extxyz", "path": "not.h5"})
    refused(ramify("prepare", path), "not.h5: frame 0 should begin with its number of atoms, found 'name,energy'")
    path = recipe(tmp_path, a={"format": "qm7", "path": "not.h5"})
    refused(ramify("prepare", path), "datasets.a.format: 'qm7' is unknown, did you mean 'qm7x'?; accepted: alexandria,")
    refused(ramify("prepare", tmp_path / "not.h5"), "not.h5 holds str, a recipe is a mapping of keys")
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["not.h5", "recipe.yaml"]
    assert not list((tmp_path / "stores").glob("*"))


def frames(path: Path, *symbols: str, count: int = 6) -> str:
    """Writes stretched diatomics with energies, others in every file."""
    rng = np.random.default_rng(list(path.name.encode()))
    images = []
    for k in range(count):
        atoms = Atoms(symbols[k % len(symbols)], positions=[[0, 0, 0], [0, 0, 1.0 + 0.05 * k + 0.01 * rng.random()]])
        atoms.info["energy"] = -30.0 + 0.1 * k
        images.append(atoms)
    write(path, images, format="extxyz")
    return str(path)


def test_empty_split(ramify: Ramify, tmp_path: Path) -> None:
    paths = {s: frames(tmp_path / f"{s}.xyz", "H2", count=c) for s, c in {"train": 6, "val": 4}.items()}
    path = recipe(tmp_path, a={"format": "extxyz", "path": paths})
    refused(ramify("prepare", path), "dataset 'a': the split(s) test are empty (train 6, val 4, test 0)")
    path = recipe(tmp_path, a={"format": "extxyz", "path": paths["train"], "split": {"val": 0.0, "test": 0.1}})
    refused(ramify("prepare", path), "datasets.a.split is {val: 0, test: 0.1}; val and test must both be above 0")
    assert not list((tmp_path / "stores").glob("*"))


def test_an_element_that_training_never_sees(ramify: Ramify, tmp_path: Path) -> None:
    paths = {s: frames(tmp_path / f"{s}.xyz", "H2", count=c) for s, c in {"train": 6, "val": 4}.items()}
    paths["test"] = frames(tmp_path / "test.xyz", "HF", "HF")
    path = recipe(tmp_path, a={"format": "extxyz", "path": paths})
    refused(ramify("prepare", path), "the given validation and test splits hold F, which no training structure does")
    assert not list((tmp_path / "stores").glob("*"))


def test_a_branch_without_data(ramify: Ramify, tmp_path: Path) -> None:
    said = ramify("train", recipe(tmp_path), "--run", "run", "branches={a: [qm7x, mptrj], b: []}")
    refused(said, "branches: b has no dataset")
    said = ramify("train", recipe(tmp_path), "--run", "run", "branches={a: [qm7x]}")
    refused(said, "branches: no branch reads mptrj; list every dataset once")
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.yaml"]


def test_contradictory_arguments_of_train(ramify: Ramify, tmp_path: Path) -> None:
    path = recipe(tmp_path)
    for arguments in (
        (path,),
        (path, "--run", "a", "--resume", "b"),
        ("--run", "a"),
        ("--resume", "a", "train.batch=3"),
    ):
        refused(ramify("train", *arguments), "train needs a recipe and --run DIR, or --resume DIR alone")


def test_a_damaged_store(ramify: Ramify, own: Path) -> None:
    positions = own / "stores" / "qm7x" / "positions.npy"
    assert ramify("inspect", positions.parent, "--verify").status == 0
    whole = positions.read_bytes()
    flip_byte(positions)
    refused(
        ramify("inspect", positions.parent, "--verify"), f"{positions}: damaged, its checksum is not the manifest's"
    )
    before = files_of(own)
    positions.write_bytes(whole[:-12])
    said = ramify("train", own / "recipe.yaml", "--run", own / "new")
    refused(said, f"{positions}: damaged", "fix: prepare the dataset again with `ramify prepare RECIPE --force`")
    positions.write_bytes(before[str(positions.relative_to(own))])
    assert files_of(own) == before


def test_a_damaged_manifest_of_a_store(ramify: Ramify, own: Path) -> None:
    manifest = own / "stores" / "qm7x" / "manifest.json"
    for content in ("", "[]", "{", '{"format": "ramify-store"}'):
        manifest.write_text(content)
        refused(ramify("train", own / "recipe.yaml", "--run", own / "new"), str(manifest))
        refused(ramify("inspect", manifest.parent), str(manifest.parent))


def test_a_damaged_checkpoint(ramify: Ramify, own: Path) -> None:
    """Evaluation needs the weights, resuming the moments too; `inspect --verify` reads everything."""
    latest = own / "run" / "checkpoints" / "latest"
    flip_byte(latest / "training" / "branches" / "qm7x.safetensors")
    damaged = "latest/training/branches/qm7x.safetensors is damaged: its checksum differs from the manifest"
    refused(ramify("train", "--resume", own / "run"), damaged, "fix: take another checkpoint of the run")
    refused(ramify("inspect", own / "run", "--verify"), damaged)
    flip_byte(own / "run" / "checkpoints" / "best" / "encoder.safetensors")
    before = files_of(own)
    refused(ramify("evaluate", own / "run"), "best/encoder.safetensors is damaged")
    refused(ramify("inspect", own / "run"), "encoder.safetensors is damaged")
    flip_byte(latest / "manifest.json")
    refused(ramify("evaluate", own / "run", "--checkpoint", "latest"), "manifest.json is damaged")
    flip_byte(latest / "manifest.json")
    assert files_of(own) == before


def test_a_run_that_exists_already(ramify: Ramify, finished: Path) -> None:
    before = files_of(finished)
    said = ramify("train", finished / "recipe.yaml", "--run", finished / "run")
    refused(
        said, "run exists already; a run is never overwritten\n  fix: choose another --run folder, or go on with it:"
    )
    assert files_of(finished) == before


def test_other_options_than_the_store_was_made_with(ramify: Ramify, finished: Path) -> None:
    said = ramify("train", finished / "recipe.yaml", "--run", finished / "new", "datasets.qm7x.gates.max_force=50")
    refused(said, "was prepared with other options (gates: prepared with", "fix: run `ramify prepare RECIPE --force`")
    assert not (finished / "new").exists()


def test_wrong_split_or_checkpoint(ramify: Ramify, finished: Path) -> None:
    refused(ramify("evaluate", finished / "run", "--split", "tset"), "--split tset: accepted are train, val and test")
    refused(ramify("evaluate", finished / "run", "--checkpoint", "step-1"), "no checkpoint at ")


def test_what_the_system_refuses(ramify: Ramify, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    refused(
        ramify("train", finished / "recipe.yaml", "--run", tmp_path / "file" / "run"), "Not a directory", "file/run"
    )


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """Inside, no file can grow beyond `limit` bytes: what a full disk looks like to a program."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_while_preparing(ramify: Ramify, tmp_path: Path) -> None:
    path = recipe(tmp_path)
    with file_size_limit(10_000):
        said = ramify("prepare", path)
    refused(said, "cannot write ", "stores/qm7x: File too large; nothing was left behind\n  fix: free some space")
    assert not list((tmp_path / "stores").glob("*"))


def test_a_full_disk_while_a_run_is_made(ramify: Ramify, finished: Path, tmp_path: Path) -> None:
    with file_size_limit(1_000):
        said = ramify("train", finished / "recipe.yaml", "--run", tmp_path / "run")
    refused(said, "run/data.json: File too large; nothing was left behind")
    assert not (tmp_path / "run").exists()


def test_a_full_disk_while_training(ramify: Ramify, finished: Path, tmp_path: Path) -> None:
    """Metrics grow past the limit: the checkpoints before stay whole, and with room again the run goes on."""
    longer = ("train.max_steps=120", "train.log_every=1", "train.evaluate_every=9", "train.checkpoint_every=0.5")
    with file_size_limit(30_000):
        said = ramify("train", finished / "recipe.yaml", "--run", tmp_path / "run", *longer)
    refused(
        said, "File too large; the run is kept up to its latest checkpoint\n  fix: free some space, then go on with it"
    )
    assert ramify("inspect", tmp_path / "run", "--verify").status == 0
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))
    said = ramify("train", "--resume", tmp_path / "run")
    assert said.status == 0
    assert [line["step"] for line in metrics(tmp_path / "run", "train")] == list(range(1, 121))


def test_a_full_disk_while_evaluating(ramify: Ramify, own: Path) -> None:
    before = files_of(own)
    with file_size_limit(3_000):
        said = ramify("evaluate", own / "run", "--split", "val")
    refused(said, "File too large; nothing was left behind")
    assert files_of(own) == before


def test_debug_shows_the_traceback(ramify: Ramify) -> None:
    with pytest.raises(RamifyError, match=r"no recipe at my\.yaml"):
        ramify("--debug", "prepare", "my.yaml")
    with pytest.raises(RamifyError, match=r"no recipe at my\.yaml"):
        ramify("prepare", "my.yaml", "--debug")


@pytest.mark.parametrize("debug", [False, True])
def test_in_a_process_of_its_own(tmp_path: Path, debug: bool) -> None:
    command = [sys.executable, "-m", "ramify", "prepare", "my.yaml", *(["--debug"] if debug else [])]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "no recipe at my.yaml" in done.stderr
    assert ("Traceback (most recent call last)" in done.stderr) == debug


def test_a_killed_training_goes_on(ramify: Ramify, finished: Path, tmp_path: Path) -> None:
    """SIGKILL after the first checkpoint; what `--resume` then makes equals the run that nobody killed."""
    recipe_path, run = finished / "recipe.yaml", tmp_path / "run"
    command = [sys.executable, "-c", KILLED, "train", str(recipe_path), "--run", str(run)]
    done = subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert "Traceback" not in done.stderr
    said = ramify("train", "--resume", run)
    assert said.status == 0
    assert "continuing at step 14 of 20" in said.out
    assert metrics(run) == metrics(finished / "run")
    for file in (finished / "run" / "checkpoints" / "latest").rglob("*.safetensors"):
        other = run / "checkpoints" / "latest" / file.relative_to(finished / "run" / "checkpoints" / "latest")
        assert other.read_bytes() == file.read_bytes()


KILLED = """
import os, signal
from ramify import cli
from ramify.train.loop import Trainer
step = Trainer._step
def killed(trainer, batch):
    if trainer.progress.step == 17:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(trainer, batch)
Trainer._step = killed
cli.main()
"""


def test_names_with_brackets_are_printed_as_they_are(ramify: Ramify, own: Path, tmp_path: Path) -> None:
    """Square brackets are the terminal library's markup."""
    run = tmp_path / "a [bold] run"
    (own / "run").rename(run)
    assert "a [bold] run" in ramify("inspect", run).out
    assert ramify("report", run).out.strip() == f"{run}/report.html"
    assert ramify("evaluate", run).status == 0


def test_demo(ramify: Ramify, tmp_path: Path) -> None:
    """All of it, cut to a few steps of a small model; the folder's name holds what YAML would take for syntax."""
    small = [f"model.{group}={json.dumps(value)}" for group, value in MODEL.items()]
    said = ramify("demo", "--run", "my demo: #1", "train.max_steps=3", *small)
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
