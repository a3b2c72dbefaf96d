"""Search spaces: what is read, what is refused, and the recipes of trials."""

import warnings
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramify.errors import RamifyError
from ramify.recipe import load_recipe, parse_recipe
from ramify.search.space import SPACES, Space, make_space, read_space

RECIPE = load_recipe("demo").model_dump(mode="json")
DATASET = next(iter(RECIPE["datasets"]))
KINDS = {"model.encoder.kind": ["egnn", "painn", "schnet"]}
CONSERVATIVE = {"model.force_head.kind": {"choices": ["conservative"], "when": {"model.encoder.kind": ["schnet"]}}}


def space(content: Any, recipe: Any = RECIPE) -> Space:
    return make_space(content, recipe, "space.yaml")


def sampled(found: Space, seed: int) -> dict[str, Any]:
    """Values of a random trial."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask()
    found.suggest(trial)
    return found.values(trial.params)


@pytest.mark.parametrize("name", sorted(path.stem for path in SPACES.glob("*.yaml")))
@pytest.mark.parametrize("recipe", ["demo", "five", "paper"])
def test_spaces_of_the_package_fit_its_recipes(name: str, recipe: str) -> None:
    found = read_space(name, load_recipe(recipe).model_dump(mode="json"))
    for seed in range(12):
        parse_recipe(found.trial_recipe(sampled(found, seed)), "a trial")


def test_the_space_of_the_paper() -> None:
    """Its ranges, as published with the reference implementation."""
    content = read_space("paper", load_recipe("paper").model_dump(mode="json")).content
    ranges = {key: (entry["low"], entry["high"]) for key, entry in content.items() if "low" in entry}
    assert ranges == {
        "model.encoder.layers": (2, 6),
        "model.encoder.width": (100, 3000),
        "model.energy_head.layers": (2, 4),
        "model.energy_head.width": (300, 2000),
        "objective.forces": (10, 1000),
        "optimizer.lr": (1e-5, 3e-3),
    }


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        ([], "list"),
        ({}, "mapping"),
        ({"optimizer.lr": 5}, r"optimizer\.lr.*5.*low"),
        ({"optimizer": {"lr": [1]}}, r"optimizer: lr.*unknown.*dotted"),
        ({"optimizer.lr": {"low": 1.0}}, r"optimizer\.lr.*high"),
        ({"optimizer.lr": {"low": 1.0, "high": 2.0, "choices": [1]}}, r"optimizer\.lr.*choices"),
        ({"optimizer.lr": {"low": 2.0, "high": 1.0}}, r"low 2\.0, high 1\.0"),
        ({"optimizer.lr": {"low": 0.0, "high": 1.0, "log": True}}, r"low 0\.0.*above 0"),
        ({"optimizer.lr": {"low": 0.1, "high": 1.0, "log": True, "step": 0.1}}, r"step 0\.1.*no step"),
        ({"train.batch": {"low": 1, "high": 10, "step": 4}}, r"train\.batch.*step 4.*divide"),
        ({"train.batch": {"low": 1, "hig": 10}}, r"train\.batch.*hig.*'high'"),
        ({"train.batch": [4, 4]}, r"train\.batch.*4.*differ"),
        ({"train.batch": []}, r"train\.batch.*differ"),
        ({"train.batch": {"choices": [4, 8], "log": True}}, r"train\.batch.*log"),
        ({"train.batch": {"low": 0, "high": 8}}, r"train\.batch.*greater than or equal to 1.*0"),
        ({"train.batch": {"low": 1.0, "high": 8.0}}, r"train\.batch.*integer.*\n.*whole numbers"),
        ({"optimizer.lrr": [1, 2]}, r"optimizer\.lrr.*'lr'"),
        ({"model.encoder.kind": ["egn"]}, r"egn.*'egnn'.*tensornet"),
        ({"objective.weights.none": [1, 2]}, r"objective\.weights.*'none'.*" + DATASET),
        (KINDS | {"model.encoder.vector_channels": [2]}, r"vector_channels.*\n.*when.*kind: \[egnn\]"),
        (
            {"train.batch": {"choices": [1], "when": {"optimizer.kind": "muon"}}},
            r"optimizer\.kind.*before train\.batch",
        ),
        (KINDS | {"train.batch": {"choices": [1], "when": {"model.encoder.kind": "x"}}}, r"x.*egnn, painn, schnet"),
        ({"train.batch": {"choices": [1], "also": ["train.batch"]}}, r"also.*train\.batch|train\.batch.*also"),
    ],
)
def test_refused(content: Any, facts: str) -> None:
    with pytest.raises(RamifyError, match=f"(?s){facts}"):
        space(content)


def test_a_space_that_does_not_exist(tmp_path: Any) -> None:
    with pytest.raises(RamifyError, match=r"(?s)nowhere.*compact, paper"):
        read_space("nowhere", RECIPE)
    (tmp_path / "s.yaml").write_text("a: [1\n")
    with pytest.raises(RamifyError, match=r"s\.yaml.*YAML"):
        read_space(tmp_path / "s.yaml", RECIPE)


def test_keys_of_one_kind_and_values_for_several_keys() -> None:
    found = space(
        KINDS
        | CONSERVATIVE
        | {
            "model.encoder.vector_channels": {"low": 2, "high": 4, "when": {"model.encoder.kind": "egnn"}},
            "model.energy_head.width": {"low": 8, "high": 64, "log": True, "also": ["model.force_head.width"]},
        }
    )
    seen = set()
    for seed in range(20):
        values = sampled(found, seed)
        recipe = parse_recipe(found.trial_recipe(values), "a trial")
        kind = recipe.model.encoder.kind
        seen.add(kind)
        assert ("model.encoder.vector_channels" in values) == (kind == "egnn")
        assert (recipe.model.force_head.kind == "conservative") == (kind == "schnet" or "conservative" in str(RECIPE))
        assert recipe.model.energy_head.width == recipe.model.force_head.width == values["model.energy_head.width"]
        assert recipe.model.encoder.cutoff == RECIPE["model"]["encoder"]["cutoff"]
    assert seen == {"egnn", "painn", "schnet"}


def test_weights_and_sampling_of_datasets() -> None:
    keys = {
        f"objective.weights.{DATASET}": {"low": 0.1, "high": 10.0, "log": True},
        f"train.sampling.{DATASET}": {"low": 0.5, "high": 2.0},
    }
    recipe = RECIPE | {"train": RECIPE["train"] | {"sampling": "proportional"}}
    found = space(keys, recipe)
    content = found.trial_recipe(values := sampled(found, 0))
    assert content["objective"]["weights"][DATASET] == values[f"objective.weights.{DATASET}"]
    assert content["train"]["sampling"] == {DATASET: values[f"train.sampling.{DATASET}"]}
    with pytest.raises(RamifyError, match=r"(?s)equal.*proportional"):
        space(keys, RECIPE | {"train": RECIPE["train"] | {"sampling": "equal"}})


def test_choices_of_any_type_survive_optuna() -> None:
    found = space({"optimizer.clip": [None, 5.0], "train.sampling": ["equal", {DATASET: 2.0}]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of Optuna, about types that it cannot store
        values = [sampled(found, seed) for seed in range(20)]
    assert {str(v["train.sampling"]) for v in values} == {"equal", str({DATASET: 2.0})}
    assert {v["optimizer.clip"] for v in values} == {None, 5.0}


def test_the_size_of_a_finite_space() -> None:
    finite = KINDS | {"model.encoder.vector_channels": {"choices": [2, 4], "when": {"model.encoder.kind": "egnn"}}}
    assert space(finite).size == 4
    assert space(finite | {"train.batch": {"low": 4, "high": 8, "step": 2}}).size == 12
    assert space(finite | {"optimizer.lr": {"low": 0.1, "high": 0.2}}).size is None


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 50), st.integers(1, 50), st.booleans(), st.integers(0, 2**31 - 1))
def test_samples_are_within_their_range(low: int, more: int, log: bool, seed: int) -> None:
    found = space({"train.batch": {"low": low, "high": low + more, "log": log}})
    value = sampled(found, seed)["train.batch"]
    assert isinstance(value, int)
    assert low <= value <= low + more
