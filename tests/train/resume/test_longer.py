"""A finished run that is continued with more or other steps: messages, the learning rate, and counts of epochs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ramify.checkpoint.checkpoint import open_checkpoint
from ramify.errors import RamifyError
from ramify.recipe import Recipe
from ramify.train.loop import Trainer
from ramify.train.reporting import Callbacks
from ramify.train.start import resume_run, start_run
from tests.small import assert_same, metrics, tensors, train
from tests.train.conftest import MakeRecipe

NAMES = ("bare", "mptrj")
EVERY = {"train__evaluate_every": 0.2, "train__checkpoint_every": 0.2, "train__log_every": 1}


def go_on(path: Path, recipe: Recipe) -> Trainer:
    trainer = resume_run(path, Callbacks(), recipe=recipe)
    trainer.fit()
    return trainer


def rates(path: Path) -> list[float]:
    return [line["lr"] for line in metrics(path, "train")]


@pytest.mark.parametrize("kind", ["constant", "cosine"])
def test_more_steps_are_those_of_a_longer_run(small: MakeRecipe, tmp_path: Path, kind: str) -> None:
    """With a constant rate to the bit; with a cosine, later rates are those of the longer run."""
    length = {"schedule__kind": kind, **EVERY}
    whole = small(*NAMES, train__max_steps=20, **length)
    train(small(*NAMES, train__max_steps=8, **length), tmp_path / "run")
    trainer = go_on(tmp_path / "run", whole)
    assert trainer.progress.step == 20
    assert "changed since the last session: train.max_steps: 8 -> 20" in trainer.continuation
    train(whole, tmp_path / "whole")
    assert rates(tmp_path / "run")[8:] == rates(tmp_path / "whole")[8:]
    if kind == "constant":
        assert_same(tensors(tmp_path / "run"), tensors(tmp_path / "whole"))
    starts = [json.loads(line) for line in (tmp_path / "run" / "sessions.jsonl").read_text().splitlines()]
    changed = [line["changed"] for line in starts if line["kind"] == "start"]
    assert changed == [{}, {"train.max_steps": [8, 20]}]
    assert trainer.run.recipe().train.max_steps == 20


def test_the_schedule_begins_anew_where_it_is_told(small: MakeRecipe, tmp_path: Path) -> None:
    """The rates are those of a new run of the remaining steps, with warm-up; the message names the keys."""
    short = small(*NAMES, train__max_steps=8, **EVERY)
    train(short, tmp_path / "run")
    told = resume_run(tmp_path / "run", Callbacks(), recipe=small(*NAMES, train__max_steps=20, **EVERY))
    told.run.unlock()
    assert any(text.endswith("schedule.start=8 schedule.warmup_steps=3") for text in told.continuation)
    again = {"schedule__start": 8, "schedule__warmup_steps": 5}
    go_on(tmp_path / "run", small(*NAMES, train__max_steps=20, **again, **EVERY))
    train(small(*NAMES, train__max_steps=12, schedule__warmup_steps=5, **EVERY), tmp_path / "new")
    assert rates(tmp_path / "run")[:8] == pytest.approx(rates_of(short))
    assert rates(tmp_path / "run")[8:] == rates(tmp_path / "new")


def rates_of(recipe: Recipe) -> list[float]:
    from ramify.train.optimization.schedules import Schedule

    schedule = Schedule(recipe.schedule, recipe.optimizer.lr, recipe.train.max_steps or 0)
    return [schedule.rate(step) for step in range(recipe.train.max_steps or 0)]


def test_a_schedule_cannot_begin_later_than_the_run_stands(small: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(RamifyError, match=r"schedule\.start: 5, but the run is at step 0"):
        start_run(small("bare", schedule__start=5), tmp_path / "run", Callbacks())
    assert not (tmp_path / "run").exists()
    train(small("bare", train__max_steps=4), tmp_path / "run")
    with pytest.raises(RamifyError, match=r"schedule\.start: 5, but the run is at step 4"):
        resume_run(tmp_path / "run", Callbacks(), recipe=small("bare", train__max_steps=9, schedule__start=5))


def test_another_batch_keeps_epochs_and_skips_no_structure(small: MakeRecipe, tmp_path: Path) -> None:
    """`bare` has 44 structures: 2 epochs in batches of 4 are 22 steps; 2 more in batches of 11 are 8 steps."""
    first = {"train__max_steps": None, "train__log_every": 1, "schedule__kind": "constant"}
    trainer = train(small("bare", train__epochs=2.0, train__batch=4, **first), tmp_path / "run")
    assert trainer.progress.step == 22
    trainer = resume_run(
        tmp_path / "run", Callbacks(), recipe=small("bare", train__epochs=4.0, train__batch=11, **first)
    )
    assert trainer.total_steps == 30
    with trainer.loader() as loader:
        works = [next(loader) for _ in range(8)]
    assert all(sum(len(batch.energy) for batch in work.batches) == 11 for work in works)
    rows = [trainer.sampler.rows("bare", start["bare"], 11) for start in map(trainer.sampler.position, range(22, 30))]
    assert sorted(int(row) for part in rows for row in part) == sorted([*range(44), *range(44)])
    trainer.fit()
    epochs = [line["epoch"] for line in metrics(tmp_path / "run", "train")]
    assert epochs[20:] == pytest.approx([21 / 11, 2.0, *(2 + k / 4 for k in range(1, 9))], abs=1e-4)
    again = resume_run(tmp_path / "run", Callbacks())  # without a change: all of that is kept
    assert (again.total_steps, again.over) == (30, "all 30 steps are done")
    again.run.unlock()


def test_early_stopping_waits_anew(small: MakeRecipe, tmp_path: Path) -> None:
    """A run that it has ended prints a message when it is resumed, and continues once a key is changed."""
    wild = {"optimizer__lr": 0.5, "schedule__kind": "constant", "train__patience": 2, "train__evaluate_every": 1 / 6}
    trainer = train(small("bare", train__max_steps=60, **wild), tmp_path / "run")
    stopped = trainer.progress.step
    assert stopped < 60
    same = resume_run(tmp_path / "run", Callbacks())
    assert same.over.startswith(f"early stopping at step {stopped} of 60: no better metric in 2 evaluations")
    same.fit()
    assert same.progress.step == stopped
    calm = wild | {"optimizer__lr": 1e-3}
    assert go_on(tmp_path / "run", small("bare", train__max_steps=60, **calm)).progress.step >= stopped + 2


@pytest.mark.parametrize(
    "change",
    [
        {"objective__forces": 1.0, "objective__weights": {"bare": 3.0}},
        {"optimizer__ema": 0.0},
        {"optimizer__betas": (0.8, 0.9), "optimizer__weight_decay": 0.1, "optimizer__clip": None},
        {"train__sampling": "equal"},
        {"train__precision": "fp64"},
        {"objective__form": "huber", "objective__normalise": False},
    ],
    ids=lambda change: next(iter(change)),
)
def test_each_change_is_trained_by(small: MakeRecipe, tmp_path: Path, change: dict[str, Any]) -> None:
    """The weights go on from where they were, and go elsewhere than without the change; a further resume is exact."""
    every = EVERY | {"schedule__kind": "constant"}
    before = small(*NAMES, train__max_steps=8, **every)
    train(before, tmp_path / "run")
    trainer = resume_run(tmp_path / "run", Callbacks(), recipe=small(*NAMES, train__max_steps=16, **every, **change))
    kept = open_checkpoint(tmp_path / "run/checkpoints/latest").training()
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter.detach(), kept[name].to(parameter.dtype))
    if "optimizer__ema" in change:
        assert all(a is b or torch.equal(a, b) for a, b in zip(
            trainer.averages.averages, trainer.model.parameters(), strict=True
        ))  # fmt: skip
    trainer.fit()
    train(small(*NAMES, train__max_steps=16, **every), tmp_path / "unchanged")
    changed, unchanged = (open_checkpoint(tmp_path / n / "checkpoints/latest").weights() for n in ("run", "unchanged"))
    assert any(not torch.equal(changed[name].double(), unchanged[name].double()) for name in changed)
    assert all(torch.isfinite(tensor).all() for tensor in changed.values())
    longer = small(*NAMES, train__max_steps=24, **every, **change)
    go_on(tmp_path / "run", longer)
    assert open_checkpoint(tmp_path / "run/checkpoints/latest").step == 24
