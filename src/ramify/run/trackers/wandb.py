"""A run in Weights & Biases; with WANDB_MODE=offline in `RUN/wandb`, for `wandb sync` later.

Project, team and server are those of its own environment variables (WANDB_PROJECT, WANDB_ENTITY, WANDB_BASE_URL).
"""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb

from ramify.recipe import Recipe
from ramify.run.trackers.tracker import Ending, curves

PROJECT = "ramify"
"""Project of runs where WANDB_PROJECT is not set."""


class WandbLog:
    """One session of a run; see `ramify.run.trackers.tracker`. The steps of curves are those of the optimizer."""

    def __init__(self, folder: Path, recipe: Recipe, known: str | None, step: int | None) -> None:
        self.id = known or secrets.token_hex(4)
        offline = os.environ.get("WANDB_MODE") == "offline"
        self._run = wandb.init(
            dir=folder,
            id=self.id,
            resume="allow" if known and not offline else None,  # offline, equal identifiers are joined when synced
            reinit="create_new",
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=recipe.name or folder.resolve().name,
            settings=wandb.Settings(silent=True, console="off"),
        )
        self._run.config.update(recipe.model_dump(mode="json"), allow_val_change=True)
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def add(self, entry: Mapping[str, Any]) -> None:
        """Sends the numbers of one line of metrics.jsonl."""
        self._run.log({"step": entry["step"], **curves(entry)})

    def tables(self, split: str, step: int, errors: Mapping[str, float], markdown: str) -> None:
        """Sends the errors as summary values and as a table, and the tables as a file."""
        self._run.summary.update({f"{split}/{name}": value for name, value in errors.items()})
        rows = [[*name.split("/"), value] for name, value in errors.items()]
        table = wandb.Table(columns=["dataset", "error", "value"], data=rows)
        self._run.log({"step": step, f"{split}/errors": table})
        path = Path(self._run.dir) / f"tables-{split}.md"
        path.write_text(markdown, encoding="utf-8")
        self._run.save(path, base_path=path.parent, policy="now")

    def close(self, ended: Ending) -> None:
        """Waits until all data are sent."""
        self._run.finish(exit_code=int(ended == "failed"))


open_tracker = WandbLog
