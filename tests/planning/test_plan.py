"""`ramify plan`: measured or stated sizes, the chosen placement with its reason, and advice if nothing fits."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ramify.errors import RamifyError
from ramify.neighbors.edges import find_edges
from ramify.planning.model_profile import ModelProfile, StepProfile
from ramify.planning.plan import Plan, choose_placement, make_plan, placement_profile
from ramify.planning.report import as_data, regime, warnings
from ramify.planning.workload import DatasetSize, StatedSize, dataset_sizes, measure, read_sizes, step_shares
from ramify.recipe import Recipe, load_recipe
from ramify.store.store import Store
from tests.cli.conftest import Ramify, ramify, refused  # noqa: F401  (a fixture)
from tests.small import make_recipe, prepare_stores

PAPER = ("ani1x", "qm7x", "transition1x", "mptrj", "alexandria")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared stores of four datasets, one of which has no forces."""
    path = tmp_path_factory.mktemp("stores")
    entries = prepare_stores(path)
    (path / "entries.json").write_text(json.dumps(entries))
    return path


def small(folder: Path, **changes: Any) -> Recipe:
    """A recipe over the stores in `folder`."""
    return make_recipe(folder, json.loads((folder / "entries.json").read_text()), **changes)


def stores(recipe: Recipe) -> dict[str, Store]:
    """Of the recipe's datasets."""
    return {name: Store.open(Path(recipe.stores) / name) for name in recipe.datasets}


def paper(*overrides: str, ranks: int) -> Plan:
    """A plan of the paper's recipe from stated sizes."""
    recipe = load_recipe("paper", overrides)
    return make_plan(recipe, dataset_sizes(recipe, read_sizes("paper", recipe)), ranks)


def test_sizes_are_those_of_the_stores(folder: Path) -> None:
    """Structures and atoms exactly; edges, which small stores are sampled whole for, counted one by one."""
    recipe = small(folder)
    for name, size in dataset_sizes(recipe, {}).items():
        store = Store.open(folder / "stores" / name)
        rows = np.array(store.range("train"))
        structures = store.take(rows)
        assert size.structures == len(rows)
        assert size.atoms == pytest.approx(structures.n_atoms.mean())
        edges = len(find_edges(structures, 4.0, 8)) / len(rows)
        assert size.edges == pytest.approx(edges, rel=1e-12 if len(rows) <= 256 else 0.05)
        assert (size.spread.forces is None) == (name == "bare")
        assert size.source == f"store, edges of {min(256, len(rows))}"


def test_a_step_takes_what_the_recipe_says(folder: Path) -> None:
    """A batch of 8 from 100 and 300 structures: proportional 2 and 6; equal 4 and 4; one branch for both: all 8."""
    sizes = {n: DatasetSize(s, a, e, None, "test") for n, s, a, e in (("qm7x", 100, 5, 20), ("mptrj", 300, 2, 30))}  # type: ignore[arg-type]
    entries = {name: json.loads((folder / "entries.json").read_text())[name] for name in sizes}
    proportional = step_shares(make_recipe(folder, entries), sizes)
    assert [s.structures for s in proportional.values()] == pytest.approx([2, 6])
    assert (proportional["mptrj"].atoms, proportional["mptrj"].edges) == (pytest.approx(12), pytest.approx(180))
    equal = step_shares(make_recipe(folder, entries, train__sampling="equal"), sizes)
    assert [s.structures for s in equal.values()] == pytest.approx([4, 4])
    (shared,) = step_shares(make_recipe(folder, entries, branches="shared"), sizes).values()
    assert (shared.structures, shared.atoms, shared.edges) == (pytest.approx(8), pytest.approx(22), pytest.approx(220))


def test_stated_sizes(tmp_path: Path) -> None:
    recipe = load_recipe("paper", [f"stores={tmp_path}"])
    found = dataset_sizes(recipe, read_sizes("paper", recipe))
    assert set(found) == set(PAPER)
    assert found["mptrj"].structures == 1_580_395
    assert found["mptrj"].edges == pytest.approx(31.2 * 16.5)
    file = tmp_path / "mine.yaml"
    for content, message in (
        ("ani1: {structures: 5, atoms: 3, neighbors: 2}", "no dataset is called 'ani1', did you mean 'ani1x'?"),
        ("ani1x: {structures: 5, atom: 3, neighbors: 2}", "ani1x.atom: unknown key, did you mean 'atoms'?"),
        ("ani1x: {structures: 5, atoms: 3}", "ani1x.neighbors: missing"),
        ("ani1x: {structures: 0, atoms: 3, neighbors: 2}", "ani1x.structures: Input should be greater than or equal"),
        ("ani1x", "holds str, sizes are a mapping"),
        ("ani1x: {", "is not valid YAML"),
    ):
        file.write_text(content)
        with pytest.raises(RamifyError) as caught:
            read_sizes(file, recipe)
        assert str(file) in str(caught.value)
        assert message in str(caught.value)
    with pytest.raises(RamifyError, match="no sizes at nowhere\n  fix: give a YAML file or one of: paper"):
        read_sizes("nowhere", recipe)


