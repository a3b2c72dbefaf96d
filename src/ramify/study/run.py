"""Runs the tasks of a study: some at a time, each as `ramify train` and `ramify evaluate` in processes of their own."""

import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ramify.files import write_whole
from ramify.run.launcher import StartedTraining, Training
from ramify.run.lock import is_locked
from ramify.run.stop import Stop, ended_from_outside
from ramify.study.progress import Watch, last_words, row_of, state_on_disk
from ramify.study.table import Process, Study, Task
from ramify.system import process_runs, process_start

RECIPE = "recipe.yaml"
"""The recipe of the whole study in its folder, whose datasets every model is evaluated on."""

ATTEMPTS = 3
"""Times that a task is started in one call if its process is killed or stopped from outside."""


class Starter(Protocol):
    """Starts `ramify ARGUMENTS` as a process; see `ramify.run.launcher.Launcher`."""

    def start(self, arguments: Sequence[str], log: Path, *, slot: int, name: str) -> StartedTraining:
        """Starts it; its output is appended to `log`."""
        ...


@dataclass
class _Running:
    """A task with its process."""

    task: Task
    training: Training
    slot: int
    verb: str


@dataclass(frozen=True)
class _Adopted:
    """A process of an earlier controller, which was killed before it."""

    alive: Callable[[], bool]

    def poll(self) -> int | None:
        return None if self.alive() else 0

    def stop(self) -> None:
        """It belongs to no one else, but its children are unknown: it is left to end."""


@dataclass
class Controller:
    """Runs the waiting tasks of a study until all are done, failed, or a stop is requested.

    Args:
        study: the study, locked by this process.
        launcher: starts the processes.
        jobs: number of tasks that run at the same time.
        wanted: names of the tasks to run.
        watch: called with the progress of all wanted tasks, at most every `interval` seconds.
        interval: seconds between two looks at the processes.
    """

    study: Study
    launcher: Starter
    jobs: int
    wanted: Sequence[str]
    watch: Watch = lambda rows: None
    interval: float = 0.5
    _running: list[_Running] = field(default_factory=list)
    _attempts: dict[str, int] = field(default_factory=dict)

    def run(self, stop: Stop) -> None:
        """Runs the tasks; on return no process runs, and study.json holds their states.

        Args:
            stop: requests to stop; running trainings then write a checkpoint.
        """
        tasks = [task for task in self.study.tasks if task.name in self.wanted]
        write_whole(self.study.path / RECIPE, self.study.recipe.to_yaml())
        for task in tasks:
            task.state, task.error = state_on_disk(self.study, task), ""
        waiting = sorted((t for t in tasks if t.state != "done"), key=lambda t: -_work(t))
        self.study.save()
        try:
            while (waiting or self._running) and not stop.reason:
                self._collect(waiting)
                while waiting and len(self._running) < self.jobs:
                    self._start(waiting.pop(0))
                self.watch([row_of(self.study, task) for task in tasks])
                if self._running:
                    time.sleep(self.interval)
        finally:
            self._stop_all()
        self.watch([row_of(self.study, task) for task in tasks])

    def _start(self, task: Task) -> None:
        """Starts the next process of a task, or adopts the one that an earlier controller has started."""
        slot = min(set(range(self.jobs)) - {running.slot for running in self._running})
        verb = "train" if task.state in ("waiting", "stopped") else "evaluate"
        run = self.study.run(task)
        if task.process is not None and _runs(task.process):
            known = task.process
            training: Training = _Adopted(lambda: _runs(known))
        elif verb == "train" and is_locked(run):
            training = _Adopted(lambda: is_locked(run))
        else:
            training = self._launch(task, verb, slot)
        task.state = "training" if verb == "train" else "evaluating"
        self.study.save()
        self._running.append(_Running(task, training, slot, verb))

    def _launch(self, task: Task, verb: str, slot: int) -> Training:
        folder, run = self.study.path, self.study.run(task)
        recipe = folder / "recipes" / f"{task.name}.yaml"
        for needed in (recipe.parent, run.parent, folder / "logs"):
            needed.mkdir(exist_ok=True)
        if verb == "train":
            write_whole(recipe, self.study.recipe_of(task).to_yaml())
            arguments = ["train", str(recipe), "--run-dir", str(run), "--continue"]
        else:
            arguments = ["evaluate", str(run), "--others", str(folder / RECIPE), "--refit"]
        self._attempts[task.name] = self._attempts.get(task.name, 0) + 1
        task.attempts += 1
        training = self.launcher.start(arguments, self._log(task), slot=slot, name=task.name)
        task.process = Process(host=socket.gethostname(), pid=training.pid, started=process_start(training.pid))
        return training

    def _collect(self, waiting: list[Task]) -> None:
        """Takes the tasks whose process has ended; those that go on are put first in `waiting`."""
        for running in list(self._running):
            if (status := running.training.poll()) is None:
                continue
            self._running.remove(running)
            task = running.task
            task.process = None
            task.state = state_on_disk(self.study, task)
            before = "training" if running.verb == "train" else "evaluating"
            on = task.state == "done" or (running.verb == "train" and task.state == "trained")
            if on:
                self._attempts[task.name] = 0
            elif not self._may_repeat(task, status):
                task.state = "failed"
                task.error = f"{before}: exit status {status}; {last_words(self._log(task))}"
            if task.state not in ("done", "failed"):
                waiting.insert(0, task)
            self.study.save()

    def _may_repeat(self, task: Task, status: int) -> bool:
        """Whether a process that ended early was killed or stopped from outside, and not too often."""
        return ended_from_outside(status) and self._attempts.get(task.name, 0) < ATTEMPTS

    def _stop_all(self) -> None:
        """Requests all processes to stop and waits for them."""
        for running in self._running:
            running.training.stop()
        while self._running:
            for running in list(self._running):
                if isinstance(running.training, _Adopted) or running.training.poll() is not None:
                    self._running.remove(running)
                    if not isinstance(running.training, _Adopted):
                        running.task.process = None
                    running.task.state = state_on_disk(self.study, running.task)
            time.sleep(min(0.05, self.interval))
        self.study.save()

    def _log(self, task: Task) -> Path:
        return self.study.path / "logs" / f"{task.name}.log"


def _work(task: Task) -> float:
    """Relative length of a task: the longest start first, so that no long one is left alone at the end."""
    return task.steps * (1.0 + 0.01 * len(task.datasets))


def _runs(process: Process) -> bool:
    """Whether a process of an earlier controller still runs on this machine."""
    if process.host != socket.gethostname() or process.pid == os.getpid():
        return False
    return process_runs(process.pid, process.started)


def failures(study: Study, wanted: Sequence[str]) -> list[str]:
    """A line for each failed task."""
    return [f"{t.name}: {t.error}" for t in study.tasks if t.name in wanted and t.state == "failed"]
