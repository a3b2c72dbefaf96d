"""Recipes: errors name the key and the accepted values; valid recipes survive a round trip."""

import copy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from ramify.errors import RamifyError
from ramify.recipe import RECIPES, EncoderOptions, Recipe, encoder_class, encoder_kinds, load_recipe, parse_recipe
from ramify.recipe.encoder import KINDS, OPTIONS, options_class
from ramify.sources.formats import find_format, formats

BASE: dict[str, Any] = {
    "datasets": {
        "molecules": {"format": "qm7x", "path": "1000.hdf5"},
        "crystals": {"format": "mptrj", "path": "MPtrj.json"},
    }
}


def changed(**changes: Any) -> dict[str, Any]:
    """`BASE` with keys set, `__` for the dot."""
    content = copy.deepcopy(BASE)
    for key, value in changes.items():
        group = content
        *parents, last = key.split("__")
        for parent in parents:
            group = group.setdefault(parent, {})
        group[last] = value
    return content


def refused(content: Any) -> str:
    """The message with which a recipe is refused."""
    with pytest.raises(RamifyError) as caught:
        parse_recipe(content, "my.yaml")
    text = str(caught.value)
    assert text.startswith("my.yaml is not a valid recipe:\n  ")
    return text.removeprefix("my.yaml is not a valid recipe:\n  ")


def groups(model: type[BaseModel], prefix: str = "") -> list[tuple[str, type[BaseModel]]]:
    """Every group of keys of a recipe, with the model that states its keys."""
    found = [(prefix, model)]
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            inside = f"{prefix}{name}."
            if field.annotation is EncoderOptions:
                found += [(inside, options_class(kind)) for kind in encoder_kinds()]
            else:
                found += groups(field.annotation, inside)
    return found


@pytest.mark.parametrize(("prefix", "model"), groups(Recipe))
def test_an_unknown_key_anywhere_names_the_nearest_and_all_that_are_known(prefix: str, model: type[BaseModel]) -> None:
    for key in model.model_fields:
        typo = key[:1] + "x" + key[1:] if len(key) > 2 else f"{key}x"
        content = changed(**{f"{prefix}{typo}".replace(".", "__"): 1})
        if issubclass(model, EncoderOptions):
            content["model"]["encoder"]["kind"] = model.model_fields["kind"].default
            required = {name: "gine" for name, field in model.model_fields.items() if name == "layer"}
            content["model"]["encoder"] |= required
        message = refused(content)
        assert message.startswith(f"{prefix}{typo}: unknown key, did you mean '{key}'?; accepted: ")
        assert message.endswith(", ".join(model.model_fields))


@pytest.mark.parametrize("name", sorted(formats()))
def test_an_unknown_key_of_a_dataset(name: str) -> None:
    """Every format has keys of its own, and gates below them."""
    keys = formats()[name].options.model_fields
    message = refused(changed(datasets__new={"format": name, "pth": "x"}))
    assert (
        f"datasets.new.pth: unknown key, did you mean 'path'?; accepted: {', '.join(keys)}" in message.splitlines()[-1]
    )
    message = refused(changed(datasets__new={"format": name, "path": "x", "gates": {"max_froce": 1}}))
    assert message.startswith(
        "datasets.new.gates.max_froce: unknown key, did you mean 'max_force'?; accepted: max_force,"
    )


def test_encoders_without_a_kind_are_many_body() -> None:
    """A key of another kind is refused with the kinds that have it; files of runs and models always state the kind."""
    content = changed()
    content["model"] = {"encoder": {"layers": 3}}
    recipe = parse_recipe(content, "my.yaml")
    assert recipe.model.encoder.kind == "many_body"
    assert recipe.model.model_dump(mode="json")["encoder"]["kind"] == "many_body"
    content["model"] = {"encoder": {"layers": 3, "message_layers": 1}}
    message = refused(content)
    assert "model.encoder.message_layers: unknown key" in message
    assert "a key of egnn" in message


def test_a_key_near_no_other() -> None:
    assert refused(changed(quantum=1)).startswith("quantum: unknown key; accepted: name, stores, datasets")


def test_every_mistake_is_told_at_once() -> None:
    message = refused(changed(trian={}, optimizer__lr=-1, model__encoder__layers="many"))
    assert len(message.splitlines()) == 3
    assert "optimizer.lr: Input should be greater than 0, found -1" in message
    assert "model.encoder.layers: Input should be a valid integer" in message


