"""A run that gains or loses a dataset by a change of its recipe: old parts continue, new ones are initialised."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ramify.batches.sampler import BatchSampler
from ramify.checkpoint.checkpoint import open_checkpoint
from ramify.checkpoint.pointers import read_pointers
from ramify.errors import RamifyError
from ramify.evaluate.evaluate import load_model
from ramify.model.build import LabelSpread, build_model
from ramify.run.stop import Stop
from ramify.train.optimization.optimizer import AveragedWeights
from ramify.train.reporting import Callbacks
from ramify.train.start import resume_run, start_run
from tests.small import metrics, tensors
from tests.train.conftest import MakeRecipe

SHORT = {"train__batch": 6, "train__evaluate_every": 0.04, "train__checkpoint_every": 0.04, "train__log_every": 1}
"""About 100 to 150 steps an epoch: evaluations every 4 to 6."""


def stopped_at(step: int, recipe: Any, path: Path) -> Any:
    """A run that was stopped after `step`."""

    class Asked(Stop):
        @property
        def reason(self) -> str:
            return "SIGTERM" if trainer.progress.step == step - 1 else ""

    trainer = start_run(recipe, path, Callbacks(), stop=Asked())
    trainer.fit()
    assert trainer.progress.step == step
    return trainer


def test_a_dataset_comes(small: MakeRecipe, tmp_path: Path) -> None:
    recipe = small("qm7x", "mptrj", train__max_steps=20, **SHORT)
    trainer = stopped_at(8, recipe, tmp_path / "run")
    before = tensors(tmp_path / "run")
    positions = trainer.sampler.position(8)
    now = small("qm7x", "mptrj", "bare", train__max_steps=20, train__resume={"add": ["bare"]}, **SHORT)
    with pytest.raises(RamifyError, match=r"datasets\.bare: the run has no such dataset, and train\.resume\.add does"):
        resume_run(tmp_path / "run", Callbacks(), recipe=small("qm7x", "mptrj", "bare", train__max_steps=20, **SHORT))
    resumed = resume_run(tmp_path / "run", Callbacks(), recipe=now)
    assert resumed.progress.step == 8
    found = dict(resumed.model.named_parameters())
    fresh = build_model(now, {n: LabelSpread.of_manifest(m) for n, m in resumed.data.items()})
    for name, parameter in fresh.branch("bare").named_parameters():
        assert torch.equal(found[f"branches.bare.{name}"], parameter)
        assert found[f"branches.bare.{name}"] not in resumed.optimizer.state
    for name, tensor in before.items():
        kind, _, rest = name.partition(" ")
        if kind == "training" and "/" not in rest:
            assert torch.equal(found[rest], tensor)
            assert float(resumed.optimizer.state[found[rest]]["step"]) == float(before[f"training {rest}/step"])
    assert resumed.sampler.position(8) == positions | {"bare": 0}
    assert resumed.progress.born == {"bare": 8}
    resumed.fit()
    latest = open_checkpoint(tmp_path / "run" / "checkpoints" / "latest")
    assert latest.branches == ("bare", "mptrj", "qm7x")
    assert "bare" in latest.manifest["datasets"]
    load_model(latest)
    steps = {
        n: float(t) for n, t in latest.training(["bare"]).items() if n.startswith("branches.bare") and "/step" in n
    }
    taken = sum(resumed.sampler.counts(step)["bare"] > 0 for step in range(8, 20))
    assert set(steps.values()) == {float(taken)}
    best = [line["best"] for line in metrics(tmp_path / "run", "val") if "bare" in line["datasets"]]
    assert best[0]  # the first evaluation with other datasets: a mean over others cannot be compared
    assert sorted(metrics(tmp_path / "run", "val")[-1]["datasets"]) == ["bare", "mptrj", "qm7x"]
    starts = [line for line in resumed.run.sessions.lines() if line["kind"] == "start"]
    assert starts[-1]["changed"]["train.resume.add"] == [[], ["bare"]]
    assert "datasets.bare.path" in starts[-1]["changed"]
    again = resume_run(tmp_path / "run", Callbacks())  # by its own recipe, which still lists it
    assert again.progress.born == {"bare": 8}
    assert again.sampler.position(20) == resumed.sampler.position(20)
    again.fit()


def test_a_dataset_goes(small: MakeRecipe, tmp_path: Path) -> None:
    """Its branch stays in the last checkpoint that contains it, which later checkpoints do not remove."""
    path = tmp_path / "run"
    stopped_at(8, small("qm7x", "mptrj", "bare", train__max_steps=20, **SHORT), path)
    before = tensors(path)
    now = small("qm7x", "bare", train__max_steps=20, train__resume={"drop": ["mptrj"]}, **SHORT)
    resumed = resume_run(path, Callbacks(), recipe=now)
    assert read_pointers(path / "checkpoints")["with-mptrj"] == "step-00000008"
    resumed.fit()
    assert open_checkpoint(path / "checkpoints" / "latest").branches == ("bare", "qm7x")
    kept = open_checkpoint(path / "checkpoints" / "with-mptrj")
    assert {f"weights {n}": t for n, t in kept.weights().items()}.keys() <= before.keys()
    assert torch.equal(kept.weights()["branches.mptrj.energy_scale"], before["weights branches.mptrj.energy_scale"])
    without = [line["best"] for line in metrics(path, "val") if "mptrj" not in line["datasets"]]
    assert without[0]  # a mean over others cannot be compared
    back = small("qm7x", "mptrj", "bare", train__max_steps=20, train__resume={"add": ["mptrj"]}, **SHORT)
    again = resume_run(path, Callbacks(), recipe=back)
    assert again.progress.born == {"mptrj": 20}  # it starts anew, it does not remember


def test_one_that_was_killed_in_between_changes_again(small: MakeRecipe, tmp_path: Path) -> None:
    """The recipe is the new one already, the checkpoint not yet."""
    path = tmp_path / "run"
    stopped_at(8, small("qm7x", "mptrj", train__max_steps=20, **SHORT), path)
    now = small("qm7x", "mptrj", "bare", train__max_steps=20, train__resume={"add": ["bare"]}, **SHORT)
    resume_run(path, Callbacks(), recipe=now).run.unlock()  # and no step is taken
    resumed = resume_run(path, Callbacks())
    assert resumed.progress.born == {"bare": 8}
    resumed.fit()
    assert open_checkpoint(path / "checkpoints" / "latest").step == 20


def test_a_branch_keeps_its_units(small: MakeRecipe, tmp_path: Path) -> None:
    """A dataset that joins a branch does not change the predictions of the branch, although its spread differs."""
    path = tmp_path / "run"
    one, both = {"molecules": ["qm7x"]}, {"molecules": ["qm7x", "ani1x"]}
    stopped_at(8, small("qm7x", train__max_steps=20, branches=one, **SHORT), path)
    before = tensors(path)
    now = small("qm7x", "ani1x", train__max_steps=20, branches=both, train__resume={"add": ["ani1x"]}, **SHORT)
    resumed = resume_run(path, Callbacks(), recipe=now)
    assert torch.equal(
        resumed.model.branch("molecules").energy_scale, before["weights branches.molecules.energy_scale"]
    )
    assert resumed.progress.born == {}
    resumed.fit()


def test_a_branch_without_forces_cannot_take_them_up(small: MakeRecipe, tmp_path: Path) -> None:
    path = tmp_path / "run"
    stopped_at(4, small("bare", train__max_steps=8, branches={"a": ["bare"]}, **SHORT), path)
    now = small(
        "bare", "qm7x", train__max_steps=8, branches={"a": ["bare", "qm7x"]}, train__resume={"add": ["qm7x"]}, **SHORT
    )
    with pytest.raises(RamifyError, match=r"does not fit the model of the recipe: branches\.a\.force\S* is missing"):
        resume_run(path, Callbacks(), recipe=now)
    assert not (path / "lock.json").exists()
    resume_run(path, Callbacks()).fit()


def test_streams_go_on_where_they_stood() -> None:
    """Each dataset with its next structure, none skipped, none twice, though the shares of a step have changed."""
    before = BatchSampler({"a": 30, "b": 50}, {"a": 30.0, "b": 50.0}, 8, seed=3)
    after = BatchSampler({"a": 30, "b": 50, "c": 20}, {"a": 30.0, "b": 50.0, "c": 20.0}, 8, seed=3)
    after.start_at(5, before.position(5))
    seen: dict[str, list[int]] = {"a": [], "b": [], "c": []}
    for sampler, steps in ((before, range(5)), (after, range(5, 12))):
        for step in steps:
            positions, counts = sampler.position(step), sampler.counts(step)
            for name, count in counts.items():
                seen[name] += sampler.rows(name, positions[name], count).tolist()
    for name, rows in seen.items():
        assert rows == after.rows(name, 0, len(rows)).tolist()
    assert sum(map(len, seen.values())) == 12 * 8
    with pytest.raises(ValueError, match="positions are known from step 5 on, not at 4"):
        after.position(4)


def test_averages_of_a_branch_count_from_its_beginning() -> None:
    """Its first update weights the old value by (1 + 0) / (10 + 0), independent of earlier steps of the run."""
    model = torch.nn.ModuleList([torch.nn.Linear(2, 1, bias=False), torch.nn.Linear(2, 1, bias=False)])
    averages = AveragedWeights(model, 0.999)
    averages.start_at(model[1].parameters(), 1000)
    start = [average.clone() for average in averages.averages]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    averages.update(1000)
    moved = [float((a - s).mean()) for a, s in zip(averages.averages, start, strict=True)]
    np.testing.assert_allclose(moved, [1 - min(0.999, 1001 / 1010), 1 - 1 / 10], rtol=1e-5)
