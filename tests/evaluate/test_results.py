"""Reading run directories: errors with their fix, and names of models."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from ramify.errors import RamifyError
from ramify.evaluate.results import Results


def test_a_complete_run(run: Path) -> None:
    results = Results.open(run)
    assert results.datasets == ["ani1x", "qm7x", "transition1x", "mptrj", "alexandria"]
    assert results.name == "MTL-All"
    assert len(results.val) == 12
    assert results.val[-1]["step"] == results.evaluation.step == 600
    assert len(results.evaluation.rows) == 25
    assert results.predictions("nowhere") is None


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        ("recipe.yaml", r"not a run directory.*\n  fix: .*ramify train"),
        ("evaluation.json", r"fix: ramify evaluate \S+/r$"),
    ],
)
def test_missing_files_name_the_fix(make_run: Callable[..., Path], tmp_path: Path, remove: str, message: str) -> None:
    path = make_run(tmp_path / "r")
    (path / remove).unlink()
    with pytest.raises(RamifyError, match=message):
        Results.open(path)


def test_no_directory_at_all(tmp_path: Path) -> None:
    with pytest.raises(RamifyError, match="does not exist"):
        Results.open(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("evaluation.json", '{"split": "te', "damaged"),
        (
            "evaluation.json",
            '{"split": "test", "rows": [{"branch": 1}], "trivial": [], "branch_of": {}, "step": 1}',
            "rows.0",
        ),
        ("evaluation.json", "[]", "is damaged at .its top."),
        ("data.json", "{", "damaged"),
        ("data.json", '{"qm7x": {"dataset": "qm7x"}}', r"data\.json is damaged at .qm7x\.theory.: Field required"),
        ("recipe.yaml", "{: - ]", "not YAML"),
        ("recipe.yaml", "3", "holds no recipe"),
        ("metrics.jsonl", '{"kind": "train", "step": 1}\nnonsense\n', "line 2"),
        ("metrics.jsonl", b'{"kind": "train", "step": 1}\n\xff\n', "line 2.*utf-8"),
        ("recipe.yaml", b"name: \xff", "utf-8"),
        ("evaluation.json", b"\xff", "damaged"),
        ("data.json", b"\xff", "damaged"),
    ],
)
def test_damaged_files_are_named(
    make_run: Callable[..., Path], tmp_path: Path, file: str, content: str | bytes, message: str
) -> None:
    path = make_run(tmp_path / "r")
    (path / file).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(RamifyError, match=message) as caught:
        Results.open(path)
    assert file in str(caught.value)
    assert "fix:" in str(caught.value)


def test_damaged_predictions_are_named(make_run: Callable[..., Path], tmp_path: Path) -> None:
    path = make_run(tmp_path / "r")
    file = path / "predictions" / "qm7x.npz"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(RamifyError, match=r"qm7x\.npz is damaged.*\n  fix: ramify evaluate"):
        Results.open(path).predictions("qm7x")


def test_pickled_predictions_are_refused(make_run: Callable[..., Path], tmp_path: Path) -> None:
    path = make_run(tmp_path / "r")
    file = path / "predictions" / "qm7x.npz"
    columns = dict(np.load(file))
    columns["names"] = columns["names"].astype(object)
    np.savez(file, **columns)
    with pytest.raises(RamifyError, match="damaged"):
        Results.open(path).predictions("qm7x")


def test_a_resumed_history_counts_each_step_once_and_ignores_the_line_being_written(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_run(tmp_path / "r")
    lines = [
        {"kind": "train", "step": s, "epoch": s / 10, "loss": loss} for s, loss in ((1, 9), (2, 8), (3, 7), (2, 6.5))
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "tr')
    assert [(r["step"], r["loss"]) for r in Results.open(path).train] == [(1, 9), (2, 6.5), (3, 7)]


@pytest.mark.parametrize(
    ("recipe", "branch_of", "name"),
    [
        ({"name": "Mine"}, {"a": "a", "b": "b"}, "Mine"),
        ({"name": "", "branches": "per-dataset"}, {"a": "a", "b": "b"}, "MTL-All"),
        ({"branches": "shared"}, {"a": "shared", "b": "shared"}, "Baseline-All"),
        ({"branches": {"x": ["a"], "y": ["b"]}}, {"a": "x", "b": "y"}, "MTL-All"),
        ({"branches": {"x": ["a", "c"], "y": ["b"]}}, {"a": "x", "c": "x", "b": "y"}, "MTL-x-y"),
        ({"branches": {"only": ["b"]}}, {"b": "only"}, "Model-b"),
    ],
)
def test_names_of_models(tmp_path: Path, recipe: dict, branch_of: dict, name: str) -> None:
    evaluation = {
        "split": "test",
        "rows": [
            {"branch": branch, "dataset": dataset, "structures": 1, "atoms": 1}
            for branch in dict.fromkeys(branch_of.values())
            for dataset in ("a", "b", "c")
        ],
        "trivial": [],
        "branch_of": branch_of,
        "step": 3,
    }
    (tmp_path / "recipe.yaml").write_text(
        yaml.safe_dump({"datasets": {dataset: {} for dataset in branch_of}, **recipe})
    )
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    results = Results.open(tmp_path)
    assert results.name == name
    assert results.own_branch("b") == branch_of["b"]
