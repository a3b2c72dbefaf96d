"""A whole study: the same tables however it is run and interrupted, and nothing trained twice."""

import html
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ramify.checkpoint.pointers import read_pointers
from ramify.errors import RamifyError
from ramify.files import json_lines
from ramify.recipe import Recipe, parse_recipe
from ramify.report.table_format import format_error
from ramify.report.tables import build
from ramify.run.sessions import Sessions
from ramify.study.conduct import prepare_missing
from ramify.study.setup import Request
from ramify.study.table import Study
from tests.study.conducted import Conducted, alloys, starts

MODELS = ["Model-aluminium", "Model-nickel", "Baseline-All", "MTL-All"]


def tables(study: Path) -> tuple[str, str]:
    """The tables of a study, as text and with all digits."""
    content = json.loads((study / "results.json").read_text())
    return (study / "tables.md").read_text(), json.dumps([content["tables"], content["verdict"]])


def sessions(study: Path) -> dict[str, int]:
    """The number of trainings of every run."""
    return {
        run.name: sum(line["kind"] == "start" for line in Sessions(run).lines()) for run in (study / "runs").iterdir()
    }


def test_tables_agree_with_those_of_the_runs(finished: Path) -> None:
    content = json.loads((finished / "results.json").read_text())
    found = build([finished / "runs" / f"{model}-seed0" for model in MODELS])
    assert [row["model"] for row in content["tables"][0]["rows"]] == MODELS
    for mine, theirs in zip(content["tables"], found.tables, strict=True):
        assert mine["quantity"] == theirs.quantity
        assert mine["trivial"] == theirs.trivial
        for row, other in zip(mine["rows"], theirs.rows, strict=True):
            for dataset in ("aluminium", "nickel"):
                cell = row["cells"][dataset]
                assert cell["error"]["values"] == [other.cells[dataset].mae]
                assert cell["foreign"] == (dataset not in row["trained_on"])
                refitted = mine["quantity"] == "energy" and cell["foreign"]
                assert (cell["refitted"] is not None) == refitted
    assert {cost["model"]: cost["steps"] for cost in content["costs"]} == {
        "Model-aluminium": 8, "Model-nickel": 8, "Baseline-All": 16, "MTL-All": 16
    }  # fmt: skip
    assert all(cost["memory"] > 1e7 and cost["parameters"] > 100 for cost in content["costs"])


def test_the_page_shows_the_tables(finished: Path) -> None:
    page, content = (finished / "study.html").read_text(), json.loads((finished / "results.json").read_text())
    for table in content["tables"]:
        assert table["title"] in page
        for row in table["rows"]:
            for cell in row["cells"].values():
                assert f">{format_error(cell['error']['mean'])}</span>" in page
                assert cell["refitted"] is None or f"refitted {format_error(cell['refitted']['mean'])}" in page
    assert all(html.escape(line) in page for line in content["verdict"])
    assert page.count("<figure>") == 2 * 2 + 2  # learning curves, errors by element
    assert "optimizer:" in page
    assert not re.search(r"""(?:src|href)=["']?https?:""", page)


def test_two_jobs_give_the_same_numbers(finished: Path, recipe: Recipe, tmp_path: Path) -> None:
    request = Request(recipe, "test", tmp_path / "two")
    Conducted(request, jobs=2).end()
    assert tables(request.out) == tables(finished)


@pytest.mark.slow
def test_killed_ten_times(finished: Path, recipe: Recipe, tmp_path: Path) -> None:
    """At random moments, with or without the processes of its models: the tables stay the same to the bit."""
    request, moments = Request(recipe, "test", tmp_path / "killed"), random.Random(5)
    for attempt in range(10):
        before = starts(request.out)
        conducted = Conducted(request, jobs=2)
        conducted.wait_for_start(request, before)
        at_once = attempt < 2  # so that a model is interrupted on the fastest machine too
        conducted.wait(0.0 if at_once else moments.uniform(0.0, 0.6))
        conducted.kill(children=at_once or moments.random() < 0.7)
    Conducted(request, jobs=2).end()
    assert tables(request.out) == tables(finished)
    assert starts(request.out) > starts(finished)  # some models were started again
    assert {task.state for task in Study.open(request.out).tasks} == {"done"}


@pytest.mark.slow
def test_a_signal_stops_the_models_and_the_same_command_continues(
    finished: Path, recipe: Recipe, tmp_path: Path
) -> None:
    request = Request(recipe, "test", tmp_path / "stopped")
    conducted = Conducted(request)
    conducted.wait_for_start(request, 0)
    assert conducted.signal(signal.SIGTERM) == 75
    assert "stopped by SIGTERM" in conducted.log.read_text()
    assert {task.state for task in Study.open(request.out).tasks} <= {"waiting", "stopped", "trained", "done"}
    Conducted(request).end()
    assert tables(request.out) == tables(finished)


