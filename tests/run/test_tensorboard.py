"""TensorBoard shows the numbers of metrics.jsonl, also after an interruption."""

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ramify.run.trackers.tensorboard import TensorBoardLog
from ramify.train.reporting import Callbacks
from ramify.train.start import resume_run, start_run
from tests.small import metrics

from .conftest import MakeRecipe


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every curve by TensorBoard's own reader: (step, value)."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}, purge_orphaned_data=True)
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_curves_by_hand(small: MakeRecipe, tmp_path: Path) -> None:
    board = TensorBoardLog(tmp_path, small("bare"), None, 0)
    board.add(
        {"kind": "train", "step": 5, "time": 1.0, "loss": 2.5, "branches": {"a": {"loss": 3.0, "forces_mae": None}}}
    )
    board.add(
        {"kind": "val", "step": 5, "metric": 0.5, "best": True, "datasets": {"a": {"branch": "a", "energy_mae": 1}}}
    )
    board.add({"kind": "train", "step": 10, "time": 2.0, "loss": 1.25, "branches": {}})
    board.tables("test", 10, {"a/energy_mae": 0.5}, "| model |")
    board.close("finished")
    assert read(tmp_path / "tensorboard") == {
        "train/loss": [(5, 2.5), (10, 1.25)],
        "train/branches/a/loss": [(5, 3.0)],
        "val/metric": [(5, 0.5)],
        "val/datasets/a/energy_mae": [(5, 1.0)],
        "test/a/energy_mae": [(10, 0.5)],
    }
    texts = EventAccumulator(str(tmp_path / "tensorboard"))
    texts.Reload()
    said = {tag: texts.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in texts.Tags()["tensors"]}
    assert "max_steps: 12" in said.pop("recipe/text_summary")
    assert said == {"test/tables/text_summary": "| model |"}


def test_curves_of_a_run_that_was_cut_off(small: MakeRecipe, tmp_path: Path) -> None:
    """Steps that were trained twice are shown once."""

    def stop(step: int, total: int) -> None:
        if step == 11:
            raise KeyboardInterrupt

    recipe = small("bare", train__max_steps=14, train__checkpoint_every=1, train__evaluate_every=1, train__log_every=1)
    with pytest.raises(KeyboardInterrupt):
        start_run(recipe, tmp_path / "run", Callbacks(step=stop)).fit()
    resume_run(tmp_path / "run", Callbacks()).fit()
    curves = read(tmp_path / "run" / "tensorboard")
    for kind, tag in (("train", "loss"), ("train", "lr"), ("val", "metric")):
        lines: list[dict[str, Any]] = metrics(tmp_path / "run", kind)
        assert [step for step, _ in curves[f"{kind}/{tag}"]] == [line["step"] for line in lines]
        assert [value for _, value in curves[f"{kind}/{tag}"]] == pytest.approx([line[tag] for line in lines], rel=1e-6)
    assert [step for step, _ in curves["train/loss"]] == list(range(1, 15))
