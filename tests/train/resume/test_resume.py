"""An interrupted run continues like an uninterrupted one: weights, moments, averages, schedule and log, to the bit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ramify.checkpoint.checkpoint import open_checkpoint
from ramify.checkpoint.pointers import resolve
from ramify.errors import RamifyError
from ramify.prepare.prepare import prepare_dataset
from ramify.train.reporting import Callbacks
from ramify.train.start import resume_run, start_run
from tests.small import assert_same, files_of, flip_byte, make_recipe, metrics, tensors, train
from tests.train.conftest import MakeRecipe

SCHEDULES: dict[str, dict[str, Any]] = {
    "cosine": {"schedule__kind": "cosine"},
    "plateau": {"schedule__kind": "plateau", "schedule__patience": 0, "optimizer__lr": 0.3},
    "muon": {"optimizer__kind": "muon"},
    "early stopping": {"schedule__kind": "constant", "optimizer__lr": 0.3, "train__patience": 3},
}
"""The rates of "plateau" and "early stopping" are so high that evaluations without a better metric come soon."""


class Cut(Exception):
    """Raised by a test to interrupt a run."""


def cut_at(*steps: int) -> Callable[[int, int], None]:
    """Raises at these steps."""

    def step(step: int, total: int) -> None:
        if step in steps:
            raise Cut

    return step


def trained_in_pieces(recipe: Any, path: Path, *cuts: int) -> None:
    """Cuts a run off after each of the steps `cuts` and takes it up again."""
    trainer = start_run(recipe, path, Callbacks(step=cut_at(cuts[0])))
    for following in (*cuts[1:], -1):
        with pytest.raises(Cut):
            trainer.fit()
        trainer = resume_run(path, Callbacks(step=cut_at(following)))
    trainer.fit()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_resuming_changes_nothing(small: MakeRecipe, tmp_path: Path, schedule: str) -> None:
    """Batches of two over three datasets: most steps leave some branch alone, so its AdamW counts other steps.

    Evaluations every 4 steps, checkpoints every 6 (612 structures, 306 steps an epoch).
    """
    changes = {"train__batch": 2, "train__max_steps": 40, "train__log_every": 3}
    every = {"train__evaluate_every": 4 / 306, "train__checkpoint_every": 6 / 306}
    recipe = small("qm7x", "mptrj", "bare", **changes, **every, **SCHEDULES[schedule])
    train(recipe, tmp_path / "whole")
    trained_in_pieces(recipe, tmp_path / "pieces", 8, 15, 16)
    assert_same(tensors(tmp_path / "pieces"), tensors(tmp_path / "whole"))
    assert metrics(tmp_path / "pieces") == metrics(tmp_path / "whole")
    states = []
    for name in ("pieces", "whole"):
        for which in ("latest", "best"):
            manifest = open_checkpoint(tmp_path / name / "checkpoints" / which).manifest
            manifest["trainer"]["progress"].pop("seconds")
            states.append((manifest["step"], manifest["trainer"]))
    assert states[:2] == states[2:]
    steps = {float(t) for n, t in tensors(tmp_path / "whole").items() if n.endswith("/step")}
    assert len(steps) > 1
    if schedule == "plateau":
        assert states[0][1]["schedule"]["factor"] < 1
    if schedule == "early stopping":
        assert 15 < states[0][0] < 40


def test_resuming_in_float64_and_with_conservative_forces(small: MakeRecipe, tmp_path: Path) -> None:
    changes = {"train__precision": "fp64", "model__force_head__kind": "conservative", "objective__stress": 0.5}
    recipe = small("mptrj", train__evaluate_every=0.05, train__checkpoint_every=0.05, **changes)
    train(recipe, tmp_path / "whole")
    trained_in_pieces(recipe, tmp_path / "pieces", 6, 10)
    assert_same(tensors(tmp_path / "pieces"), tensors(tmp_path / "whole"))
    assert metrics(tmp_path / "pieces") == metrics(tmp_path / "whole")


def test_lines_past_the_checkpoint_are_taken_back(small: MakeRecipe, tmp_path: Path) -> None:
    """Also the half of a line that was being written."""
    recipe = small("bare", train__max_steps=6, train__checkpoint_every=0.5, train__log_every=1)
    train(recipe, tmp_path / "run")
    before = metrics(tmp_path / "run")
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 7, "loss": 1.0}\n{"kind": "train", "ste')
    resume_run(tmp_path / "run", Callbacks()).fit()
    assert metrics(tmp_path / "run") == before


def test_a_finished_run_stays_as_it_is(small: MakeRecipe, tmp_path: Path) -> None:
    """But for the history of its sessions."""

    def kept() -> dict[str, bytes]:
        history = ("tensorboard", "sessions.jsonl")
        return {n: c for n, c in files_of(tmp_path / "run").items() if not n.startswith(history)}

    train(small("bare", train__max_steps=6), tmp_path / "run")
    before = kept()
    resume_run(tmp_path / "run", Callbacks()).fit()
    assert kept() == before


@pytest.fixture
def own(prepared: tuple[Path, dict[str, Any]], tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A store of `bare` and a run of 4 steps that a test may spoil: the folder and the recipe entry."""
    folder, entries = prepared
    entry = {"bare": dict(entries["bare"])}
    shutil.copytree(folder / "stores" / "bare", tmp_path / "stores" / "bare")
    train(make_recipe(tmp_path, entry, train__max_steps=4), tmp_path / "run")
    return tmp_path, entry