@pytest.mark.slow
def test_one_more_seed_and_one_more_dataset_keep_what_stands(recipe: Recipe, tmp_path: Path) -> None:
    request = Request(recipe, "test", tmp_path / "grown")
    Conducted(request).end()
    Conducted(replace(request, seeds=2)).end()
    assert sessions(request.out) == {f"{model}-seed{seed}": 1 for model in MODELS for seed in (0, 1)}
    content = json.loads((request.out / "results.json").read_text())
    cell = content["tables"][0]["rows"][3]["cells"]["nickel"]["error"]
    assert len(cell["values"]) == 2
    assert cell["spread"] == pytest.approx(abs(cell["values"][0] - cell["values"][1]) / 2**0.5)

    plain = recipe.model_dump(mode="json")
    plain["datasets"]["silver"] = alloys(tmp_path, "silver", ("Ag", "Cu"), 3)
    larger = parse_recipe(plain, "larger")
    prepare_missing(larger, tmp_path, lambda dataset, count: None)
    said = Conducted(replace(request, recipe=larger)).end()
    assert "stopped by nothing" in said
    new = {"Model-silver-seed0": 1, "Baseline-All-3-seed0": 1, "MTL-All-3-seed0": 1}
    assert sessions(request.out) == {f"{model}-seed{seed}": 1 for model in MODELS for seed in (0, 1)} | new
    content = json.loads((request.out / "results.json").read_text())
    (row,) = [row for row in content["tables"][0]["rows"] if row["model"] == "MTL-All"]
    assert row["cells"]["silver"]["foreign"]
    assert row["cells"]["silver"]["branch"] in ("aluminium", "nickel")
    assert any(line.startswith("MTL-All predicts silver with the branch ") for line in content["footnotes"])


@pytest.mark.slow
def test_longer_trainings_continue_those_that_stand(finished: Path, recipe: Recipe, tmp_path: Path) -> None:
    """As by `ramify train --resume`; models that are not lengthened yet are not in the tables of the longer ones."""
    shutil.copytree(finished, tmp_path / "longer")
    by_hand = tmp_path / "by-hand"
    shutil.copytree(finished / "runs/MTL-All-seed0", by_hand)
    plain = recipe.model_dump(mode="json")
    plain["train"] |= {"max_steps": 32, "evaluate_every": 1.0}
    request = Request(parse_recipe(plain, "longer"), "longer", tmp_path / "longer", models=["mtl"])
    Conducted(request).end()
    content = json.loads((request.out / "results.json").read_text())
    assert [row["model"] for row in content["tables"][0]["rows"]] == ["MTL-All"]
    assert any(line.startswith("All trainings had ended at a smaller length") for line in content["footnotes"])
    assert content["footnotes"][-1].endswith(
        "evaluated: Model-aluminium-seed0, Model-nickel-seed0, Baseline-All-seed0."
    )
    keys = [*(f"train.{key}" for key in ("max_steps=32", "evaluate_every=1.0")), "train.threads=1"]
    command = [sys.executable, "-m", "ramify", "train", "--resume", str(by_hand), *keys]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    (mine, theirs) = (
        json_lines((run / "metrics.jsonl").read_bytes())[-1] for run in (request.out / "runs/MTL-All-seed0", by_hand)
    )
    assert mine["step"] == 32
    assert mine["datasets"] == theirs["datasets"]

    Conducted(replace(request, models=["single", "baseline", "mtl"])).end()
    assert sessions(request.out) == {f"{model}-seed0": 2 for model in MODELS}
    content = json.loads((request.out / "results.json").read_text())
    assert not any("Not in the tables" in line for line in content["footnotes"])
    assert {cost["model"]: cost["steps"] for cost in content["costs"]} == {
        "Model-aluminium": 16, "Model-nickel": 16, "Baseline-All": 32, "MTL-All": 32
    }  # fmt: skip
    for run in (request.out / "runs").iterdir():
        best = read_pointers(run / "checkpoints")["best"]
        assert f"step-{json.loads((run / 'evaluation.json').read_text())['step']:08d}" == best
    with pytest.raises(RamifyError, match=r"train\.max_steps: 32, now 16"):
        replace(request, recipe=recipe).open()


def test_a_changed_recipe_is_refused(finished: Path, recipe: Recipe) -> None:
    plain = recipe.model_dump(mode="json")
    plain["optimizer"]["lr"] = 0.02
    del plain["datasets"]["nickel"]
    plain["datasets"]["other"] = plain["datasets"]["aluminium"]
    with pytest.raises(RamifyError) as refused:
        Request(parse_recipe(plain, "changed"), "changed.yaml", finished, equal="steps").open()
    for fact in ("changed.yaml", "optimizer.lr: 0.01, now 0.02", "datasets.nickel: missing", "passes, now steps"):
        assert fact in str(refused.value)


def test_free_keys_may_change(finished: Path, recipe: Recipe) -> None:
    plain = recipe.model_dump(mode="json")
    plain["train"] |= {"threads": 2, "checkpoint_every": 3.0}
    assert Request(parse_recipe(plain, "same"), "same", finished).open().datasets == ["aluminium", "nickel"]


def test_a_failed_model_states_why_and_the_others_go_on(recipe: Recipe, tmp_path: Path) -> None:
    """The folder of one run cannot be written: a file has its name."""
    request = Request(recipe, "test", tmp_path / "failed", models=["Model-nickel", "mtl"])
    (request.out / "runs").mkdir(parents=True)
    (request.out / "runs/Model-nickel-seed0").write_text("not a folder")
    os.rename(request.out / "runs", tmp_path / "runs")
    study = request.open()
    study.path.mkdir(exist_ok=True)
    study.save()
    os.rename(tmp_path / "runs", request.out / "runs")
    conducted = Conducted(request)
    assert conducted.wait()
    assert "Model-nickel-seed0: training: exit status 1" in conducted.log.read_text()
    states = {task.name: task.state for task in Study.open(request.out).tasks}
    assert states == {"Model-nickel-seed0": "failed", "MTL-All-seed0": "done"}
