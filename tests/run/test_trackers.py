"""Trackers receive the recipe, the numbers of metrics.jsonl and the tables, each once, from rank zero alone."""

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ramify.errors import RamifyError
from ramify.evaluate.evaluate import Evaluator
from ramify.parallel.layout import Layout
from ramify.planning.placement import replicated
from ramify.report import tables
from ramify.run.run import Run
from ramify.run.trackers import trackers
from ramify.run.trackers.tracker import curves
from ramify.train.reporting import Callbacks, RunReporter
from ramify.train.start import resume_run, start_run
from ramify.train.state import TrainingProgress
from tests.processes.ranks import ThreadRank, on_threads
from tests.small import metrics, train

from .conftest import MakeRecipe

ENVIRONMENT = {
    "WANDB_MODE": "offline",
    "WANDB_ERROR_REPORTING": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}


def stop(step: int, total: int) -> None:
    if step == 11:
        raise KeyboardInterrupt


@pytest.fixture
def tracked(small: MakeRecipe, tmp_path: Path, request: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was interrupted between two checkpoints, resumed and evaluated, with the tracker of the test."""
    pytest.importorskip(request.param)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    keys = {"max_steps": 14, "checkpoint_every": 1, "evaluate_every": 1, "log_every": 1, "trackers": [request.param]}
    recipe = small("bare", **{f"train__{key}": value for key, value in keys.items()})
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        start_run(recipe, run, Callbacks(step=stop)).fit()
    trainer = resume_run(run, Callbacks(warned=pytest.fail), recipe=recipe)
    assert trainer.progress.step < 11
    trainer.fit()
    result = Evaluator(run).evaluate()
    trackers.track_tables(run, result, tables.write(run).markdown(), pytest.fail)
    return run


def points(run: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves of metrics.jsonl."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in metrics(run):
        for tag, value in curves(line).items():
            found.setdefault(tag, []).append((line["step"], value))
    return found


@pytest.mark.parametrize("tracked", ["mlflow"], indirect=True)
def test_mlflow(tracked: Path) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tracked / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("ramify").experiment_id])
    assert trackers.identifiers(tracked) == {"mlflow": run.info.run_id}
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "run"
    assert run.data.params["train.max_steps"] == "14"
    for tag, expected in points(tracked).items():
        assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, tag)] == expected, tag
    (row,) = json.loads((tracked / "evaluation.json").read_text())["rows"]
    assert run.data.metrics["test/bare/energy_mae"] == row["energy_mae"]
    assert (tracked / "mlflow").is_dir()
    files = {
        item.path: client.download_artifacts(run.info.run_id, item.path)
        for item in client.list_artifacts(run.info.run_id)
    }
    assert Path(files["recipe.yaml"]).read_text() == (tracked / "recipe.yaml").read_text()
    assert Path(files["tables-test.md"]).read_text() == (tracked / "tables.md").read_text()


@pytest.mark.parametrize("tracked", ["wandb"], indirect=True)
def test_wandb_offline(tracked: Path) -> None:
    known = trackers.identifiers(tracked)["wandb"]
    sessions = sorted((tracked / "wandb").glob("offline-run-*"))
    # the name of a folder ends in the identifier, or in a number where two sessions begin in one second
    assert {file.stem for folder in sessions for file in folder.glob("*.wandb")} == {f"run-{known}"}
    records = [record for folder in sessions for record in records_of(folder / f"run-{known}.wandb")]
    history: dict[str, list[tuple[int, float]]] = {}
    summary: dict[str, Any] = {}
    config: dict[str, Any] = {}
    for record in records:
        if record.WhichOneof("record_type") == "history":
            row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            for tag in row.keys() & points(tracked).keys():
                history.setdefault(tag, []).append((row["step"], row[tag]))
        summary |= {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.summary.update}
        config |= {item.key: json.loads(item.value_json) for item in record.config.update if item.key}
    assert history == points(tracked)
    assert config["train"]["max_steps"] == 14
    (row,) = json.loads((tracked / "evaluation.json").read_text())["rows"]
    assert summary["test/bare/energy_mae"] == row["energy_mae"]
    (table,) = (tracked / "wandb").glob("offline-run-*/files/tables-test.md")
    assert table.read_text() == (tracked / "tables.md").read_text()


def records_of(file: Path) -> list[Any]:
    """The records of a file of Weights & Biases, by its own reader."""
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    store, found = DataStore(), []
    store.open_for_scan(str(file))
    while (content := store.scan_data()) is not None:
        found.append(Record.FromString(content))
    return found


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_an_absent_package_names_its_extra(
    name: str, small: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None if package == name else there(package))
    with pytest.raises(RamifyError, match=rf"train.trackers: {name} .*\n.*ramify\[{name}\]"):
        start_run(small("bare", train__trackers=["tensorboard", name]), tmp_path / "run", Callbacks())
    assert not (tmp_path / "run").exists()


@dataclass
class Failing:
    """A tracker whose server is lost after two lines."""

    lines: list[Mapping[str, Any]]
    id = "an id"

    def add(self, entry: Mapping[str, Any]) -> None:
        if len(self.lines) == 2:
            raise ConnectionError("no route to host")
        self.lines.append(entry)

    def close(self, ended: str) -> None:
        raise AssertionError


def test_a_lost_tracker_is_one_warning(small: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing, warnings, opening = Failing([]), [], trackers._opening
    monkeypatch.setattr(trackers, "_opening", lambda name: (lambda *_: failing) if name == "mlflow" else opening(name))
    monkeypatch.setattr(trackers, "require_packages", lambda recipe: None)
    recipe = small("bare", train__trackers=["tensorboard", "mlflow"])
    train(recipe, tmp_path / "run", Callbacks(warned=warnings.append))
    assert [text for text in warnings if "no route to host" in text] == [
        "mlflow failed and receives nothing more in this session: no route to host"
    ]
    assert len(failing.lines) == 2
    assert len(metrics(tmp_path / "run")) > 2


@dataclass(frozen=True, eq=False, kw_only=True)
class ThreadLayout(Layout, ThreadRank):
    """The layout of a rank that is a thread."""


def test_only_rank_zero_opens_trackers(small: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Run(tmp_path / "run").create(small("bare"), {})
    opened: list[int] = []

    def work(rank: ThreadRank) -> None:
        layout = ThreadLayout(rank=rank.rank, size=2, room=rank.room, placement=replicated(["bare"], 2))
        monkeypatch.setattr(trackers, "_opening", lambda name: lambda *_: opened.append(1) or Failing([]))
        run = Run(tmp_path / "run")
        reporter = RunReporter(run, layout, TrainingProgress(), steps_per_epoch=1, warmup=0, callbacks=Callbacks())
        monkeypatch.setattr(Failing, "close", lambda self, ended: None)
        with reporter.opened(lambda: ""):
            pass

    assert on_threads(2, work) == [None, None]
    assert opened == [1]
