"""Running commands in this process, and a finished run to run them on."""

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import yaml

from ramify import cli
from tests.small import ENTRIES, MODEL


@dataclass(frozen=True)
class Said:
    """Exit status and output of a command."""

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
    with mock.patch.object(sys, "argv", words), mock.patch.dict(os.environ, COLUMNS="200"):
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


@pytest.fixture(scope="session")
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


def refused(said: Said, *texts: str) -> None:
    """One message on stderr, status 1, no traceback."""
    assert said.status == 1
    assert said.err.startswith("error: ")
    assert said.err.count("error: ") == 1
    assert "Traceback" not in said.err + said.out
    for text in texts:
        assert text in said.err
