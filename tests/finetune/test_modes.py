"""Trained and unchanged parts of each mode, and its errors."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ramify.batches.open import open_stores
from ramify.checkpoint.checkpoint import open_checkpoint
from ramify.errors import RamifyError
from ramify.finetune.resolve import FinetuneRequest, resolve
from ramify.finetune.run import Finetuning, finetune, resume
from ramify.inference.model import load, read_saved
from ramify.parallel.world import World
from ramify.prepare.prepare import prepare_dataset
from ramify.recipe import parse_recipe
from ramify.train.reporting import Callbacks
from ramify.train.start import resume_run
from tests.small import metrics, tensors

from .conftest import ASKED, assert_same, predictions, prepare_entries, recipe_for

Tune = Callable[..., Finetuning]


def test_a_branch_that_goes_on_keeps_its_references_and_units(tune: Tune, folder: Path, tmp_path: Path) -> None:
    """New data of another level of theory are expressed on the scale of the branch, never the other way round, and a
    warning states that they do not fit."""
    tuning = tune("bare", mode="keep-branch", start="ani1x", steps=2)
    old = load(folder / "base").branches["ani1x"].datasets["ani1x"]
    fitted = open_stores(recipe_for(folder, "bare"))["bare"].manifest
    stated = tuning.trainer.data["bare"]
    assert stated.references.energies == dict(old.references)
    assert stated.references.energies != fitted.references.energies
    assert stated.statistics.energy_std == old.spread.energy
    batch = next(iter(tuning.trainer.train["bare"].batches(100, torch.float64)))[1]
    water = old.references["O"] + 2 * old.references["H"]
    raw = tuning.trainer.train["bare"].store.take([0]).energy[0]
    assert float(batch.energy[0]) == pytest.approx((raw - water) / 3, abs=1e-6)
    tuning.fit()
    assert tuning.report is not None
    assert "before the first step the energy MAE of branch 'ani1x' is" in tuning.report.warnings()[0]
    branch = load(tmp_path / "run").branches["ani1x"]
    assert set(branch.datasets) == {"ani1x", "bare"}
    assert branch.datasets["bare"].references == old.references
    scale = "branches.ani1x.energy_scale"
    kept = [open_checkpoint(p / "checkpoints/latest").weights()[scale] for p in (folder / "base", tmp_path / "run")]
    assert torch.equal(*kept)


def test_a_new_branch_has_references_of_its_own(tune: Tune, folder: Path, tmp_path: Path) -> None:
    tune("bare", mode="new-branch", start="fresh", steps=2).fit()
    fitted = open_stores(recipe_for(folder, "bare"))["bare"].manifest.references.energies
    model = load(tmp_path / "run")
    assert model.branches["bare"].datasets["bare"].references == fitted
    assert model.branches["bare"].forces is None
    assert model.branches["ani1x"].datasets["ani1x"] == load(folder / "base").branches["ani1x"].datasets["ani1x"]


@pytest.mark.parametrize("mode", ["new-branch", "lora", "frozen-encoder"])
def test_what_is_trained(tune: Tune, tmp_path: Path, mode: str) -> None:
    tuning = tune("qm7x", mode=mode, start="ani1x", steps=3)
    before = {name: p.detach().clone() for name, p in tuning.trainer.model.named_parameters()}
    tuning.fit()
    after = tensors(tmp_path / "run")
    changed = {name for name, p in before.items() if not torch.equal(after[f"training {name}"], p)}
    encoder = {name for name in before if name.startswith("encoder.")}
    assert {name for name in before if name.startswith("branches.qm7x.energy")} <= changed
    if mode == "new-branch":
        assert len(changed & encoder) > 0.8 * len(encoder)
    elif mode == "lora":
        assert changed & encoder == {name for name in encoder if "low_rank" in name}
    else:
        assert not changed & encoder
    assert not any("low_rank" in name for name in open_checkpoint(tmp_path / "run/checkpoints/latest").weights())


def test_updates_merge_exactly(tune: Tune, folder: Path, tmp_path: Path) -> None:
    """The saved model gives the errors that the run measured with separate updates, in float64 to the last digits: it
    is trained, evaluated by its own loop, and loaded again."""
    from tests.small import make_recipe, train

    entries = {name: prepare_entries(folder)[name] for name in ("ani1x",)}
    train(make_recipe(folder, entries, train__precision="fp64", train__max_steps=4), tmp_path / "base")
    tuning = tune("qm7x", mode="lora", start="ani1x", steps=5, model=tmp_path / "base", finetune={"rank": 2})
    tuning.fit()
    trainer = tuning.trainer
    trainer.averages.swap()
    network = load(tmp_path / "run", checkpoint="latest").network
    batch = next(iter(trainer.val["qm7x"].batches(300, torch.float64)))[1]
    apart, together = trainer.model.eval()(batch), network(batch)
    torch.testing.assert_close(together.energy, apart.energy, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(together.forces, apart.forces, rtol=1e-13, atol=1e-13)
    weight, base = (n.get_parameter("encoder.layers.0.from_sender.weight") for n in (network, trainer.model))
    update = (weight - base).detach()
    assert torch.linalg.matrix_rank(update, atol=1e-12) == 2
    x = torch.randn(7, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    layer = trainer.model.get_submodule("encoder.layers.0.from_sender")
    apart_by_hand = x @ base.T + (x @ layer.low_rank_down.T) @ layer.low_rank_up.T
    torch.testing.assert_close(x @ weight.T, apart_by_hand, rtol=1e-12, atol=1e-12)


def test_replay_trains_the_old_branches(tune: Tune, folder: Path, tmp_path: Path) -> None:
    tuning = tune("qm7x", "ani1x", "mptrj", mode="replay", start="ani1x", steps=4)
    assert tuning.trainer.recipe.finetune.scales == {}  # the very stores that the model was trained on
    tuning.fit()
    assert tuning.report is not None
    assert all(row.trained for row in tuning.report.before)
    assert {row.branch for row in tuning.report.before} == {"qm7x", "ani1x", "mptrj"}
    found, base = tensors(tmp_path / "run"), tensors(folder / "base", "best")
    assert [n for n in found if n.startswith("training branches.mptrj") and n.endswith("exp_avg")]
    weights = [n for n in found if n.startswith("weights branches.mptrj")]
    assert any(not torch.equal(found[n], base[n]) for n in weights)


def test_what_is_learnt_already_moves_by_a_part_of_the_rate(tune: Tune) -> None:
    """The first step of Adam moves every number that has a gradient by the learning rate."""
    rate = {
        "optimizer": {"lr": 1e-3, "weight_decay": 0.0, "ema": 0.0},
        "schedule": {"kind": "constant", "warmup_steps": 0},
    }
    options = {"finetune": {"old_rate": 0.25}, **rate}
    tuning = tune("qm7x", "ani1x", "mptrj", mode="replay", start="ani1x", steps=1, **options)
    before = {name: p.detach().clone() for name, p in tuning.trainer.model.named_parameters()}
    tuning.fit()
    moved: dict[str, float] = {}
    for name, p in tuning.trainer.model.named_parameters():
        part = name.removeprefix("branches.").split(".")[0]
        moved[part] = max(moved.get(part, 0.0), (p.detach() - before[name]).abs().max().item())
    assert moved == pytest.approx({"encoder": 2.5e-4, "ani1x": 2.5e-4, "mptrj": 2.5e-4, "qm7x": 1e-3}, rel=1e-2)


@pytest.mark.parametrize(
    ("mode", "dataset"),
    [("lora", "qm7x"), ("frozen-encoder", "qm7x"), ("new-branch", "qm7x"), ("keep-branch", "bare")],
)
def test_an_interrupted_run_goes_on_to_the_same_end(tune: Tune, tmp_path: Path, mode: str, dataset: str) -> None:
    """To the bit, carried branches included."""
    often = {"train__checkpoint_every": 0.01, "train__evaluate_every": 0.01}
    whole = tune(dataset, mode=mode, start="ani1x", steps=8, path="whole", **often)
    whole.fit()
    half = tune(dataset, mode=mode, start="ani1x", steps=8, path="half", **often).trainer
    reason = property(lambda stop: "SIGTERM" if half.progress.step == 3 else "")
    half.stop = type("Asked", (type(half.stop),), {"reason": reason})()
    half.fit()
    assert half.progress.step == 4
    resumed = resume_run(tmp_path / "half", Callbacks())
    assert resumed.progress.step == 4
    resumed.fit()
    found, expected = tensors(tmp_path / "half"), tensors(tmp_path / "whole")
    assert found.keys() == expected.keys()
    assert any(name.startswith("weights branches.mptrj") for name in found)
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name
    assert metrics(tmp_path / "half", "val") == metrics(tmp_path / "whole", "val")


def test_one_that_was_killed_before_its_first_checkpoint_begins_again(tune: Tune, folder: Path, tmp_path: Path) -> None:
    """From the model, not from random numbers."""
    tune("qm7x", mode="new-branch", start="ani1x", steps=0).trainer.run.unlock()
    assert not any((tmp_path / "run/checkpoints").iterdir())
    resume(tmp_path / "run", Callbacks(), lambda dataset, structures: None, World(), measured=lambda report: None).fit()
    assert_same(predictions(tmp_path / "run"), predictions(folder / "base"))


def test_a_store_prepared_anew_does_not_bring_its_own_references(folder: Path, tmp_path: Path) -> None:
    """Another split of the same data fits other references. Old branches that are replayed on it keep theirs."""
    entries = {
        name: dict(entry) for name, entry in prepare_entries(folder).items() if name in ("ani1x", "mptrj", "qm7x")
    }
    for name in ("ani1x", "mptrj"):
        entries[name]["split"] = {"val": 0.3, "test": 0.3}
    content = recipe_for(folder, "qm7x").model_dump(mode="json", exclude_unset=True)
    recipe = parse_recipe(content | {"stores": str(tmp_path / "stores"), "datasets": entries}, "replay")
    fitted = {
        name: prepare_dataset(name, options, Path(recipe.stores), base=folder).references.energies
        for name, options in recipe.datasets.items()
    }
    tuning = finetune(
        FinetuneRequest("replay", str(folder / "base"), "fresh", 0), recipe, tmp_path / "run", Callbacks()
    )
    tuning.fit()
    old, new = load(folder / "base"), load(tmp_path / "run")
    for name in ("ani1x", "mptrj"):
        kept = old.branches[name].datasets[name]
        assert new.branches[name].datasets[name].references == kept.references
        assert dict(kept.references) != fitted[name]
        assert tuning.trainer.data[name].references.energies == dict(kept.references)
    assert new.branches["qm7x"].datasets["qm7x"].references == fitted["qm7x"]
    assert_same(predictions(tmp_path / "run"), predictions(folder / "base"))
    rows = {row.branch: row for row in tuning.report.before} if tuning.report else {}
    assert rows["ani1x"].energy_mae < 5.0  # eV/atom: on its own scale, not 500 off


REFUSED = [
    ("new-branch", ("ani1x",), None, {}, "already has a branch 'ani1x'"),
    ("new-branch", ("qm7x",), None, {}, "start of the new branch 'qm7x' is not stated"),
    ("new-branch", ("qm7x",), "ani1", {}, "has no branch 'ani1', did you mean 'ani1x'"),
    ("new-branch", ("ani1x",), "mptrj", {"branches": {"b": ["ani1x"]}}, "belongs to branch 'ani1x' of the model"),
    ("keep-branch", ("qm7x",), None, {}, "the model has no branch 'qm7x'"),
    ("keep-branch", ("qm7x",), "ani1x", {}, "dataset 'qm7x' holds Cl, S; the branch that it continues has"),
    ("keep-branch", ("ani1x", "mptrj"), "ani1x", {}, "dataset 'mptrj' belongs to branch 'mptrj'"),
    ("replay", ("qm7x", "ani1x"), "ani1x", {}, "the recipe has none for mptrj"),
    ("replay", ("ani1x", "mptrj"), None, {}, "no new dataset"),
    ("lora", ("qm7x",), "fresh", {"stated": {"encoder": {"width": 9}}}, r"model.encoder.width: 9, the model has 8"),
    ("lora", ("qm7x",), "fresh", {"train__precision": "fp64"}, "trained in fp32; its predictions would change"),
    ("lora", ("qm7x",), "fresh", {"parallel__shard": "encoder"}, "mode lora leaves no encoder to shard"),
    ("lora", ("ani1x",), None, {"finetune": {"start": {"ani1x": "mptrj"}}}, "continues its own weights"),
    ("loar", ("ani1x",), None, {}, "mode 'loar' is unknown, did you mean 'lora'"),
]


@pytest.mark.parametrize(("mode", "datasets", "start", "changes", "message"), REFUSED)
def test_contradictions_are_refused(
    folder: Path, mode: str, datasets: tuple[str, ...], start: str | None, changes: dict[str, object], message: str
) -> None:
    recipe = recipe_for(folder, *datasets, **changes)
    saved = read_saved(folder / "base")
    with pytest.raises(RamifyError, match=message):
        open_stores(resolve(saved, recipe, open_stores(recipe), FinetuneRequest(mode, "-", start)))


def test_asked(folder: Path) -> None:
    """The structures that predictions are compared on are no trifle."""
    for energy, forces in predictions(folder / "base").values():
        assert np.isfinite(energy).all()
        assert forces is not None
        assert np.abs(forces).max() > 1e-4
    assert set(ASKED) == {"ani1x", "mptrj"}
