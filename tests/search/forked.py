"""Controllers and trainings as forks of a process that has loaded the libraries: real ones, in tenths of a second."""

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ramify.recipe import parse_recipe
from ramify.run.stop import Stop
from ramify.search.controller import Controller
from ramify.search.journal import Journal
from ramify.search.lengths import Estimates
from ramify.search.settings import SearchFolder, Settings
from ramify.search.space import make_space
from tests.worlds import PRELOADED


@dataclass
class Forked:
    """A training as a fork of this process."""

    pid: int
    status: int | None = field(default=None)

    def poll(self) -> int | None:
        if self.status is None:
            ended, found = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(found) if ended else None
        return self.status

    def stop(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGTERM)


def start(words: Sequence[str], log: Path, slot: int, name: str) -> Forked:
    """`ramify` with these words, in a process of its own."""
    pid = os.fork()
    if pid:
        return Forked(pid)
    status = 1
    try:
        os.setsid()
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        status = _ramify(words)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _ramify(words: Sequence[str]) -> int:
    import torch

    from ramify import cli

    torch.set_num_threads(1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    sys.argv = ["ramify", *words]
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


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
        Estimates(recipe, 1),
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
