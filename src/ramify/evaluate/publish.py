"""Replaces `evaluation.json` and `predictions/` of a run together: readers find both old or both new.

Two paths cannot be replaced in one operation. A new evaluation is therefore first written completely into a staging
folder next to them; then the old `evaluation.json` is deleted, the predictions are replaced, and the new
`evaluation.json` is moved last. A program that is killed in between leaves no `evaluation.json` in the run, never one
that belongs to other predictions, and readers use the staging folder until the next evaluation.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ramify.files import sync, whole_folder, write_json

STAGED = "evaluation.new"
ERRORS, PREDICTIONS = "evaluation.json", "predictions"


def write_evaluation(run: Path, content: Mapping[str, Any], write_predictions: Callable[[Path], None]) -> None:
    """Replaces the evaluation of a run.

    Args:
        run: the run directory.
        content: the content of `evaluation.json`.
        write_predictions: writes the files of `predictions/` into the folder passed to it.

    Raises:
        RamifyError: the disk is full; the old evaluation is kept.
    """
    _finish(run)
    for left in (*run.glob(f".{STAGED}.partial-*"), run / "predictions.new"):  # left by programs that were killed
        shutil.rmtree(left, ignore_errors=True)
    with whole_folder(run / STAGED) as partial:
        (partial / PREDICTIONS).mkdir()
        write_predictions(partial / PREDICTIONS)
        write_json(partial / ERRORS, dict(content))
    (run / ERRORS).unlink(missing_ok=True)
    _finish(run)


def evaluation_folder(run: Path) -> Path:
    """The folder of `evaluation.json`: the run, or the staging folder of an interrupted program. It may be missing."""
    staged = run / STAGED
    return staged if not (run / ERRORS).is_file() and (staged / ERRORS).is_file() else run


def predictions_folder(run: Path) -> Path:
    """The folder of the predictions of the same evaluation."""
    staged = evaluation_folder(run) / PREDICTIONS
    return staged if staged.is_dir() else run / PREDICTIONS


def _finish(run: Path) -> None:
    """Moves a staged evaluation into place if the old one has been deleted, and discards it otherwise."""
    staged = run / STAGED
    if not (run / ERRORS).exists() and (staged / ERRORS).is_file():
        if (staged / PREDICTIONS).is_dir():
            shutil.rmtree(run / PREDICTIONS, ignore_errors=True)
            (staged / PREDICTIONS).rename(run / PREDICTIONS)
        sync(run)  # predictions are on disk before the errors that belong to them
        (staged / ERRORS).rename(run / ERRORS)
        sync(run)
    shutil.rmtree(staged, ignore_errors=True)
