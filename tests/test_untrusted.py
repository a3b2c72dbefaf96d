"""Files from untrusted sources cannot refer to files outside their folder, allocate more than their size, or crash."""

import json
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ramify.checkpoint import checkpoint as checkpoints
from ramify.checkpoint.pointers import resolve as pointed
from ramify.errors import RamifyError
from ramify.evaluate.evaluate import Evaluator
from ramify.evaluate.results import Results
from ramify.files import content_sha256
from ramify.inference.export.exported import write_export
from ramify.inference.model import load, read_saved
from ramify.inspect import describe
from ramify.recipe import load_recipe
from ramify.run.run import Run
from ramify.store.blocks import block_sum
from ramify.store.convert import convert_store
from ramify.store.store import Store
from ramify.untrusted import NAME_BYTES, check_name, regular_file
from tests.small import make_recipe, prepare_stores, train

OUTWARD = [
    "../../../outside",
    "/tmp/outside",
    "a/b",
    "a\\b",
    "..",
    ".",
    "",
    "-x",
    "a.b",
    "a\0b",
    "x" * (NAME_BYTES + 1),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with stores and the run `run`."""
    folder = tmp_path_factory.mktemp("untrusted")
    entries = prepare_stores(folder)
    train(make_recipe(folder, {name: entries[name] for name in ("ani1x", "mptrj")}), folder / "run")
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A run of a stranger, to be tampered with."""
    shutil.copytree(trained / "run", tmp_path / "in/run", symlinks=True)
    return tmp_path / "in/run"


def tamper(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes the manifest of a checkpoint, an export, as a stranger would: with a checksum that fits."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    content.pop("checksum", None)
    change(content)
    path.write_text(json.dumps(content | {"checksum": content_sha256(content)}))


def rename_branch(name: str, content: dict[str, Any]) -> None:
    """Calls the branch `mptrj` something else, wherever it is named."""
    content["branch_of"]["mptrj"] = name
    content["branches"] = [name if branch == "mptrj" else branch for branch in content["branches"]]
    for old in [file for file in content["files"] if file.endswith("branches/mptrj.safetensors")]:
        content["files"][old.replace("mptrj", name)] = content["files"].pop(old)


@pytest.mark.parametrize("name", OUTWARD)
def test_a_name_that_leads_elsewhere_is_no_name(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be a name"):
        check_name(name)


def test_names_that_are_names() -> None:
    for name in ("ani1x", "MPtrj_2022-9", "Größe", "x" * NAME_BYTES):
        assert check_name(name) == name


@pytest.mark.parametrize("name", OUTWARD)
def test_a_checkpoint_cannot_name_a_branch_that_leads_elsewhere(run: Path, tmp_path: Path, name: str) -> None:
    """An export of it would write there."""
    best = pointed(run / "checkpoints/best")
    tamper(best, lambda content: rename_branch(name, content))
    outside = best / "branches" / f"{name}.safetensors"
    if "\0" not in name and len(name) < NAME_BYTES:
        outside.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(best / "branches/mptrj.safetensors", outside)
    before = sorted(tmp_path.rglob("*"))
    uses = (
        lambda: write_export(read_saved(run), tmp_path / "model"),
        lambda: load(run),
        lambda: describe(run, verify=True),
    )
    for use in uses:
        with pytest.raises(RamifyError, match=r"manifest\.json is damaged at 'branches.*cannot be a name"):
            use()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("key", ["carried", "datasets", "branch_of"])
def test_no_other_name_in_a_checkpoint_leads_elsewhere_either(run: Path, tmp_path: Path, key: str) -> None:
    def change(content: dict[str, Any]) -> None:
        kept = {"carried": {}, "datasets": content["datasets"]["mptrj"], "branch_of": "mptrj"}[key]
        content[key] = {**content[key], "../../../outside": kept}

    tamper(pointed(run / "checkpoints/best"), change)
    with pytest.raises(RamifyError, match=rf"manifest\.json is damaged at '{key}\..*cannot be a name"):
        write_export(read_saved(run), tmp_path / "model")


def test_a_saved_model_with_such_a_name_is_not_written(run: Path, tmp_path: Path) -> None:
    """Names are also checked where they become paths, independent of earlier checks."""
    saved = read_saved(run)
    bad = replace(saved, branches={**saved.branches, "../../outside": saved.branches["mptrj"]})
    with pytest.raises((RamifyError, ValueError), match="cannot be a name"):
        write_export(bad, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_link_is_not_followed_into_an_export(run: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a key")
    (run / "router.safetensors").symlink_to(tmp_path / "secret")
    with pytest.raises(RamifyError, match=r"router\.safetensors is a link"):
        write_export(read_saved(run), tmp_path / "model")
    (run / "router.safetensors").unlink()
    (run / "evaluation.json").symlink_to(tmp_path / "secret")
    with pytest.raises(RamifyError, match=r"evaluation\.json is a link"):
        read_saved(run)


def test_a_link_is_not_followed_into_a_converted_store(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "stores/ani1x", tmp_path / "store")
    (tmp_path / "secret").write_text("a key")
    (tmp_path / "store/quarantine.jsonl").unlink(missing_ok=True)
    (tmp_path / "store/quarantine.jsonl").symlink_to(tmp_path / "secret")
    with pytest.raises(RamifyError, match=r"quarantine\.jsonl is a link"):
        convert_store(tmp_path / "store", "adios", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["encoder.safetensors", "branches", "manifest.json"])
def test_no_link_inside_a_model_is_followed(run: Path, tmp_path: Path, name: str) -> None:
    export = write_export(read_saved(run), tmp_path / "model")
    for folder in (export, pointed(run / "checkpoints/best")):
        (folder / name).rename(tmp_path / f"moved-{folder.name}-{name}")
        (folder / name).symlink_to(tmp_path / f"moved-{folder.name}-{name}")
        with pytest.raises(RamifyError, match=rf"{name} is a link; only regular files inside"):
            load(folder)


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").write_text("x")
    assert regular_file(tmp_path, "folder/file").read_text() == "x"
    for name, why in (("folder", "not a regular file"), ("none", "missing"), ("folder/../folder/file", "inside this")):
        with pytest.raises(RamifyError, match=why):
            regular_file(tmp_path, name)


def test_a_checkpoint_is_named_not_reached_by_a_path(run: Path) -> None:
    """A recipe from an untrusted source may name the checkpoint of a fine-tuning."""
    for which in ("../checkpoints/best", str(run / "checkpoints/best"), ""):
        with pytest.raises(RamifyError, match="is not a checkpoint of a run"):
            load(run, checkpoint=which)
        with pytest.raises(RamifyError, match="is not a checkpoint of a run"):
            Evaluator(run, which=which).evaluate()


@contextmanager
def little_memory(spare: int) -> Iterator[None]:
    """Inside, this process may take `spare` bytes of address space more than it has."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + spare, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize(
    ("group", "key", "value"),
    [
        ("encoder", "width", 30_000),
        ("encoder", "radial", 10**9),
        ("encoder", "vector_channels", 10**6),
        ("encoder", "vector_channels", 10**9),  # its square is more bytes than a 64-bit integer counts
        ("encoder", "vector_channels", 10**20),
        ("encoder", "layers", 10**9),
        ("energy_head", "layers", 10**9),
        ("force_head", "width", 10**7),
    ],
)
def test_huge_sizes_are_compared_with_the_files_first(
    run: Path, tmp_path: Path, group: str, key: str, value: int
) -> None:
    export = write_export(read_saved(run), tmp_path / "model")
    tamper(export, lambda content: content["model"][group].update({key: value}))
    tamper(pointed(run / "checkpoints/best"), lambda content: content["recipe"]["model"][group].update({key: value}))
    with little_memory(500_000_000):
        uses = (
            lambda: load(export),
            lambda: load(run),
            lambda: Evaluator(run).evaluate(),
            lambda: write_export(read_saved(export), tmp_path / "again"),  # as a fine-tuning, which reads it so too
        )
        for use in uses:
            with pytest.raises(RamifyError, match="do not fit the model they belong to"):
                use()


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 12)
)
MERGES = "m0: &m0 {x: 1}\n" + "".join(f"m{k}: &m{k} {{<<: [{', '.join([f'*m{k - 1}'] * 9)}]}}\n" for k in range(1, 12))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (BOMB, "aliases expand to more than"),
        (MERGES, "aliases expand to more than"),
        ("a: &a [*a]", "aliases expand to more than"),
        ("a: " + "[" * 5000, "nested"),
        ("a: " + "[" * 200 + "]" * 200, "nested"),
        ("a: 2001-99-99", "value is not valid"),
        ("a: " + "9" * 10_000, "value is not valid"),
        ("a: !!python/object/apply:os.system [true]", "could not determine a constructor"),
    ],
)
def test_a_recipe_that_stands_for_too_much_ends_at_once(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(RamifyError, match=rf"recipe\.yaml is not valid YAML: [\s\S]*{why}"):
        load_recipe(tmp_path / "recipe.yaml")


def test_aliases_of_ordinary_recipes_are_welcome(trained: Path, tmp_path: Path) -> None:
    text = (trained / "run/recipe.yaml").read_text().replace("energy_head:", "energy_head: &head")
    assert "&head" in text
    (tmp_path / "recipe.yaml").write_text(text)
    assert load_recipe(tmp_path / "recipe.yaml") == load_recipe(trained / "run/recipe.yaml")


def test_json_that_is_nested_without_end(run: Path) -> None:
    (pointed(run / "checkpoints/best") / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(RamifyError, match=r"manifest\.json is damaged: its groups are nested too deeply"):
        load(run)


def test_an_unknown_element_in_a_store_is_named(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "stores/ani1x", tmp_path / "store")
    content = json.loads((tmp_path / "store/manifest.json").read_text())
    content["references"]["energies"]["Xx"] = -1.0
    (tmp_path / "store/manifest.json").write_text(json.dumps(content))
    with pytest.raises(RamifyError, match=r"references\.energies.*'Xx' is not an element"):
        Store.open(tmp_path / "store")


@pytest.mark.parametrize("number", [0, 119, 255])
def test_an_unknown_atomic_number_in_a_store_is_named(trained: Path, tmp_path: Path, number: int) -> None:
    shutil.copytree(trained / "stores/ani1x", tmp_path / "store")
    numbers = np.load(tmp_path / "store/numbers.npy")
    numbers[0] = number
    np.save(tmp_path / "store/numbers.npy", numbers)
    content = json.loads((tmp_path / "store/manifest.json").read_text())
    content["blocks"]["numbers"] = [block_sum(numbers)]
    (tmp_path / "store/manifest.json").write_text(json.dumps(content))
    with pytest.raises(RamifyError, match="column numbers has values outside 1 to 118"):
        Store.open(tmp_path / "store").take([0])


def test_bytes_that_are_no_text_in_the_logs_of_a_run(run: Path) -> None:
    Evaluator(run).evaluate()
    lines = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(lines + b'{"kind": "train", "step": \xff}\n')
    with pytest.raises(RamifyError, match=rf"metrics\.jsonl, line {lines.count(10) + 1}, is not a run record"):
        Results.open(run)
    (run / "metrics.jsonl").write_bytes(lines)
    (run / "recipe.yaml").write_bytes(b"name: \xff")
    with pytest.raises(RamifyError, match=r"recipe\.yaml is not YAML"):
        Results.open(run)
    with (run / "sessions.jsonl").open("ab") as file:
        file.write(b'\xff\n[1]\n{"no": "kind"}\n')
    assert Run(run).sessions.had_checkpoint


def test_a_run_names_no_dataset_whose_predictions_lie_elsewhere(run: Path) -> None:
    Evaluator(run).evaluate()
    (run / "predictions/ani1x.npz").rename(run.parent / "outside.npz")
    name = "../../outside"
    assert (run / f"predictions/{name}.npz").is_file()
    text = (run / "evaluation.json").read_text().replace('"ani1x"', f'"{name}"')
    (run / "evaluation.json").write_text(text)
    assert Results.open(run).predictions(name) is None
    assert Results.open(run).predictions("mptrj") is not None


def test_the_checks_are_those_of_recipes(run: Path, tmp_path: Path) -> None:
    text = (run / "recipe.yaml").read_text().replace("\n  mptrj:", "\n  ../mptrj:", 1)
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(RamifyError, match=r"'\.\./mptrj' cannot be a name"):
        load_recipe(tmp_path / "recipe.yaml")
    assert checkpoints.open_checkpoint(run / "checkpoints/best").branches == ("ani1x", "mptrj")
