"""`evaluation.json` and `predictions/` of a run change together: whoever reads them finds both old or both new.

Two paths cannot be replaced in one operation. A new evaluation is therefore written whole into a folder beside them
first; then the old `evaluation.json` goes, the predictions are replaced, and the new `evaluation.json` comes last. A
program that is killed in between leaves no `evaluation.json` in the run, never one of other predictions, and what it
has written is read from that folder until the next evaluation.
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
        content: of `evaluation.json`.
        write_predictions: writes the files of `predictions/` into the folder that it is given.

    Raises:
        RamifyError: the disk is full; the old evaluation is still there then.
    """
    _finish(run)
    for left in (*run.glob(f".{STAGED}.partial-*"), run / "predictions.new"):  # by programs that were killed
        shutil.rmtree(left, ignore_errors=True)
    with whole_folder(run / STAGED) as partial:
        (partial / PREDICTIONS).mkdir()
        write_predictions(partial / PREDICTIONS)
        write_json(partial / ERRORS, dict(content))
    (run / ERRORS).unlink(missing_ok=True)
    _finish(run)


def evaluation_folder(run: Path) -> Path:
    """Where `evaluation.json` is: in the run, or where an interrupted program has left it. It need not be there."""
    staged = run / STAGED
    return staged if not (run / ERRORS).is_file() and (staged / ERRORS).is_file() else run


def predictions_folder(run: Path) -> Path:
    """Where the predictions of the same evaluation are."""
    staged = evaluation_folder(run) / PREDICTIONS
    return staged if staged.is_dir() else run / PREDICTIONS


def _finish(run: Path) -> None:
    """Puts a new evaluation in its place where the old one is gone; throws it away where the old one still stands."""
    staged = run / STAGED
    if not (run / ERRORS).exists() and (staged / ERRORS).is_file():
        if (staged / PREDICTIONS).is_dir():
            shutil.rmtree(run / PREDICTIONS, ignore_errors=True)
            (staged / PREDICTIONS).rename(run / PREDICTIONS)
        sync(run)  # the predictions are there before the errors that speak of them
        (staged / ERRORS).rename(run / ERRORS)
        sync(run)
    shutil.rmtree(staged, ignore_errors=True)
