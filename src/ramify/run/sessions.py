"""sessions.jsonl: the sessions of a run with their ranks, their changes of the recipe, and their ends."""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ramify import __version__
from ramify.checkpoint.pointers import after_failure
from ramify.errors import RamifyError
from ramify.files import json_lines, writing
from ramify.run.stop import Stopped
from ramify.system import peak_memory

NAME = "sessions.jsonl"


class Sessions:
    """Appends to the file of one run; incomplete lines of killed programs are skipped.

    Each line has `kind` and `time` (UTC). `start` describes the start of the program, `checkpoint` records its first
    checkpoint, `end` states how it ended; a program that was killed has no `end`.
    """

    def __init__(self, run: Path) -> None:
        self._path = run / NAME
        self._saved = False

    def start(self, **facts: Any) -> None:
        """Records that the program begins to train."""
        job = next((f"{key}={os.environ[key]}" for key in ("SLURM_JOB_ID", "PBS_JOBID") if key in os.environ), None)
        place = {"host": socket.gethostname(), "folder": _working_directory(), "pid": os.getpid(), "job": job}
        self._add("start", **place, ramify=__version__, **facts)

    def saved(self, step: int) -> None:
        """Records that a checkpoint of `step` is complete; only the first of a session is written."""
        if not self._saved:
            self._add("checkpoint", step=step)
        self._saved = True

    def end(self, step: int, how: str, **facts: Any) -> None:
        """Records the end of the program: `finished`, `stopped: REASON` or `error: MESSAGE`; the largest memory of the
        process in bytes, and further facts."""
        self._add("end", step=step, ended=how, memory=peak_memory(), **facts)

    @contextmanager
    def kept(
        self,
        progress: Callable[[], tuple[int, str]],
        permit: Callable[[], None],
        facts: Callable[[], dict[str, Any]] = dict,
    ) -> Iterator[None]:
        """Context of a session after `start`; records its end.

        Args:
            progress: returns the step, and the reason why the run was stopped (empty: it was not).
            permit: raises where this program may no longer write into the run.
            facts: returns further facts about the end.
        """
        ended = "finished"
        try:
            yield
            if stopped := progress()[1]:
                ended = f"stopped: {stopped}"
        except Stopped as stop:
            ended = f"stopped: {stop}"
            raise
        except BaseException as error:
            ended = f"error: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            raise
        finally:
            with suppress(RamifyError, OSError):  # must not hide the error that ended the run
                permit()
                self.end(progress()[0], ended, **facts())

    def lines(self) -> list[dict[str, Any]]:
        """All lines, oldest first."""
        if not self._path.exists():
            return []
        return [line for line in json_lines(self._path.read_bytes()) if "kind" in line]

    @property
    def had_checkpoint(self) -> bool:
        """Whether the run ever had one."""
        return any(line["kind"] == "checkpoint" for line in self.lines())

    def _add(self, kind: str, **facts: Any) -> None:
        line = {"kind": kind, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())} | facts
        with writing(self._path, *after_failure(self._path.parent)), self._path.open("a+b") as file:
            file.seek(0, os.SEEK_END)
            if file.tell() and (file.seek(-1, os.SEEK_END), file.read())[1] != b"\n":
                file.write(b"\n")  # ends an incomplete line of a killed program
            file.write(json.dumps(line).encode() + b"\n")


def _working_directory() -> str | None:
    """Where relative paths of the recipe begin; None once it was removed."""
    with suppress(OSError):
        return os.getcwd()
    return None
