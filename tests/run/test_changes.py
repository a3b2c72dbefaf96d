"""Keys that may change when a run is resumed: its length and its steps, not the model; datasets only if listed."""

import re
from pathlib import Path
from typing import Any

import pytest

from ramify.errors import RamifyError
from ramify.recipe import Recipe, parse_recipe
from ramify.run.changes import FREE, TRAINING, Changes, compare
from ramify.run.sessions import NAME, Sessions
from tests.small import ENTRIES, make_recipe

ALL = tuple(ENTRIES)


def recipe(*names: str, **changes: Any) -> Recipe:
    return make_recipe(Path("/nowhere"), {name: ENTRIES[name] for name in names or ALL}, **changes)


def refusal(before: Recipe, now: Recipe) -> str:
    with pytest.raises(RamifyError) as error:
        compare(before, now, "new.yaml")
    return str(error.value)


def test_the_same_recipe_changes_nothing() -> None:
    assert compare(recipe(), recipe(), "") == Changes({})
    mapped = recipe(branches={name: [name] for name in ALL})  # another way to say the same
    assert compare(recipe(), mapped, "") == Changes({})


def test_what_defines_no_step_may_change() -> None:
    now = recipe(
        name="other",
        stores="/elsewhere",
        parallel={"placement": {name: [0, 1] for name in ALL}, "timeout": 5.0, "micro_batch_atoms": 100},
        train__threads=3,
        train__time_limit=10.0,
        train__log_every=7,
        train__checkpoint_every=3.0,
        train__edge_cache=0.0,
        train__neighbor_search="device",
    )
    changes = compare(recipe(), now, "")
    assert changes.keys["parallel.placement"] == ["auto", {name: [0, 1] for name in ALL}]
    assert changes.keys["train.log_every"] == [2, 7]
    assert set(changes.keys) == {
        "name", "stores", "parallel.placement", "parallel.timeout", "parallel.micro_batch_atoms", "train.threads",
        "train.time_limit", "train.log_every", "train.checkpoint_every", "train.edge_cache",
        "train.neighbor_search",
    }  # fmt: skip
    assert not changes.of_data


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train__batch", 16),
        ("train__precision", "fp64"),
        ("train__max_steps", 100),
        ("train__epochs", 60.0),
        ("train__evaluate_every", 0.5),
        ("train__patience", 3),
        ("train__sampling", {"qm7x": 2.0}),
        ("optimizer__lr", 0.5),
        ("optimizer__ema", 0.5),
        ("objective__forces", 3.0),
        ("objective__weights", {"qm7x": 2.0}),
        ("schedule__kind", "constant"),
        ("schedule__start", 7),
    ],
)
def test_how_it_is_trained_may_change(key: str, value: Any) -> None:
    """A message states both values."""
    name = key.replace("__", ".")
    changes = compare(recipe(), recipe(**{key: value}), "")
    assert changes.of_training
    assert all(changed.startswith(name) for changed in changes.keys)
    assert all(" -> " in text and text.startswith(name) for text in changes.texts())


@pytest.mark.parametrize(
    ("key", "value", "verb"),
    [
        ("train__seed", 1, "ramify train RECIPE --run NEW"),
        ("model__encoder__width", 16, "ramify train RECIPE --run NEW"),
        ("finetune__rank", 3, "ramify finetune MODEL RECIPE --run NEW"),
    ],
)
def test_what_defines_the_run_may_not(key: str, value: Any, verb: str) -> None:
    """The refusal names the command that can."""
    name = key.replace("__", ".")
    text = refusal(recipe(), recipe(**{key: value}))
    assert f"new.yaml is not the recipe of this run ({name}" in text
    assert verb in text


def test_other_data_need_another_run() -> None:
    entries = ENTRIES | {"qm7x": ENTRIES["qm7x"] | {"split_seed": 2}}
    before, now = (make_recipe(Path("/nowhere"), given) for given in (ENTRIES, entries))
    text = refusal(before, now)
    assert "datasets.qm7x.split_seed: 0, now 2" in text
    assert "ramify finetune RUN RECIPE --run NEW" in text


