"""A study conducted in a process of its own that can be killed, with all processes that it starts; small datasets."""

import contextlib
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from ase import Atoms
from ase.calculators.emt import EMT
from ase.io import write

from ramify.study.setup import Request
from ramify.study.table import Study
from tests.processes.forked import call
from tests.processes.worlds import PRELOADED


class Conducted:
    """A study that is conducted in a process of its own.

    Args:
        request: the options.
        jobs: models at the same time.
    """

    def __init__(self, request: Request, jobs: int = 1) -> None:
        os.environ["OMP_NUM_THREADS"] = "1"
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        request.out.parent.mkdir(parents=True, exist_ok=True)
        self.log = request.out.with_suffix(".log")
        self._process = context.Process(target=call, args=(_conduct, request, jobs, self.log))
        self._process.start()

    def wait(self, seconds: float = 300.0) -> bool:
        """Whether it has ended within that time."""
        self._process.join(seconds)
        return self._process.exitcode is not None

    def end(self) -> str:
        """Waits for its end, which must be a success; what it printed."""
        assert self.wait()
        said = self.log.read_text()
        assert self._process.exitcode == 0, said
        return said

    def wait_for_start(self, request: Request, attempts: int) -> None:
        """Waits until it has started a model, after `attempts` of earlier calls."""
        while starts(request.out) <= attempts and not self.wait(0.01):
            pass

    def signal(self, number: int) -> int | None:
        """Sends a signal to the controller; its exit status."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)
        self._process.join(60)
        return self._process.exitcode

    def kill(self, *, children: bool) -> None:
        """Kills the controller, and its children unless they are to go on without it."""
        with contextlib.suppress(psutil.NoSuchProcess):
            own = psutil.Process(self._process.pid)
            started = own.children(recursive=True) if children else []
            self._process.kill()
            for child in started:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
        self._process.join()


def starts(study: Path) -> int:
    """Number of processes of models that were started so far."""
    return sum(task.attempts for task in Study.open(study).tasks) if Study.exists(study) else 0


def _conduct(request: Request, jobs: int, log: Path) -> None:
    from ramify.run.launcher import Launcher
    from ramify.study.conduct import conduct

    with log.open("w") as output, contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        found = conduct(request, Launcher(), jobs, lambda rows: None, interval=0.01)
        print("\n".join(found.failed), "stopped by", found.stopped_by or "nothing")
    sys.exit(1 if found.failed else 75 if found.stopped_by else 0)


def alloys(folder: Path, name: str, elements: tuple[str, str], seed: int) -> dict[str, Any]:
    """Clusters of two metals with energies and forces of ASE's EMT; returns the recipe entry."""
    rng = np.random.default_rng(seed)
    images = []
    for group in range(40):
        symbols = rng.choice(elements, 3)
        atoms = Atoms(symbols, positions=[[0, 0, 0], [2.5, 0, 0], [1.2, 2.2, 0]])
        atoms.positions += rng.normal(0, 0.2, (3, 3))
        atoms.calc = EMT()
        atoms.get_forces()
        atoms.info["group"] = f"g{group}"
        images.append(atoms)
    write(folder / f"{name}.xyz", images, format="extxyz")
    return {"format": "extxyz", "path": str(folder / f"{name}.xyz"), "group_key": "group", "split": {"test": 0.2}}
