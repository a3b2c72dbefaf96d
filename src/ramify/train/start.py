"""Starting a run, and taking one up again."""

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ramify.data.open import check_same_data, open_split, open_stores
from ramify.errors import RamifyError
from ramify.recipe import Recipe
from ramify.train.loop import Trainer, Watch
from ramify.train.run import Run

EdgeProgress = Callable[[str, int], None]


def start_run(
    recipe: Recipe, path: Path, watch: Watch, edges: EdgeProgress = lambda dataset, structures: None
) -> Trainer:
    """Makes the run directory and a trainer at step 0; nothing is written when something is wrong with the data.

    Raises:
        RamifyError: see `open_stores` and `Run.create`.
    """
    _settle_process(recipe)
    Run.require_free(path)
    stores = open_stores(recipe)
    train, val = open_split(recipe, stores, "train", edges), open_split(recipe, stores, "val", edges)
    data = {name: store.manifest.model_dump(mode="json") for name, store in stores.items()}
    run = Run.create(path, recipe, data)
    return Trainer(recipe, run, data, train, val, watch=watch)


def resume_run(path: Path, watch: Watch, edges: EdgeProgress = lambda dataset, structures: None) -> Trainer:
    """A trainer at the latest checkpoint of a run; continues as if the run had never stopped.

    Raises:
        RamifyError: no run or no checkpoint there, a damaged one, or a recipe or stores that have changed since.
    """
    run = Run.open(path)
    recipe = run.recipe()
    _settle_process(recipe)
    checkpoint = run.checkpoint("latest")
    _same_recipe(run, checkpoint.manifest["recipe"], recipe.model_dump(mode="json"))
    stores = open_stores(recipe)
    check_same_data(checkpoint.manifest["datasets"], stores)
    data = {name: store.manifest.model_dump(mode="json") for name, store in stores.items()}
    train, val = open_split(recipe, stores, "train", edges), open_split(recipe, stores, "val", edges)
    trainer = Trainer(recipe, run, data, train, val, watch=watch)
    trainer.restore(checkpoint)
    return trainer


def _same_recipe(run: Run, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuses to go on by another recipe than the run began with; only the stores may have moved."""
    if changed := [key for key in now if key not in ("name", "stores") and now[key] != before.get(key)]:
        raise RamifyError(
            f"{run.path / 'recipe.yaml'} is not what this run was trained by ({', '.join(changed)} changed)",
            fix="restore it, or start a new run with the new recipe",
        )


def _settle_process(recipe: Recipe) -> None:
    """Threads and memory of this process, before anything large is made."""
    if recipe.train.threads is not None:
        torch.set_num_threads(recipe.train.threads)
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Tells glibc to keep large freed blocks instead of returning them: a step frees and takes the same gigabyte again,
    and fetching fresh pages for it costs up to a third of the step (M_TRIM_THRESHOLD = -1, M_MMAP_THRESHOLD = -3)."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # glibc only
            libc.mallopt(-1, 2**31 - 1)
            libc.mallopt(-3, 2**30)
