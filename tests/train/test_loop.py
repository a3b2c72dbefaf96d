"""Training: errors decrease, runs are reproducible to the bit, the log is complete, and non-finite losses end it."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ramify.checkpoint.checkpoint import open_checkpoint
from ramify.checkpoint.pointers import resolve
from ramify.errors import RamifyError
from ramify.evaluate.evaluate import load_model
from ramify.run.run import MetricsLog, Run
from ramify.store.store import Store
from ramify.train.loop import Trainer
from ramify.train.reporting import Callbacks
from ramify.train.start import resume_run, start_run
from ramify.train.validation import Validation, Validator
from tests.small import assert_same, files_of, metrics, tensors, train

from .conftest import MakeRecipe


@pytest.fixture(scope="module")
def learned(small: MakeRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 100 steps over qm7x and bare, with forces as derivatives of the energy."""
    path = tmp_path_factory.mktemp("learned") / "run"
    changes = {"optimizer__lr": 0.01, "model__force_head__kind": "conservative", "train__batch": 12}
    train(small("qm7x", "bare", train__max_steps=100, train__evaluate_every=1.0, **changes), path)
    return path


def test_training_lowers_the_errors(learned: Path) -> None:
    val = [line["metric"] for line in metrics(learned, "val")]
    assert min(val) < 0.93  # 0.67 to 0.87 for four seeds
    losses = [line["loss"] for line in metrics(learned, "train")]
    assert np.mean(losses[-6:]) < 0.85 * np.mean(losses[:6])


def test_equal_seeds_give_equal_runs(small: MakeRecipe, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(small("qm7x", "mptrj", train__seed=seed), tmp_path / name)
    assert_same(tensors(tmp_path / "a"), tensors(tmp_path / "b"))
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")
    other = tensors(tmp_path / "c")
    assert not any(torch.equal(t, other[n]) for n, t in tensors(tmp_path / "a").items() if n.endswith("exp_avg"))


def test_lines_of_metrics(learned: Path) -> None:
    steps_per_epoch = (288 + 44) / 12
    lines = metrics(learned)
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    for line in lines:
        assert line["epoch"] == pytest.approx(line["step"] / steps_per_epoch, abs=1e-4)
    training, val = metrics(learned, "train"), metrics(learned, "val")
    assert [line["step"] for line in training] == list(range(2, 101, 2))
    assert [line["step"] for line in val] == [28, 56, 84, 100]  # an epoch is 27.7 steps; always at the end
    assert set(training[0]) == {"kind", "step", "epoch", "loss", "lr", "grad_norm", "datasets"}
    assert set(training[0]["datasets"]["qm7x"]) == {"loss", "energy_mae", "forces_mae"}
    assert set(val[0]) == {"kind", "step", "epoch", "metric", "best", "datasets"}
    keys = {"energy_mae", "forces_mae", "energy_rmse", "forces_rmse"}
    assert set(val[0]["datasets"]["qm7x"]) == keys | {"branch", "trivial_energy_mae", "trivial_forces_mae"}
    assert all(json.loads(text)["time"] > 0 for text in (learned / "metrics.jsonl").read_text().splitlines())
    assert training[0]["lr"] == pytest.approx(0.01 * 2 / 3 * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi / 100))))
    assert len(list((learned / "tensorboard").iterdir())) == 1


def test_absent_labels_are_null_in_metrics(learned: Path) -> None:
    for line in metrics(learned, "val"):
        bare = line["datasets"]["bare"]
        assert bare["forces_mae"] is None
        assert bare["forces_rmse"] is None
        assert bare["trivial_forces_mae"] is None
        assert bare["energy_mae"] > 0
    assert all(line["datasets"]["bare"]["forces_mae"] is None for line in metrics(learned, "train"))


def test_trivial_errors_and_metric_by_hand(learned: Path, small: MakeRecipe) -> None:
    """Trivial errors straight from the columns of the store; the metric is the mean of the ratios to them."""
    stores = Path(small("qm7x").stores)
    trivial = {}
    for name in ("qm7x", "bare"):
        store = Store.open(stores / name)
        val = store.take(np.array(store.range("val")))
        references = np.add.reduceat(store.references[val.numbers], val.offsets[:-1])
        trivial[name] = np.abs((val.energy - references) / val.n_atoms).mean(), np.abs(val.forces).mean()
    for line in metrics(learned, "val"):
        found = line["datasets"]
        for name, (energy, _) in trivial.items():
            assert found[name]["trivial_energy_mae"] == pytest.approx(energy, rel=1e-5)
        assert found["qm7x"]["trivial_forces_mae"] == pytest.approx(trivial["qm7x"][1], rel=1e-5)
        ratios = [found[name]["energy_mae"] / energy for name, (energy, _) in trivial.items()]
        ratios.append(found["qm7x"]["forces_mae"] / trivial["qm7x"][1])
        assert line["metric"] == pytest.approx(np.mean(ratios), rel=1e-5)
    metric = [line["metric"] for line in metrics(learned, "val")]
    assert [line["best"] for line in metrics(learned, "val")] == [
        all(m < earlier for earlier in metric[:k]) for k, m in enumerate(metric)
    ]


