"""Trainings as processes of their own, started by a command line template (`--launcher "srun -N 4 {command}"`)."""

import os
import shlex
import signal
import string
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ramify.errors import RamifyError

PLACES = ("command", "arguments", "slot", "name")
"""Accepted placeholders of a template."""


class Training(Protocol):
    """A training that runs, started by this process or by an earlier one."""

    def poll(self) -> int | None:
        """Exit status (minus the number of a signal that ended it); None while the training runs."""
        ...

    def stop(self) -> None:
        """Requests the training to write a checkpoint and to exit."""
        ...


class StartedTraining(Training, Protocol):
    """A training as a process of this machine, which may be a launcher; see `TrainingProcess`."""

    @property
    def pid(self) -> int:
        """Process number, also of its process group."""
        ...


@dataclass(frozen=True, slots=True)
class TrainingProcess:
    """A process in a session of its own, which a signal to the terminal does not reach."""

    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        """Process number, also of its process group."""
        return self.process.pid

    def poll(self) -> int | None:
        """Exit status; None while the process runs."""
        return self.process.poll()

    def stop(self) -> None:
        """Sends SIGTERM to the process and its children; launchers pass it on to the ranks."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)


@dataclass(frozen=True)
class Launcher:
    """Starts `ramify` by a command line template.

    Args:
        template: a command line with the placeholders `{command}` (`python -m ramify train ...`), `{arguments}` (`train
            ...`, for `torchrun -m ramify {arguments}`), `{slot}` (0 to jobs - 1, different for trainings that run at
            the same time, e.g. `CUDA_VISIBLE_DEVICES={slot}`) and `{name}` (of the training). Without `{command}` and
            `{arguments}`, the command is appended.
        jobs: number of trainings that run at the same time; each uses its part of the processors.
        threads: threads of each, instead of its part of the processors.

    Raises:
        RamifyError: the template is not a command line, or has an unknown placeholder.
    """

    template: str = ""
    jobs: int = 1
    threads: int | None = None

    def __post_init__(self) -> None:
        try:
            words = shlex.split(self.template)
            found = [name for word in words for _, name, _, _ in string.Formatter().parse(word) if name is not None]
        except ValueError as error:
            raise RamifyError(
                f"--launcher '{self.template}' is not a command line: {error}", fix="e.g. 'srun -N 4 {command}'"
            ) from None
        if unknown := sorted(set(found) - set(PLACES)):
            accepted = ", ".join(f"{{{name}}}" for name in PLACES)
            raise RamifyError(
                f"--launcher '{self.template}': unknown placeholder {{{unknown[0]}}}; accepted: {accepted}",
                fix="write {{ and }} for braces of the command",
            )

    def command(self, arguments: Sequence[str], *, slot: int = 0, name: str = "") -> list[str]:
        """The whole command line.

        Args:
            arguments: after `ramify`.
            slot: see the template.
            name: of the training.
        """
        command = [sys.executable, "-m", "ramify", *arguments]
        lists = {"{command}": command, "{arguments}": list(arguments)}
        words: list[str] = []
        for word in shlex.split(self.template):
            inside = {"command": shlex.join(command), "arguments": shlex.join(arguments), "slot": slot, "name": name}
            words += lists.get(word, [word.format(**inside)])
        named = {place for _, place, _, _ in string.Formatter().parse(self.template)}
        return words if named & {"command", "arguments"} else [*words, *command]

    def start(self, arguments: Sequence[str], log: Path, *, slot: int = 0, name: str = "") -> TrainingProcess:
        """Starts `ramify ARGUMENTS`.

        Args:
            arguments: after `ramify`.
            log: file to which the output is appended.
            slot, name: see `command`.

        Raises:
            RamifyError: the first word of the template is not a program.
        """
        command = self.command(arguments, slot=slot, name=name)
        with log.open("ab") as output:
            try:
                process = subprocess.Popen(
                    command,
                    env=self._environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                raise RamifyError(
                    f"--launcher '{self.template}': {command[0]} cannot be started: {error.strerror}",
                    fix="give a program of PATH, e.g. 'srun -N 4 {command}'",
                ) from None
        return TrainingProcess(process)

    def _environment(self) -> dict[str, str]:
        """The variables of this process, with the number of threads; OMP_NUM_THREADS is kept where it is set and
        `threads` is None."""
        usable = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        own = {"OMP_NUM_THREADS": str(self.threads or max(1, usable // self.jobs))}
        return {**os.environ, **own} if self.threads else {**own, **os.environ}