def test_formats() -> None:
    message = refused(changed(datasets__new={"format": "qm7", "path": "x"}))
    assert message == (
        f"datasets.new.format: 'qm7' is unknown, did you mean 'qm7x'?; accepted: {', '.join(sorted(formats()))}"
    )
    assert refused(changed(datasets__new={"path": "x"})).startswith("datasets.new: needs `format`, one of alexandria,")
    assert refused(changed(datasets__new="x.h5")).startswith("datasets.new: needs `format`")
    assert refused(changed(datasets__new={"format": "qm7x"})) == "datasets.new.path: missing"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("train__batch", 0, "train.batch: Input should be greater than or equal to 1, found 0"),
        ("train__batch", 2.5, "train.batch: Input should be a valid integer, got a number with a fractional part"),
        ("train__seed", -1, "train.seed: Input should be greater than or equal to 0, found -1"),
        ("train__epochs", 0, "train.epochs: Input should be greater than 0, found 0"),
        ("train__precision", "fp16", "train.precision: Input should be 'fp32', 'fp64', 'bf16' or 'tf32', found 'fp16'"),
        ("model__encoder__cutoff", 0, "model.encoder.cutoff: Input should be greater than 0, found 0"),
        ("model__encoder__max_neighbors", 0, "model.encoder.max_neighbors: Input should be greater than or equal to 1"),
        ("model__encoder__kind", "egn", "model.encoder.kind: 'egn' is unknown, did you mean 'egnn'?; accepted: egnn"),
        ("model__encoder__kind", 3, "model.encoder.kind: found 3; accepted: egnn"),
        ("model__encoder", "egnn", "model.encoder: Input should be a valid dictionary, found 'egnn'"),
        (
            "model__force_head__kind",
            "x",
            "model.force_head.kind: Input should be 'direct' or 'conservative', found 'x'",
        ),
        ("optimizer__lr", float("nan"), "optimizer.lr: Input should be a finite number, found nan"),
        ("optimizer__lr", float("inf"), "optimizer.lr: Input should be a finite number, found inf"),
        ("optimizer__ema", 1, "optimizer.ema: Input should be less than 1, found 1"),
        ("optimizer__betas", [0.9, 1.5], "optimizer.betas.1: Input should be less than 1, found 1.5"),
        ("schedule__factor", 1.0, "schedule.factor: Input should be less than 1, found 1.0"),
        (
            "objective__weights",
            {"crystals": -1},
            "objective.weights.crystals: Input should be greater than or equal to 0",
        ),
        ("train", None, "train: Input should be a valid dictionary"),
        ("datasets", {}, "datasets: Dictionary should have at least 1 item"),
        ("datasets", ["a.h5"], "datasets: Input should be a valid dictionary, found ['a.h5']"),
        ("datasets__molecules__forces_sign", 2, "datasets.molecules.forces_sign: Input should be 1 or -1, found 2"),
        (
            "datasets__molecules__split",
            {"tst": 0.1},
            "datasets.molecules.split.tst: unknown key, did you mean 'test'?; accepted: by, val, test",
        ),
        (
            "datasets__molecules__path",
            3,
            "datasets.molecules.path: Input should be a valid string or a valid list or a valid dictionary, found 3",
        ),
        (
            "train__sampling",
            "equally",
            "train.sampling: Input should be 'proportional', 'equal' or 'temperature' or a valid dictionary, found",
        ),
        ("branches", "each", "branches: Input should be 'per-dataset' or 'shared' or a valid dictionary, found 'each'"),
        ("branches", {"all": "crystals"}, "branches.all: Input should be a valid list, found 'crystals'"),
    ],
)
def test_values_out_of_range(key: str, value: Any, expected: str) -> None:
    message = refused(changed(**{key: value}))
    assert message.startswith(expected)
    assert "\n" not in message


def test_what_contradicts_itself() -> None:
    nothing = {"molecules": 0, "crystals": 0}
    assert refused(changed(objective__weights=nothing)).startswith(
        "objective.weights: the weights of all datasets are 0"
    )
    parse_recipe(changed(objective__weights={"molecules": 0}), "my.yaml")
    assert refused(changed(objective={"energy": 0, "forces": 0})).startswith("objective: energy, forces and stress are")
    assert refused(changed(objective__stress=1.0)).startswith("objective.stress: needs model.force_head.kind: conserv")
    parse_recipe(changed(objective__stress=1.0, model__force_head__kind="conservative"), "my.yaml")


@pytest.mark.parametrize("key", ["objective__weights", "train__sampling"])
def test_maps_over_datasets_name_datasets(key: str) -> None:
    message = refused(changed(**{key: {"crystal": 2.0}}))
    dotted = key.replace("__", ".")
    assert (
        message == f"{dotted}: no dataset is called 'crystal', did you mean 'crystals'?; datasets: molecules, crystals"
    )


