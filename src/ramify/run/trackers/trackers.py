"""The trackers of a run (`train.trackers`), which receive the recipe, the numbers of metrics.jsonl and the tables.

Only rank zero has them. metrics.jsonl remains the record of a run: no result depends on a tracker.
"""

import importlib
import importlib.util
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ramify.errors import RamifyError
from ramify.files import read_json, write_json
from ramify.recipe import Recipe, load_recipe
from ramify.run.trackers.tracker import Ending, Opening, Tracker

NAME = "trackers.json"
"""The file of a run with the identifier that each tracker gave it, by the name of the tracker."""
REMOTE = ("wandb", "mlflow")
"""Trackers that may need a network: a failure after the start of a run is a warning."""
FIXES = {
    "wandb": "log in once with `wandb login`, or write into the run directory: WANDB_MODE=offline",
    "mlflow": "check MLFLOW_TRACKING_URI; without it, MLflow writes into the run directory",
}


def require_packages(recipe: Recipe) -> None:
    """Checks that the packages of all trackers of a recipe are installed.

    Raises:
        RamifyError: one is missing.
    """
    for name in recipe.train.trackers:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # without origin: a folder of that name, as Weights & Biases leaves one
            raise RamifyError(
                f"train.trackers: {name} needs the package {name}, which is not installed",
                fix=f"pip install 'ramify[{name}]', or set train.trackers=[tensorboard]",
            )


class Trackers:
    """All trackers of one session.

    Args:
        folder: the run directory.
        recipe: of the run.
        step: where the session begins.
        repeated: lines of metrics.jsonl after this step, of an earlier session. Remote trackers have them already, and
            do not receive equal ones again.
        warned: called with a warning if a remote tracker fails; it receives nothing more in this session.

    Raises:
        RamifyError: a tracker cannot be opened.
    """

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        step: int,
        repeated: Iterable[Mapping[str, Any]],
        warned: Callable[[str], None],
    ) -> None:
        self._warned, self._repeated = warned, [_without_time(entry) for entry in repeated]
        known = identifiers(folder)
        self._open: dict[str, Tracker] = {}
        for name in recipe.train.trackers:
            try:
                self._open[name] = _opening(name)(folder, recipe, known.get(name), step)
            except (OSError, RamifyError):
                raise
            except Exception as error:
                raise RamifyError(f"train.trackers: {name} cannot be used: {error}", fix=FIXES[name]) from error
        found = known | {name: tracker.id for name, tracker in self._open.items() if tracker.id is not None}
        if found != known:
            write_json(folder / NAME, found)

    def add(self, entry: Mapping[str, Any]) -> None:
        """Writes one line of metrics.jsonl to all trackers.

        Raises:
            OSError: TensorBoard's file cannot be written.
        """
        again = _without_time(entry) in self._repeated
        for name in [name for name in self._open if not (again and name in REMOTE)]:
            self._guarded(name, lambda tracker: tracker.add(entry))

    def close(self, ended: Ending) -> None:
        """Closes all trackers. Raises as `add`."""
        for name in list(self._open):
            self._guarded(name, lambda tracker: tracker.close(ended))

    def _guarded(self, name: str, write: Callable[[Tracker], None]) -> None:
        try:
            write(self._open[name])
        except Exception as error:
            if name not in REMOTE:
                raise
            del self._open[name]
            self._warned(f"{name} failed and receives nothing more in this session: {error}")


def track_tables(folder: Path, evaluation: Mapping[str, Any], markdown: str, warned: Callable[[str], None]) -> None:
    """Adds the tables of an evaluation to the trackers that have the run; a failure is a warning.

    Args:
        folder: the run directory.
        evaluation: content of evaluation.json.
        markdown: content of tables.md.
        warned: called with each warning.
    """
    recipe, known = load_recipe(folder / "recipe.yaml"), identifiers(folder)
    errors = {
        f"{row['dataset']}/{key}": float(value)
        for row in evaluation["rows"]
        if evaluation["branch_of"].get(row["dataset"], row["branch"]) == row["branch"]
        for key, value in row.items()
        if key.endswith(("_mae", "_rmse")) and isinstance(value, int | float)
    }
    for name in recipe.train.trackers:
        if name in known or (folder / name).is_dir():
            try:
                tracker = _opening(name)(folder, recipe, known.get(name), None)
                tracker.tables(evaluation["split"], evaluation["step"], errors, markdown)
                tracker.close("finished")
            except Exception as error:
                warned(f"{name} did not receive the tables: {error}")


def identifiers(folder: Path) -> dict[str, str]:
    """The identifiers of a run by the name of the tracker; empty where there are none."""
    with suppress(RamifyError, OSError):  # absent, or damaged: the run then begins anew in its trackers
        found = read_json(folder / NAME)
        if isinstance(found, dict):
            return {str(name): value for name, value in found.items() if isinstance(value, str)}
    return {}


def _without_time(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != "time"}


def _opening(name: str) -> Opening:
    return importlib.import_module(f"ramify.run.trackers.{name}").open_tracker