@pytest.mark.parametrize("kind", ["direct", "conservative"])
def test_fresh_heads_start_at_the_trivial_error(small: MakeRecipe, tmp_path: Path, kind: str) -> None:
    """Before training, every error is that of the trivial predictor, for any shape of the model."""
    shape = {"layers": 3, "width": 48}
    changes = {"model__energy_head": shape, "model__force_head": shape | {"kind": kind}, "model__encoder__width": 64}
    train(small("qm7x", "mptrj", "bare", optimizer__lr=1e-9, train__max_steps=1, **changes), tmp_path / "run")
    for errors in metrics(tmp_path / "run", "val")[-1]["datasets"].values():
        for label in ("energy",) if errors["forces_mae"] is None else ("energy", "forces"):
            assert errors[f"{label}_mae"] == pytest.approx(errors[f"trivial_{label}_mae"], rel=1e-5)


def test_best_and_latest_hold_the_steps_they_should(learned: Path) -> None:
    val = metrics(learned, "val")
    best = min(val, key=lambda line: line["metric"])["step"]
    for link, step in (("best", best), ("latest", 100)):
        checkpoint = open_checkpoint(learned / "checkpoints" / link)
        assert checkpoint.step == step
    assert {p.name for p in (learned / "checkpoints").iterdir()} == {
        "pointers.json", "step-00000100", f"step-{best:08d}"
    }  # fmt: skip


def test_a_run_directory_is_never_overwritten(small: MakeRecipe, tmp_path: Path) -> None:
    recipe = small("bare", train__max_steps=2)
    (tmp_path / "run").mkdir()  # an empty folder is nothing to lose
    train(recipe, tmp_path / "run")
    before = files_of(tmp_path / "run")
    with pytest.raises(RamifyError, match="exists already; a run is never overwritten"):
        start_run(recipe, tmp_path / "run", Callbacks())
    assert files_of(tmp_path / "run") == before
    (tmp_path / "file").write_text("something else")
    with pytest.raises(RamifyError, match="exists already"):
        start_run(recipe, tmp_path / "file", Callbacks())


def test_nothing_is_left_when_the_data_are_wrong(small: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(RamifyError, match="has no store at"):
        start_run(small("bare", stores=str(tmp_path / "nowhere")), tmp_path / "run", Callbacks())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["direct", "conservative"])
def test_broken_numbers_end_the_run(small: MakeRecipe, tmp_path: Path, kind: str) -> None:
    """A step that overflows makes the next loss NaN: the run stops there and keeps the state before that step."""
    recipe = small("qm7x", optimizer__lr=1e30, schedule__warmup_steps=0, model__force_head__kind=kind)
    trainer = start_run(recipe, tmp_path / "run", Callbacks())
    with pytest.raises(RamifyError, match=r"step \d+: the loss is (nan|inf).*'qm7x': \[.*kept as `latest`"):
        trainer.fit()
    latest = open_checkpoint(tmp_path / "run" / "checkpoints" / "latest")
    assert latest.step == trainer.progress.step < 12
    assert all(torch.isfinite(tensor).all() for tensor in tensors(tmp_path / "run").values())
    load_model(latest)
    again = resume_run(tmp_path / "run", Callbacks())
    assert again.progress.step == latest.step
    with pytest.raises(RamifyError, match="the loss is"):
        again.fit()


def test_infinite_numbers_are_null_in_the_log(small: MakeRecipe, tmp_path: Path) -> None:
    """JSON has neither NaN nor infinity."""
    run = Run(tmp_path / "run")
    run.create(small("bare"), {})
    log = MetricsLog(run, 0)
    log.add({"kind": "val", "step": 1, "metric": math.inf, "datasets": {"a": {"energy_mae": math.nan, "x": 0.5}}})
    log.close("finished")
    assert metrics(tmp_path / "run") == [
        {"kind": "val", "step": 1, "metric": None, "datasets": {"a": {"energy_mae": None, "x": 0.5}}}
    ]


def test_heads_no_better_than_trivial_are_warned_of(small: MakeRecipe, tmp_path: Path) -> None:
    """A model that hardly learns: one warning at the end for each head whose last errors are not below."""
    warnings: list[str] = []
    entries: list[dict[str, Any]] = []
    callbacks = Callbacks(warned=warnings.append, evaluated=entries.append)
    train(small("qm7x", "mptrj", "bare", optimizer__lr=1e-9, train__max_steps=12), tmp_path / "run", callbacks)
    expected = [
        (entry["step"], name, label)
        for entry in entries[-1:]
        for name, errors in entry["datasets"].items()
        for label in ("energy", "forces")
        if entry["step"] > 3
        and errors[f"{label}_mae"] is not None
        and errors[f"{label}_mae"] >= errors[f"trivial_{label}_mae"]
    ]
    found = [(int(w.split()[-1]), w.split(":")[0], w.split(": the ")[1].split()[0]) for w in warnings]
    assert found == expected
    assert len(entries) > 1
    assert 0 < len(expected) < 5
    assert "head is no better than the trivial predictor (" in warnings[0]


