"""`evaluation.json` and `predictions/` belong to one evaluation, whenever the program that writes them is killed."""

import json
import multiprocessing
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from ramify.evaluate.publish import evaluation_folder, predictions_folder, write_evaluation

OPERATIONS = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.scandir", "os.truncate"}
"""Audit events (https://docs.python.org/3/library/audit_events.html) of what changes files, and of what precedes it."""


def write(run: Path, which: str) -> None:
    """One evaluation, with its name in every file."""

    def predictions(folder: Path) -> None:
        for dataset in ("a", "b"):
            (folder / f"{dataset}.npz").write_text(which)

    write_evaluation(run, {"split": which}, predictions)


def killed_at(run: Path, number: int) -> None:
    """Writes the new evaluation, but is killed right before its file operation of that number."""
    left = number

    def count(event: str, arguments: Any) -> None:
        nonlocal left
        if event in OPERATIONS:
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    write(run, "new")
    os._exit(0)


def found(run: Path) -> tuple[str, set[str]]:
    """Names found in the errors and in the predictions."""
    errors = json.loads((evaluation_folder(run) / "evaluation.json").read_text())["split"]
    return errors, {p.read_text() for p in predictions_folder(run).iterdir()}


def test_killed_anywhere_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    seen = []
    for number in range(200):
        run = tmp_path / str(number)
        run.mkdir()
        write(run, "old")
        process = multiprocessing.get_context("fork").Process(target=killed_at, args=(run, number))
        process.start()
        process.join(60)
        errors, predictions = found(run)
        assert predictions == {errors}
        assert len(list(predictions_folder(run).iterdir())) == 2
        if (run / "evaluation.json").is_file():  # for programs that look at the paths themselves
            assert {p.read_text() for p in (run / "predictions").iterdir()} == {errors}
        seen.append(errors)
        write(run, "next")
        assert found(run) == ("next", {"next"})
        assert {p.name for p in run.iterdir()} == {"evaluation.json", "predictions"}
        shutil.rmtree(run)
        if process.exitcode == 0:
            break
    assert process.exitcode == 0
    assert len(seen) > 15  # it was killed at many places
    assert set(seen[:5]) == {"old"}
    assert "new" in seen[:-1]  # also where the paths were not all replaced
