"""Controllers of searches in processes of their own, whose trainings are forks of them."""

import multiprocessing
import os
from pathlib import Path
from typing import Any

from ramify.recipe import parse_recipe
from ramify.run.stop import Stop
from ramify.search.controller import Controller
from ramify.search.journal import Journal
from ramify.search.lengths import Estimates
from ramify.search.settings import SearchFolder, Settings
from ramify.search.space import make_space
from tests.processes.forked import start
from tests.processes.worlds import PRELOADED


def search(folder: Path, settings: dict[str, Any], trials: int, jobs: int = 1, **options: Any) -> Controller:
    """A controller of a search with forked trainings."""
    out = SearchFolder(folder)
    found = out.open(Settings.model_validate(settings))
    recipe = parse_recipe(found.recipe, "the recipe")
    space = make_space(found.space, found.recipe, "the space")
    journal = Journal(folder, found.storage, found.study, found.objectives, found.rungs)
    return Controller(
        out,
        found,
        space,
        journal,
        Estimates(recipe, 1, options.pop("pace", None)),
        trials,
        jobs,
        options.pop("start", start),
        poll=0.02,
        **options,
    )


def run(folder: Path, settings: dict[str, Any], trials: int, jobs: int = 1) -> None:
    """Runs a search, with messages in `said`."""
    with (folder.parent / f"{folder.name}-said").open("a", encoding="utf-8") as said, Stop() as stop:

        def noted(text: str) -> None:
            said.write(f"{text}\n")
            said.flush()

        search(folder, settings, trials, jobs, stop=stop, noted=noted).run()


def controller(folder: Path, settings: dict[str, Any], trials: int, jobs: int = 1) -> Any:
    """A controller in a process of its own, which may be killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    os.environ["OMP_NUM_THREADS"] = "1"
    process = context.Process(target=run, args=(folder, settings, trials, jobs))
    process.start()
    return process