def test_early_stopping(small: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With metrics 3, 2, 4, 4, 4, ... and patience 2 the run ends with the fourth evaluation; best is the second."""
    plan = iter([3.0, 2.0, 4.0, 4.0, 4.0, 4.0])

    def planned(*_: object) -> Validation:
        known = dict.fromkeys(("trivial_energy_mae", "trivial_forces_mae", "energy_mae", "forces_mae"))
        return Validation(next(plan), {"bare": {"branch": "bare", **known}})

    monkeypatch.setattr(Validator, "__call__", planned)
    recipe = small(
        "bare", train__max_steps=100, train__patience=2, train__evaluate_every=0.4, train__checkpoint_every=9
    )
    trainer = train(recipe, tmp_path / "run")
    every = round(0.4 * 44 / 8)
    assert [line["metric"] for line in metrics(tmp_path / "run", "val")] == [3.0, 2.0, 4.0, 4.0]
    assert trainer.progress.step == 4 * every
    assert (trainer.progress.best, trainer.progress.best_step) == (2.0, 2 * every)
    assert open_checkpoint(tmp_path / "run/checkpoints/best").step == 2 * every
    assert open_checkpoint(tmp_path / "run/checkpoints/latest").step == 4 * every
    resumed = resume_run(tmp_path / "run", Callbacks())
    resumed.fit()
    assert resumed.progress.step == 4 * every  # nothing more to do


@pytest.mark.parametrize(("precision", "dtype"), [("fp64", torch.float64), ("bf16", torch.float32)])
@pytest.mark.parametrize("kind", ["direct", "conservative"])
def test_precisions(small: MakeRecipe, tmp_path: Path, precision: str, dtype: torch.dtype, kind: str) -> None:
    """Weights in the precision stated; losses close to those of float32 (to 1e-4 in fp64, to 5 % in bf16)."""
    losses = {}
    for name in ("fp32", precision):
        changes = {"train__precision": name, "train__max_steps": 4, "model__force_head__kind": kind}
        changes |= {"train__slow_precision": "allow"}
        train(small("qm7x", "mptrj", **changes), tmp_path / name)
        losses[name] = [line["loss"] for line in metrics(tmp_path / name, "train")]
    kept = tensors(tmp_path / precision)
    assert {t.dtype for n, t in kept.items() if not n.endswith("/step")} == {dtype}
    assert losses[precision] != losses["fp32"]
    assert losses[precision] == pytest.approx(losses["fp32"], rel=1e-4 if precision == "fp64" else 0.05)


def branches_of(trainer: Trainer) -> dict[str, str]:
    """Which branch each dataset is validated by."""
    last = metrics(trainer.run.path, "val")[-1]
    return {name: entry["branch"] for name, entry in last["datasets"].items()}


def test_one_branch_for_all(small: MakeRecipe, tmp_path: Path) -> None:
    trainer = train(small("qm7x", "mptrj", branches="shared", train__max_steps=4), tmp_path / "run")
    assert branches_of(trainer) == {"qm7x": "shared", "mptrj": "shared"}
    assert open_checkpoint(tmp_path / "run/checkpoints/latest").manifest["branches"] == ["shared"]
    files = [p.name for p in (resolve(tmp_path / "run/checkpoints/latest") / "branches").iterdir()]
    assert files == ["shared.safetensors"]
    statistics = {name: manifest.statistics for name, manifest in trainer.data.items()}
    count = {name: manifest.splits["train"].structures for name, manifest in trainer.data.items()}
    mean = sum(count[name] * statistics[name].energy_std for name in count) / sum(count.values())
    assert float(trainer.model.branch("shared").energy_scale) == pytest.approx(mean, rel=1e-6)


def test_an_explicit_map_of_branches(small: MakeRecipe, tmp_path: Path) -> None:
    """Names that the containers of PyTorch use themselves are names like any other."""
    wanted = {"train": ["mptrj"], "items": ["bare", "qm7x"]}
    trainer = train(small("qm7x", "mptrj", "bare", branches=wanted, train__max_steps=4), tmp_path / "run")
    assert branches_of(trainer) == {"qm7x": "items", "mptrj": "train", "bare": "items"}
    assert set(dict(trainer.model.branches.named_children())) == {"train", "items"}
    assert trainer.model.branch("items").forces == "direct"  # qm7x has forces
    _, model = load_model(open_checkpoint(tmp_path / "run/checkpoints/latest"))
    assert_same(
        {n: t for n, t in model.state_dict().items() if "items" in n},
        {
            n.removeprefix("weights "): t
            for n, t in tensors(tmp_path / "run").items()
            if n.startswith("weights branches.items")
        },
    )


def test_a_dataset_without_forces_has_no_force_head(small: MakeRecipe, tmp_path: Path) -> None:
    trainer = train(small("qm7x", "bare", train__max_steps=4), tmp_path / "run")
    assert trainer.model.branch("bare").forces is None
    assert trainer.model.branch("qm7x").forces == "direct"
    assert not [n for n in tensors(tmp_path / "run") if "branches.bare.force." in n]
    assert all(math.isfinite(line["loss"]) for line in metrics(tmp_path / "run", "train"))
