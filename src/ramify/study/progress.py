"""State of a task as its run directory shows it: steps done, training finished, evaluated on all datasets."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ramify.checkpoint.pointers import read_pointers
from ramify.errors import RamifyError
from ramify.evaluate.publish import ERRORS, evaluation_folder
from ramify.evaluate.refit import PREFIX
from ramify.files import json_lines, read_json
from ramify.labels import mae
from ramify.recipe import Recipe
from ramify.run.run import Run
from ramify.run.sessions import Sessions
from ramify.study.table import State, Study, Task

TAIL = 16_384
"""Bytes at the end of metrics.jsonl that contain its last lines."""
FINISHED = "finished"
"""End of the last session of a run that was trained to its end (`ramify.run.sessions`)."""


@dataclass(frozen=True)
class Row:
    """A task in the display of a study.

    Attributes:
        name: of the run.
        state: see `ramify.study.table.State`.
        step, steps: steps done, and in total.
        seconds: of training so far.
        metric: last value of the validation metric; None before the first evaluation.
        error: of a failed task.
    """

    name: str
    state: State
    step: int
    steps: int
    seconds: float
    metric: float | None
    error: str = ""


Watch = Callable[[list[Row]], None]
"""Called with the progress of all tasks."""


def row_of(study: Study, task: Task) -> Row:
    """The current progress of a task."""
    lines = last_lines(study.run(task) / "metrics.jsonl")
    last: dict[str, Any] = lines[-1] if lines else {}
    metrics = [line["metric"] for line in lines if line.get("kind") == "val"]
    step = task.steps if task.state == "done" else int(last.get("step", 0))
    seconds = float(last.get("time", 0.0))
    return Row(task.name, task.state, step, task.steps, seconds, metrics[-1] if metrics else None, task.error)


def last_lines(path: Path) -> list[dict[str, Any]]:
    """The last complete lines of a file of JSON lines; none if there is no such file."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL))
            content = file.read()
    except OSError:
        return []
    return json_lines(content if size <= TAIL else content.partition(b"\n")[2])


def state_on_disk(study: Study, task: Task) -> State:
    """The state that the files of a task show, whatever the table of tasks says."""
    run = study.run(task)
    if not Run.exists(run):
        return "waiting"
    if not is_trained(run, study.recipe_of(task)):
        return "stopped"
    return "done" if is_evaluated(run, study.datasets) else "trained"


def is_trained(run: Path, recipe: Recipe) -> bool:
    """Whether the last session of a run trained it to its end, and to the length that `recipe` states."""
    lines, own = Sessions(run).lines(), Run(run).recipe().train
    whole = (own.epochs, own.max_steps) == (recipe.train.epochs, recipe.train.max_steps)
    return whole and bool(lines) and lines[-1].get("ended") == FINISHED


def is_evaluated(run: Path, datasets: Sequence[str]) -> bool:
    """Whether the best checkpoint of a run was evaluated on the test split of all `datasets`, foreign ones also with
    fitted references."""
    file = evaluation_folder(run) / ERRORS
    if not file.is_file():
        return False
    try:
        content, best = read_json(file), read_pointers(run / "checkpoints").get("best")
        rows = content["rows"]
        foreign = [row for row in rows if row["dataset"] not in content["branch_of"]]
        complete = content["split"] == "test" and {row["dataset"] for row in rows} >= set(datasets)
        latest = best in (None, f"step-{content['step']:08d}")
        return complete and latest and all(PREFIX + mae("energy") in row for row in foreign)
    except (RamifyError, KeyError, TypeError, ValueError):
        return False


def last_words(log: Path, lines: int = 6) -> str:
    """The last lines of the output of a task."""
    try:
        content = log.read_bytes()[-TAIL:].decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join([line for line in content.splitlines() if line.strip()][-lines:])