def test_a_dataset_without_store_or_size(folder: Path, tmp_path: Path) -> None:
    """The error names it; stated sizes take precedence over prepared ones."""
    recipe = small(folder, stores=str(tmp_path))
    with pytest.raises(RamifyError) as caught:
        dataset_sizes(recipe, {"ani1x": StatedSize(structures=5, atoms=3, neighbors=2)})
    assert f"qm7x, mptrj, bare have no store in {tmp_path}" in str(caught.value)
    assert "ramify prepare" in str(caught.value)
    assert "--sizes FILE" in str(caught.value)
    stated = dataset_sizes(small(folder), {"ani1x": StatedSize(structures=5, atoms=3, neighbors=2)})
    assert (stated["ani1x"].structures, stated["ani1x"].source) == (5, "stated")
    assert stated["qm7x"].source.startswith("store")


def cost(encoder: int, *branches: int) -> ModelProfile:
    """A model of so many parameters."""
    named = {f"b{k}": n for k, n in enumerate(branches)}
    return ModelProfile(encoder, named, 4, dict.fromkeys(named, StepProfile(1, 1, 1, 1, 1)), ((encoder,),), {})


def test_the_papers_cases() -> None:
    assert regime(cost(100_000_000, 1_000_000, 1_000_000))[0] == 1
    assert regime(cost(1_000_000, 1_000_000, 9_000_000))[0] == 2
    case, text = regime(cost(18_000_000, 4_000_000, 4_000_000, 4_000_000))
    assert case == 3
    assert "P_s = 18.00 M parameters in the encoder, N_h P_h = 3 x 4.00 M = 12.00 M in the branches, ratio 1.50" in text
    assert text.endswith("This is case 3")


def test_auto_is_the_fastest_that_fits() -> None:
    """On a slow network less is sent; on a fast one work is level; with little memory the smallest is taken."""
    slow = paper("parallel.machine.bandwidth=0.1", ranks=8)
    assert slow.chosen.placement.kind == "auto:per-branch"
    fast = paper("parallel.machine.bandwidth=1000", "parallel.machine.latency=0", ranks=8)
    assert fast.chosen.placement.kind == "auto:balanced"
    assert fast.chosen.seconds <= 1.01 * min(option.seconds for option in fast.considered)
    assert fast.imbalance <= 0.05
    assert slow.imbalance > 0.1
    for plan in (slow, fast):
        assert plan.chosen.fits
        assert [option.placement.kind for option in plan.considered] == ["replicated", "per-branch", "balanced"]
        assert "predicted time of a step" in plan.chosen.placement.reason
    fullest = {option.placement.kind: option.memory / 0.9e9 for option in fast.considered}
    between = (fullest["per-branch"] + fullest["balanced"]) / 2
    tight = paper("parallel.machine.bandwidth=1000", f"parallel.memory={between}", ranks=8)
    assert tight.chosen.placement.kind == "auto:per-branch"
    assert "balanced" in tight.chosen.placement.reason
    assert "does not fit" in tight.chosen.placement.reason


def test_what_is_asked_for_is_planned() -> None:
    even = paper("parallel.placement=per-branch-even", ranks=10)
    assert even.chosen.placement.kind == "per-branch-even"
    assert {len(on) for on in even.chosen.placement.hosts.values()} == {2}
    assert len(even.considered) == 4
    hosts = "parallel.placement={ani1x: [0], qm7x: [0], transition1x: [1], mptrj: [2], alexandria: [1, 2]}"
    assert paper(hosts, ranks=3).chosen.placement.hosts["alexandria"] == (1, 2)


