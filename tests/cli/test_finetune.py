"""`ramify finetune` on the command line."""

import json
from pathlib import Path

import yaml

from tests.small import ENTRIES

from .conftest import Ramify, refused


def recipe(folder: Path, name: str = "ani1x") -> Path:
    """A recipe of a fine-tuning; its dataset is prepared in `folder`."""
    content = {
        "stores": str(folder / "stores-new"),
        "datasets": {name: ENTRIES["ani1x"]},
        "schedule": {"warmup_steps": 3},
        "train": {"batch": 8, "max_steps": 5, "log_every": 5},
    }
    (folder / "new.yaml").write_text(yaml.safe_dump(content))
    return folder / "new.yaml"


def test_errors_are_said_before_the_first_step(ramify: Ramify, finished: Path, tmp_path: Path) -> None:
    new = recipe(tmp_path)
    assert ramify("prepare", new).status == 0
    said = ramify("finetune", finished / "run", new, "--mode", "new-branch", "--from", "qm7x", "--run", "tuned")
    assert said.status == 0, said.err
    first, second = said.out.index("before the first step"), said.out.index("before and after fine-tuning")
    assert first < second
    assert "qm7x" in said.out[first:second]
    kept = json.loads((tmp_path / "tuned/finetune.json").read_text())
    assert {row["branch"] for row in kept["before"]} == {"ani1x", "qm7x", "mptrj"}
    assert kept["missing"] == []
    assert ramify("evaluate", "tuned").status == 0
    facts = json.loads(ramify("inspect", "tuned", "--json").out)
    assert facts["latest"]["step"] == 5
    assert set(facts["latest"]["parameters"]) == {"encoder", "ani1x", "qm7x", "mptrj"}
    assert ramify("export", "tuned", "--out", "model").status == 0
    assert str(tmp_path) not in (tmp_path / "model/manifest.json").read_text()
    assert ramify("train", "--resume", "tuned").status == 0
    again = ramify("finetune", finished / "run", new, "--mode", "new-branch", "--run", "tuned", "--continue")
    assert again.status == 0, again.err
    assert "before and after fine-tuning" in again.out


def test_what_is_wrong_is_said(ramify: Ramify, finished: Path, tmp_path: Path) -> None:
    new = recipe(tmp_path)
    assert ramify("prepare", new).status == 0
    refused(
        ramify("finetune", finished / "run", new, "--run", "tuned"),
        "--mode",
        "new-branch, keep-branch, frozen-encoder, lora or replay",
    )
    refused(ramify("finetune", finished / "run", new, "--mode", "lora"), "--run DIR")
    refused(
        ramify("finetune", finished / "run", new, "--mode", "lora", "--run", "tuned"),
        "the start of the new branch 'ani1x' is not stated",
        "--from BRANCH, one of",
    )
    refused(ramify("train", new, "finetune.mode=lora", "--run", "tuned"), "finetune.mode")
    assert not (tmp_path / "tuned").exists()
    done = ramify(
        "finetune", finished / "run", new, "--mode", "lora", "--from", "fresh", "--run", "tuned", "--steps", 0, "--json"
    )
    assert json.loads(done.out)["best_step"] == 0
    refused(
        ramify("finetune", finished / "run", new, "--mode", "lora", "--from", "fresh", "--run", "tuned"),
        "exists already",
    )