@pytest.mark.parametrize("factor", [0, -0.5])
def test_sampling_factors_are_positive(factor: float) -> None:
    assert refused(changed(train__sampling={"crystals": factor})) == (
        "train.sampling: the factor of crystals must be above 0"
    )


def test_branches() -> None:
    both = {"molecules": "molecules", "crystals": "crystals"}
    assert parse_recipe(BASE, "x").branch_of_datasets() == both
    assert parse_recipe(BASE, "x").datasets_of_branches() == {"molecules": ["molecules"], "crystals": ["crystals"]}
    shared = parse_recipe(changed(branches="shared"), "x")
    assert shared.datasets_of_branches() == {"shared": ["molecules", "crystals"]}
    assert set(shared.branch_of_datasets().values()) == {"shared"}
    stated = parse_recipe(changed(branches={"b": ["crystals"], "a": ["molecules"]}), "x")
    assert stated.branch_of_datasets() == {"crystals": "b", "molecules": "a"}


@pytest.mark.parametrize(
    ("branches", "expected"),
    [
        ({"a": ["molecules"]}, "branches: no branch reads crystals; list every dataset once"),
        (
            {"a": ["molecules", "crystals"], "b": ["crystals"]},
            "branches: crystals occurs in more than one branch; list every dataset once",
        ),
        (
            {"a": ["molecules", "cristals"]},
            "branches: no dataset is called 'cristals', did you mean 'crystals'?; datasets: molecules, crystals",
        ),
        ({"a": ["molecules", "crystals"], "b": []}, "branches: b has no dataset"),
        ({"a/b": ["molecules", "crystals"]}, "'a/b' cannot be a name: use letters, digits, '-' and '_'"),
    ],
)
def test_branches_that_cannot_be(branches: dict[str, list[str]], expected: str) -> None:
    assert refused(changed(branches=branches)) == expected


@pytest.mark.parametrize("name", ["", "a b", "../up", "a.b", "-a"])
def test_names_of_datasets_are_names_of_folders(name: str) -> None:
    assert "cannot be a name" in refused({"datasets": {name: BASE["datasets"]["molecules"]}})


def written(tmp_path: Path, text: str = "") -> Path:
    (tmp_path / "my.yaml").write_text(text or yaml.safe_dump(BASE))
    return tmp_path / "my.yaml"


def test_overrides(tmp_path: Path) -> None:
    recipe = load_recipe(
        written(tmp_path),
        [
            "train.max_steps=20",
            "optimizer.lr=1e-3",
            "model.encoder.max_neighbors=null",
            "branches={all: [molecules, crystals]}",
            "datasets.crystals.path=other=file.json",
            "name='a: b'",
            "train.max_steps=30",
        ],
    )
    assert recipe.train.max_steps == 30  # the last one counts
    assert recipe.optimizer.lr == 1e-3
    assert recipe.model.encoder.max_neighbors is None
    assert recipe.datasets_of_branches() == {"all": ["molecules", "crystals"]}
    assert recipe.datasets["crystals"].path == "other=file.json"
    assert recipe.name == "a: b"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.max_steps", "'train.max_steps' is not an override\n  fix: write key.sub=value"),
        ("=3", "'=3' is not an override"),
        ("name.x=3", "'name.x=3': 'name' holds 'run', not a group of keys"),
        ("train.batch=[1", "'train.batch=[1': the value is not YAML"),
        ("train.bacth=3", "train.bacth: unknown key, did you mean 'batch'?"),
        ("datasets.crystal.path=x", "datasets.crystal: needs `format`"),
    ],
)
def test_overrides_that_cannot_be(tmp_path: Path, override: str, expected: str) -> None:
    path = written(tmp_path, yaml.safe_dump(BASE | {"name": "run"}))
    with pytest.raises(RamifyError) as caught:
        load_recipe(path, [override])
    assert expected in str(caught.value)


def test_an_override_changes_one_place(tmp_path: Path) -> None:
    """Also where the file uses one YAML group twice."""
    text = """
    datasets:
      a: {format: extxyz, path: a.xyz, gates: &gates {max_force: 30}}
      b: {format: extxyz, path: b.xyz, gates: *gates}
    """
    recipe = load_recipe(written(tmp_path, text), ["datasets.a.gates.max_force=50"])
    assert [recipe.datasets[name].gates.max_force for name in "ab"] == [50, 30]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"datasets: [", "is not valid YAML"),
        (b"\x89HDF\r\n\x1a\n\x00\xff", "is not valid YAML"),
        (b"- a\n- b\n", "holds list, a recipe is a mapping of keys"),
        (b"", "holds NoneType, a recipe is a mapping of keys"),
        (b"train: {batch: 3, batch: 4}\n", "the key 'batch' occurs twice"),
        (b"name: a\nname: b\n", "the key 'name' occurs twice"),
    ],
)
def test_files_that_are_no_recipes(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "my.yaml").write_bytes(content)
    with pytest.raises(RamifyError) as caught:
        load_recipe(tmp_path / "my.yaml")
    assert expected in str(caught.value)
    assert "my.yaml" in str(caught.value)


