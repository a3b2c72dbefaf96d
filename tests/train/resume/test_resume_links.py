"""A resume that is refused removes nothing; runs of earlier programs, and copies of them, go on."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ramify.checkpoint.checkpoint import open_checkpoint
from ramify.checkpoint.pointers import NAME, read_pointers
from ramify.errors import RamifyError
from ramify.inference.model import load
from ramify.inspect import describe
from ramify.recipe import Recipe
from ramify.train.reporting import Callbacks
from ramify.train.start import resume_run
from tests.checkpoint.test_pointers import COPIES, as_it_is, links_as_files
from tests.small import assert_same, files_of, flip_byte, metrics, tensors, train
from tests.train.conftest import MakeRecipe


def small_recipe(small: MakeRecipe, steps: int) -> Recipe:
    """Evaluations every 2 steps; with this rate a later one than the first is the best, and not the last."""
    every = {"train__evaluate_every": 0.4, "train__checkpoint_every": 0.2, "schedule__kind": "constant"}
    return small("bare", train__max_steps=steps, optimizer__lr=0.1, optimizer__ema=0.0, **every)


@pytest.fixture
def linked(small: MakeRecipe, tmp_path: Path) -> Path:
    """A run whose checkpoints have links instead of pointers.json."""
    train(small_recipe(small, 9), tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    pointers = read_pointers(folder)
    assert pointers["best"] != pointers["latest"]
    (folder / NAME).unlink()
    for name, target in pointers.items():
        (folder / name).symlink_to(target)
    return tmp_path / "run"


def test_a_link_to_nothing_removes_nothing(linked: Path) -> None:
    """The newest checkpoint is kept after the refusal, and used at the user's request."""
    latest = linked / "checkpoints" / "latest"
    kept = os.readlink(latest)
    latest.unlink()
    latest.symlink_to("step-99999999")
    before = files_of(linked)
    with pytest.raises(RamifyError, match=rf"latest is step-99999999, which does not exist; existing: .*{kept}"):
        resume_run(linked, Callbacks())
    assert files_of(linked) == before
    latest.unlink()
    assert resume_run(linked, Callbacks()).progress.step == int(kept[5:])


@pytest.mark.parametrize("spoil", ["a step that is not there", "a damaged tensor", "another recipe"])
def test_a_refused_resume_removes_nothing(small: MakeRecipe, tmp_path: Path, spoil: str) -> None:
    """Nor a whole checkpoint that a killed program had not pointed to yet."""
    run = tmp_path / "run"
    train(small_recipe(small, 9), run)
    folder = run / "checkpoints"
    latest = read_pointers(folder)["latest"]
    shutil.copytree(folder / latest, folder / "step-00000012")
    (folder / ".step-00000013.partial-1").mkdir()
    recipe = None
    if spoil == "a damaged tensor":
        flip_byte(folder / latest / "training" / "encoder.safetensors")
    elif spoil == "another recipe":
        recipe = small("bare", model__encoder__width=16)
    else:
        (folder / NAME).write_text((folder / NAME).read_text().replace(latest, "step-00000099"))
    before = files_of(run)
    with pytest.raises(RamifyError):
        resume_run(run, Callbacks(), recipe=recipe)
    assert files_of(run) == before
    assert (folder / ".step-00000013.partial-1").is_dir()


@pytest.mark.parametrize("copied", COPIES)
def test_copies_go_on(small: MakeRecipe, linked: Path, tmp_path: Path, copied: Callable[[Path, Path], None]) -> None:
    """They predict and are described as the run itself, and go on to the same bits; the best stays."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in linked.iterdir():
        if file.is_file():
            shutil.copy(file, copy)
    copied(linked / "checkpoints", copy / "checkpoints")
    best = read_pointers(linked / "checkpoints")["best"]
    for where in [copy, *([copy / "checkpoints" / "best"] if copied is not links_as_files else [])]:
        assert_same(dict(load(where).network.state_dict()), dict(load(linked).network.state_dict()))
    if copied is not links_as_files:
        for which in ("latest", "best"):
            facts = describe(copy, verify=True)[1]
            assert facts[which] == describe(copy / "checkpoints" / which, verify=False)[1]
            assert facts[which]["step"] == describe(linked, verify=False)[1][which]["step"]
    longer = small_recipe(small, 9)
    resume_run(copy, Callbacks(), recipe=longer).fit()
    assert read_pointers(copy / "checkpoints")["best"] == best
    assert open_checkpoint(copy / "checkpoints" / best).step == int(best[5:])
    load(copy)
    assert metrics(copy) == metrics(linked)
    if copied is as_it_is:
        assert not any(path.is_symlink() for path in (copy / "checkpoints").iterdir())
    assert_same(tensors(copy), tensors(linked))