def test_every_key_that_differs_is_named() -> None:
    text = refusal(recipe(), recipe(train__seed=16, model__encoder__width=16, name="free", train__batch=3))
    assert "(model.encoder.width: 8, now 16; train.seed: 0, now 16)\n  fix: restore it" in text


def test_the_page_lists_the_keys() -> None:
    """docs/clusters.md, all of them and no others."""
    page = (Path(__file__).parents[2] / "docs/clusters.md").read_text()
    section = page.split("### Keys that may change\n")[1].split("\n### ")[0]
    rows = dict(re.findall(r"^\| (no step|steps from here on) \| (.*) \|$", section, re.MULTILINE))
    assert {what: tuple(re.findall("`([^`]+)`", keys)) for what, keys in rows.items()} == {
        "no step": FREE, "steps from here on": TRAINING,
    }  # fmt: skip


def test_datasets_come_and_go_where_they_are_listed() -> None:
    two, three = ("ani1x", "mptrj"), ("ani1x", "qm7x", "mptrj")
    assert "datasets.qm7x: the run has no such dataset, and train.resume.add does not list it" in refusal(
        recipe(*two), recipe(*three)
    )
    assert "datasets.qm7x: the run has it, and train.resume.drop does not list it" in refusal(
        recipe(*three), recipe(*two)
    )
    resume = {"add": ["qm7x"], "drop": []}
    now = recipe(*three, train__resume=resume, objective__weights={"qm7x": 2.0}, train__sampling={"qm7x": 3.0})
    before = recipe(*two, train__sampling={"mptrj": 1.0})
    assert compare(before, now, "").keys["train.sampling.mptrj"] == [1.0, None]
    changes = compare(recipe(*two, train__sampling={}), now, "")
    assert (changes.added, changes.dropped, changes.of_data) == (("qm7x",), (), True)
    assert changes.keys["objective.weights.qm7x"] == [None, 2.0]
    assert compare(now, now, "") == Changes({})  # it stays listed once it has come
    gone = recipe(*two, train__resume={"add": [], "drop": ["qm7x"]}, train__sampling={})
    assert compare(now, gone, "").dropped == ("qm7x",)


def test_a_listed_dataset_excuses_no_other_change() -> None:
    now = recipe("ani1x", "qm7x", train__resume={"add": ["qm7x"]}, train__seed=4)
    assert "(train.seed: 0, now 4)" in refusal(recipe("ani1x"), now)


def test_a_dataset_stays_with_its_branch() -> None:
    before = recipe(branches={"a": ["ani1x", "qm7x"], "b": ["mptrj"]})
    now = recipe(branches={"a": ["ani1x"], "b": ["qm7x", "mptrj"]})
    assert "(branches: qm7x was read by a, now by b)" in refusal(before, now)
    assert "branches: ani1x was read by ani1x, now by shared" in refusal(recipe(), recipe(branches="shared"))


def test_keys_that_came_with_later_versions_have_their_defaults() -> None:
    """A checkpoint of a program without these keys."""
    old = recipe().model_dump(mode="json")
    del old["parallel"], old["train"]["resume"], old["train"]["time_limit"]
    assert compare(parse_recipe(old, "old"), recipe(), "") == Changes({})


def test_sessions_are_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after a session that was killed while it wrote."""
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    first = Sessions(tmp_path)
    assert not first.had_checkpoint
    first.start(step=0, ranks=2, changed={})
    first.saved(5)
    first.saved(10)
    with (tmp_path / NAME).open("a") as file:
        file.write('{"kind": "en')
    second = Sessions(tmp_path)
    second.start(step=10, ranks=3, changed={"parallel.placement": ["auto", "replicated"]})
    second.end(12, "stopped: SIGTERM")
    lines = second.lines()
    assert [(line["kind"], line["step"]) for line in lines] == [
        ("start", 0), ("checkpoint", 5), ("start", 10), ("end", 12),
    ]  # fmt: skip
    assert lines[0]["job"] == "SLURM_JOB_ID=12"
    assert lines[2]["changed"] == {"parallel.placement": ["auto", "replicated"]}
    assert lines[3]["ended"] == "stopped: SIGTERM"
    assert second.had_checkpoint