def test_a_missing_recipe_names_those_that_come_along(tmp_path: Path) -> None:
    with pytest.raises(RamifyError) as caught:
        load_recipe(tmp_path / "my.yaml")
    names = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml")))
    assert str(caught.value) == f"no recipe at {tmp_path}/my.yaml\n  fix: give a YAML file or one of: {names}"


@pytest.mark.parametrize("name", sorted(p.stem for p in RECIPES.glob("*.yaml")))
def test_packaged_recipes_load(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name from any folder, and from their resolved form."""
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(name)
    assert len(recipe.datasets) == {"acac": 1, "bpa3": 1, "successor": 16}.get(name, 5)
    assert load_recipe(written(tmp_path, recipe.to_yaml())) == recipe


def test_the_paper_s_setting_is_the_paper_s() -> None:
    recipe = load_recipe("paper")
    encoder, heads = recipe.model.encoder, (recipe.model.energy_head, recipe.model.force_head)
    assert (encoder.kind, encoder.layers, encoder.width) == ("egnn", 4, 866)
    assert [(head.layers, head.width) for head in heads] == [(3, 889)] * 2
    assert (recipe.branches, recipe.optimizer.kind, recipe.optimizer.lr) == ("per-dataset", "adamw", 1e-3)
    assert recipe.train.batch == 128
    assert recipe.train.patience is not None


positive = st.floats(1e-6, 1e6)
OVERRIDES = st.fixed_dictionaries(
    {},
    optional={
        "name": st.text(max_size=20),
        "branches": st.sampled_from(["shared", "per-dataset", {"x": ["crystals"], "y": ["molecules"]}]),
        "model__encoder__cutoff": positive,
        "model__encoder__max_neighbors": st.none() | st.integers(1, 100),
        "model__force_head__kind": st.sampled_from(["direct", "conservative"]),
        "objective__weights": st.dictionaries(st.sampled_from(["crystals", "molecules"]), positive),
        "objective__form": st.sampled_from(["mae", "l2norm", "huber", "mse"]),
        "optimizer__betas": st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)),
        "optimizer__clip": st.none() | positive,
        "schedule__kind": st.sampled_from(["cosine", "plateau", "constant"]),
        "train__sampling": st.sampled_from(["equal", {"crystals": 0.3}]),
        "train__epochs": positive,
        "train__max_steps": st.none() | st.integers(1, 10**9),
        "train__seed": st.integers(0, 2**63 - 1),
        "datasets__molecules__path": st.sampled_from(["a", ["a", "b"], {"train": "a", "val": ["b"], "test": "c"}]),
        "datasets__crystals__gates": st.fixed_dictionaries({"max_force": positive}),
        "datasets__crystals__theory": st.text(max_size=20),
    },
)


@settings(max_examples=60, deadline=None)
@given(OVERRIDES)
def test_a_resolved_recipe_means_the_same(changes: dict[str, Any]) -> None:
    """Written as YAML with all defaults and read again it is equal, so a run can be repeated from its own recipe."""
    recipe = parse_recipe(changed(**changes), "x")
    again = parse_recipe(yaml.safe_load(recipe.to_yaml()), "x")
    assert again == recipe
    assert again.to_yaml() == recipe.to_yaml()
    assert {type(options) for options in again.datasets.values()} == {type(o) for o in recipe.datasets.values()}


def test_a_recipe_is_read_without_pytorch_and_formats_that_it_does_not_name() -> None:
    """Each takes longer to import than everything else needed to read a recipe."""
    code = "import sys; from ramify.recipe import load_recipe; load_recipe('demo')\n"
    code += "assert {'ase.db', 'torch'}.isdisjoint(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_keys_of_encoders_are_those_of_their_classes() -> None:
    there = [kind for kind in KINDS if kind != "pyg" or find_spec("torch_geometric") is not None]
    assert {kind: encoder_class(kind).Options for kind in there} == {kind: OPTIONS[kind] for kind in there}
    assert set(KINDS) == set(OPTIONS)


def test_formats_are_found_by_their_names() -> None:
    assert {name: find_format(name) for name in formats()} == formats()
    for name in ("base", "chunks", "../qm7x", "qm7", ""):
        assert find_format(name) is None
