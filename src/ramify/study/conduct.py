"""A whole study: stores, tasks, trainings, evaluations, tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ramify.files import write_whole
from ramify.prepare.prepare import prepare_dataset
from ramify.recipe import Recipe
from ramify.run.lock import RunLock
from ramify.run.stop import Stop
from ramify.store.manifest import Manifest, read_manifest
from ramify.study.progress import Watch
from ramify.study.results.outcome import Outcome, manifests_of, outcome_of, write_tables
from ramify.study.results.page import render_page
from ramify.study.run import Controller, Starter, failures
from ramify.study.scaling import measure_scaling, scaling_rows
from ramify.study.setup import Request, add_tasks
from ramify.study.table import Study

PAGE = "study.html"
Prepared = Callable[[str, int], None]
"""Called with the name of a dataset and the number of structures read."""


@dataclass(frozen=True)
class Conducted:
    """A study after `conduct`.

    Attributes:
        study: the study.
        outcome: its results; None if no model is done.
        failed: a line for each failed task.
        stopped_by: the signal that stopped it; empty otherwise.
    """

    study: Study
    outcome: Outcome | None
    failed: list[str]
    stopped_by: str


def conduct(
    request: Request,
    starter: Starter,
    jobs: int,
    watch: Watch,
    *,
    scaling: Sequence[int] = (),
    measured: Callable[[dict[str, Any]], None] = lambda case: None,
    interval: float = 0.5,
) -> Conducted:
    """Runs a study, whose stores are prepared, until all requested models are done; continues an earlier one.

    Args:
        request: the options.
        starter: starts the processes of the models.
        jobs: number of models that train at the same time.
        watch: called with the progress of all models.
        scaling: numbers of processes to measure the scaling with, after the trainings.
        measured: called with every case of that measurement.
        interval: seconds between two looks at the processes.

    Raises:
        RamifyError: the recipe differs from that of the study, another process runs the study, or a store is missing.
    """
    study = request.open()
    manifests = manifests_of(study)
    study.path.mkdir(parents=True, exist_ok=True)
    lock = RunLock(study.path).acquire()
    try:
        wanted = add_tasks(study, request, manifests)
        study.save()
        with Stop() as stop:
            Controller(study, starter, jobs, wanted, watch, interval).run(stop)
        if scaling and not stop.reason:
            measure_scaling(study.recipe, scaling, study.path, measured)
        if (outcome := outcome_of(study)) is not None:
            write_tables(study, outcome)
            write_whole(study.path / PAGE, render_page(study, outcome, scaling_rows(study.path)))
        return Conducted(study, outcome, failures(study, wanted), stop.reason)
    finally:
        lock.release()


def prepare_missing(recipe: Recipe, base: Path, progress: Prepared) -> dict[str, Manifest]:
    """Prepares the stores that do not exist yet; returns the manifests of all.

    Args:
        recipe: of the study.
        base: folder of relative paths in the recipe.
        progress: see `Prepared`.
    """
    manifests = {}
    for name, options in recipe.datasets.items():
        store = Path(recipe.stores) / name
        if store.is_dir():
            manifests[name] = read_manifest(store)
        else:
            read = partial(progress, name)
            manifests[name] = prepare_dataset(name, options, store.parent, base=base, progress=read)
    return manifests