def test_nothing_fits_and_what_would() -> None:
    """Every remedy, applied as it is printed, makes the plan fit."""
    plan = paper("parallel.memory=1", ranks=3)
    assert not plan.chosen.fits
    assert plan.chosen.memory == min(option.memory for option in plan.considered)
    assert any("needs 1.00" in text and "more than 90 % of 1 GB" in text for text in warnings(plan))
    *overrides, ranks = plan.remedies
    assert len(overrides) == 5  # replicated only with the encoder cut up
    for remedy in overrides:
        keys, memory = remedy.split(" (")
        fitting = paper("parallel.memory=1", *keys.split(), ranks=3)
        assert fitting.chosen.fits
        assert fitting.chosen.memory / 1e9 == pytest.approx(float(memory.removesuffix(" GB)")), abs=0.005)
    number = int(ranks.split()[0])
    assert paper("parallel.memory=1", ranks=number).chosen.fits
    assert not paper("parallel.memory=1", ranks=number // 2).chosen.fits


def test_no_remedy_for_far_too_little_memory() -> None:
    assert paper("parallel.memory=0.1", ranks=2).remedies == []


def test_a_run_places_itself(folder: Path) -> None:
    """As planned, with the same result in every call."""
    for placement in (
        "auto",
        "per-branch",
        "balanced",
        "replicated",
        {"ani1x": [0, 1], "qm7x": [1], "mptrj": [2], "bare": [2]},
    ):
        recipe = small(folder, parallel={"placement": placement})
        sizes = {name: measure(store, recipe) for name, store in stores(recipe).items()}
        found = choose_placement(recipe, stores(recipe), 3)
        assert found.ranks == 3
        assert found == choose_placement(recipe, stores(recipe), 3, placement_profile(recipe, stores(recipe), 3))
        assert found.hosts == make_plan(recipe, sizes, 3).chosen.placement.hosts
        assert found == choose_placement(recipe, stores(recipe), 3)
    alone = choose_placement(small(folder), stores(small(folder)), 1)
    assert alone.hosts == dict.fromkeys(small(folder).datasets, (0,))
    with pytest.raises(RamifyError, match=r"no placement on 2 ranks fits into parallel.memory: 1e-06 GB"):
        choose_placement(small(folder, parallel={"memory": 1e-6}), stores(small(folder)), 2)
    explicit = small(folder, parallel={"placement": {"ani1x": [0], "qm7x": [1], "mptrj": [2], "bare": [2]}})
    with pytest.raises(RamifyError, match="names rank 1, 2, but this run has ranks 0 to 0"):
        choose_placement(explicit, stores(explicit), 1)


def test_the_page_shows_what_is_printed(ramify: Ramify) -> None:  # noqa: F811
    """The example of docs/parallel.md, line by line."""
    page = (Path(__file__).parents[2] / "docs/parallel.md").read_text(encoding="utf-8")
    command, shown = re.findall(r"```bash\nramify (plan paper .*)\n```\n\n```text\n(.*?)```", page, re.DOTALL)[0]
    printed = [line.rstrip() for line in ramify(*command.split()).out.splitlines()]
    assert shown.splitlines() == printed


def test_small_batches_and_stated_sizes_are_warned_of() -> None:
    told = warnings(paper("train.batch=16", ranks=40))
    assert any("40 of 40 ranks have less than one structure per step: train.batch is 16" in text for text in told)
    assert any("the sizes of ani1x, qm7x, transition1x, mptrj, alexandria are stated" in text for text in told)


def test_data_of_a_plan() -> None:
    """Rows cover every rank once, and their sums are those of the step."""
    data = json.loads(json.dumps(as_data(paper("train.batch=640", ranks=40))))
    assert sorted(rank for row in data["rows"] for rank in row["ranks"]) == list(range(40))
    assert sum(row["structures"] * len(row["ranks"]) for row in data["rows"]) == pytest.approx(640)
    assert data["model"]["bytes_per_parameter"] == 20
    for row in data["rows"]:
        on = {b for b, hosts in data["placement"]["hosts"].items() if row["ranks"][0] in hosts}
        assert set(row["branches"]) == on
        assert row["parameters"] == data["model"]["encoder_parameters"] + sum(
            data["model"]["branch_parameters"][b] for b in on
        )
        states = sum(row["bytes"][key] for key in ("weights", "gradients", "optimizer", "averages"))
        assert states == 20 * row["parameters"]
        assert row["traffic"]["encoder"] == 4 * data["model"]["encoder_parameters"]


def verb(ramify: Ramify, *arguments: object) -> Mapping[str, Any]:  # noqa: F811
    """`ramify plan ... --json`, read."""
    said = ramify("plan", *arguments, "--json")
    assert (said.status, said.err) == (0, "")
    found: Mapping[str, Any] = json.loads(said.out)
    return found


def test_the_verb(ramify: Ramify, folder: Path, tmp_path: Path) -> None:  # noqa: F811
    data = verb(ramify, "paper", "--ranks", 8, "--sizes", "paper", "--memory", "16GiB")
    assert data["memory_gb"] == pytest.approx(17.179869)
    said = ramify("plan", "paper", "--ranks", 8, "--sizes", "paper", "--memory", "0.7 GB")
    assert said.status == 0
    for text in ("Placements considered", "would fit:", "This is case 3", "8 ranks, 0.7 GB each"):
        assert text in said.out
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(small(folder).model_dump(mode="json")))
    assert verb(ramify, "own.yaml", "--ranks", 2)["datasets"]["qm7x"]["source"].startswith("store")
    refused(ramify("plan", "paper", "--ranks", 8), "have no store in stores", "--sizes paper")
    refused(ramify("plan", "paper", "--memory", "many"), "--memory many: accepted are a number and GB")
