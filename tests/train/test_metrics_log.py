"""metrics.jsonl: truncation on resume, damaged lines, and lines of earlier versions."""

import json
from pathlib import Path

import pytest

from ramify.errors import RamifyError
from ramify.train.reporting import Callbacks
from ramify.train.start import resume_run, start_run
from tests.small import files_of, metrics
from tests.train.resume.test_resume import Cut, cut_at

from .conftest import MakeRecipe

EVERY = {"train__evaluate_every": 2 / 6, "train__checkpoint_every": 2 / 6, "train__log_every": 1}


def without_time(lines: list[dict[str, object]]) -> list[dict[str, object]]:
    return [{key: value for key, value in line.items() if key != "time"} for line in lines]


def test_fitting_returns_all_evaluations(small: MakeRecipe, tmp_path: Path) -> None:
    """Those of earlier sessions too, without those that are taken back because they lie past the checkpoint."""
    recipe, path = small("bare", train__max_steps=8, **EVERY), tmp_path / "run"
    with pytest.raises(Cut):
        start_run(recipe, path, Callbacks(step=cut_at(5))).fit()
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "val", "step": 6, "metric": 0.0, "best": true, "datasets": {}}\n')
    found = resume_run(path, Callbacks()).fit()
    assert [line["step"] for line in found] == [2, 4, 6, 8]
    assert without_time(found) == metrics(path, "val")
    assert found[0]["time"] > 0


@pytest.fixture
def run(small: MakeRecipe, tmp_path: Path) -> Path:
    start_run(small("bare", train__max_steps=4, **EVERY), tmp_path / "run", Callbacks()).fit()
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(b"\xff", "utf-8"), (b"\x00\x00", "Expecting value"), (b'{"step": 1}', "kind"), (b'{"kind": "val"}', "step")],
)
def test_a_damaged_line_is_named(run: Path, damage: bytes, reason: str) -> None:
    """In the middle of the file; nothing changes on the disk, and without the line the run can be resumed."""
    file = run / "metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([lines[0], damage + b"\n", *lines[1:]]))
    before = files_of(run)
    with pytest.raises(RamifyError, match=r"metrics\.jsonl, line 2, is damaged: .*\n  fix: remove that line") as error:
        resume_run(run, Callbacks()).fit()
    assert reason in str(error.value)
    assert files_of(run) == before
    file.write_bytes(b"".join(lines))
    resume_run(run, Callbacks()).fit()


@pytest.mark.parametrize("damage", [b"\xff\xfe", b"\x00" * 50, b'{"kind": "tr'])
def test_what_a_crash_left_at_the_end_is_taken_back(run: Path, damage: bytes) -> None:
    before = metrics(run)
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(damage)
    resume_run(run, Callbacks()).fit()
    assert metrics(run) == before


def test_lines_of_earlier_versions_stay(small: MakeRecipe, run: Path) -> None:
    """Their training lines name datasets under `branches`."""
    file = run / "metrics.jsonl"
    old = [json.loads(line) for line in file.read_text().splitlines()]
    for line in old:
        if line["kind"] == "train":
            line["branches"] = line.pop("datasets")
    file.write_text("".join(json.dumps(line) + "\n" for line in old))
    resume_run(run, Callbacks(), recipe=small("bare", train__max_steps=6, **EVERY)).fit()
    lines = metrics(run, "train")
    assert ["branches" in line for line in lines] == [True] * 4 + [False] * 2
    assert ["datasets" in line for line in lines] == [False] * 4 + [True] * 2


def test_an_unreadable_line_of_sessions_is_passed_over(run: Path) -> None:
    with (run / "sessions.jsonl").open("ab") as file:
        file.write(b"\xff\xfe\n[]\n")
    resume_run(run, Callbacks()).fit()
