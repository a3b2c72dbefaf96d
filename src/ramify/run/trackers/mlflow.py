"""A run in MLflow: on the server of MLFLOW_TRACKING_URI, else in `RUN/mlflow.db` with files in `RUN/mlflow`.

The experiment is that of MLFLOW_EXPERIMENT_NAME, else `ramify`.
"""

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

from ramify.recipe import Recipe
from ramify.recipe.overrides import dotted
from ramify.run.trackers.tracker import Ending, curves

EXPERIMENT = "ramify"
STATES: dict[Ending, str] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
MOST_PARAMETERS = 100
"""In one request, see the REST API of MLflow (runs/log-batch)."""
LONGEST = 6000
"""Characters of a parameter's value (the same page); the whole recipe is a file of the run as well."""


class MlflowLog:
    """One session of a run; see `ramify.run.trackers.tracker`.

    Parameters cannot be changed in MLflow: they are those of the first session, and `recipe.yaml` is the latest.
    """

    def __init__(self, folder: Path, recipe: Recipe, known: str | None, step: int | None) -> None:
        folder, uri = folder.resolve(), os.environ.get("MLFLOW_TRACKING_URI")
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # not the migrations of a new database
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self._training = step is not None
        self._client = MlflowClient(tracking_uri=uri or f"sqlite:///{folder / 'mlflow.db'}")
        self.id = known or self._create(folder, recipe, None if uri else (folder / "mlflow").as_uri())
        if self._training:
            if known:
                self._client.update_run(known, status="RUNNING")
            self._client.log_text(self.id, recipe.to_yaml(), "recipe.yaml")
        else:
            self._client.get_run(self.id)

    def add(self, entry: Mapping[str, Any]) -> None:
        """Sends the numbers of one line of metrics.jsonl."""
        self._send(curves(entry), entry["step"])

    def tables(self, split: str, step: int, errors: Mapping[str, float], markdown: str) -> None:
        """Sends the errors as points of one step, and the tables as a file."""
        self._send({f"{split}/{name}": value for name, value in errors.items()}, step)
        self._client.log_text(self.id, markdown, f"tables-{split}.md")

    def close(self, ended: Ending) -> None:
        """Sets the state of the run."""
        if self._training:
            self._client.set_terminated(self.id, STATES[ended])

    def _create(self, folder: Path, recipe: Recipe, files: str | None) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        there = self._client.get_experiment_by_name(name)
        experiment = there.experiment_id if there else self._client.create_experiment(name, artifact_location=files)
        run = self._client.create_run(experiment, run_name=recipe.name or folder.name).info.run_id
        parameters = [Param(key, str(value)[:LONGEST]) for key, value in dotted(recipe.model_dump(mode="json"))]
        for start in range(0, len(parameters), MOST_PARAMETERS):
            self._client.log_batch(run, params=parameters[start : start + MOST_PARAMETERS])
        return run

    def _send(self, numbers: Mapping[str, float], step: int) -> None:
        now = int(1000 * time.time())
        self._client.log_batch(self.id, metrics=[Metric(name, value, now, step) for name, value in numbers.items()])


open_tracker = MlflowLog
