"""Messages of a run that resumes with another recipe: the changes, and their effect on the learning rate."""

import math

from ramify.checkpoint.checkpoint import Checkpoint
from ramify.recipe import Recipe, parse_recipe
from ramify.run.changes import Changes
from ramify.train.optimization.schedules import Schedule

RATE = ("train.epochs", "train.max_steps", "train.batch", "optimizer.lr")
"""Keys that affect the learning rate, besides those of the schedule."""


def continuation_texts(checkpoint: Checkpoint, changes: Changes, schedule: Schedule) -> list[str]:
    """One text for each change, and one for the learning rate where it may change.

    Args:
        checkpoint: from which the run resumes.
        changes: since it was written.
        schedule: of the resumed run.
    """
    texts = [f"changed since the last session: {text}" for text in changes.texts()]
    if any(key in RATE or key.startswith("schedule.") for key in changes.keys):
        before, now = _last_rate(checkpoint), schedule.rate(checkpoint.step)
        text = f"learning rate: {before:.3g} in the last step, {now:.3g} in the next one"
        if now > before and "schedule.start" not in changes.keys:
            text += f"; to restart the schedule with a warm-up: schedule.start={checkpoint.step}"
            text += f" schedule.warmup_steps={max(1, schedule.options.warmup_steps)}"
        texts.append(text)
    return texts


def run_length(recipe: Recipe, steps_per_epoch: float, paced_at: int, epochs: float) -> int:
    """Number of steps of the whole run, of which the first `paced_at` covered `epochs` passes over the data."""
    if recipe.train.max_steps is not None:
        return recipe.train.max_steps
    return max(1, paced_at + round((recipe.train.epochs - epochs) * steps_per_epoch))


def _last_rate(checkpoint: Checkpoint) -> float:
    """The learning rate of the step before a checkpoint, from the recipe of that step."""
    manifest = checkpoint.manifest
    recipe = parse_recipe(manifest["recipe"], str(checkpoint.path))
    structures = sum(manifest["datasets"][name]["splits"]["train"]["structures"] for name in recipe.datasets)
    progress = manifest["trainer"]["progress"]
    length = run_length(
        recipe, structures / recipe.train.batch, progress.get("paced_at", 0), progress.get("epochs", 0.0)
    )
    schedule = Schedule(recipe.schedule, recipe.optimizer.lr, length)
    schedule.restore({"best": math.inf} | manifest["trainer"]["schedule"])
    return schedule.rate(max(0, checkpoint.step - 1))