def test_a_changed_store_is_refused(own: tuple[Path, dict[str, Any]]) -> None:
    """Prepared again from other energies, with the same options."""
    folder, entry = own
    source = Path(entry["bare"]["path"])
    changed = source.read_text().replace("energy=-20", "energy=-21")
    original = source.read_text()
    try:
        source.write_text(changed)
        options = make_recipe(folder, entry).datasets["bare"]
        prepare_dataset("bare", options, folder / "stores", base=folder, force=True)
    finally:
        source.write_text(original)
    with pytest.raises(RamifyError, match=r"store of dataset 'bare' is not the one .*\(columns, references differ\)"):
        resume_run(folder / "run", Callbacks())


def test_a_changed_recipe_is_refused(own: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = own
    path = folder / "run" / "recipe.yaml"
    content = yaml.safe_load(path.read_text())
    content["name"] = "a better name"  # names nothing that training depends on
    path.write_text(yaml.safe_dump(content))
    resume_run(folder / "run", Callbacks())
    content["model"]["encoder"]["width"] = 16
    path.write_text(yaml.safe_dump(content))
    refused = r"recipe.yaml is not the recipe of this run \(model\.encoder\.width: 8, now 16\)"
    with pytest.raises(RamifyError, match=refused):
        resume_run(folder / "run", Callbacks())
    path.write_text("datasets: [")
    with pytest.raises(RamifyError, match=r"recipe\.yaml is not valid YAML"):
        resume_run(folder / "run", Callbacks())


def test_what_is_not_a_run_is_refused(own: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = own
    with pytest.raises(RamifyError, match="is not a run directory"):
        resume_run(folder / "stores", Callbacks())
    shutil.rmtree(folder / "run" / "checkpoints")
    (folder / "run" / "checkpoints").mkdir()
    with pytest.raises(RamifyError, match=r"run has had checkpoints, but .*/latest is missing\n  fix: restore"):
        resume_run(folder / "run", Callbacks(), automatic=True)
    (folder / "run" / "sessions.jsonl").unlink()
    with pytest.raises(RamifyError, match=r"the run ended before its first one\n  fix: start it again .* --continue"):
        resume_run(folder / "run", Callbacks())


def test_a_damaged_checkpoint_is_refused(own: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = own
    flip_byte(resolve(folder / "run" / "checkpoints" / "latest") / "training" / "encoder.safetensors")
    with pytest.raises(RamifyError, match="its checksum differs from the manifest"):
        resume_run(folder / "run", Callbacks())


def test_weights_of_the_first_steps_are_there(small: MakeRecipe, tmp_path: Path) -> None:
    """A run that fails in its first step can be resumed too: there are no moments yet."""
    recipe = small("bare", train__max_steps=3)
    trainer = start_run(recipe, tmp_path / "run", Callbacks())
    trainer.save(best=False)
    whole = train(recipe, tmp_path / "whole")
    resumed = resume_run(tmp_path / "run", Callbacks())
    assert resumed.progress.step == 0
    resumed.fit()
    assert_same(tensors(tmp_path / "run"), tensors(tmp_path / "whole"))
    assert all(torch.equal(a, b) for a, b in zip(resumed.model.parameters(), whole.model.parameters(), strict=True))
    assert json.loads((tmp_path / "run" / "data.json").read_text())["bare"]["dataset"] == "bare"
