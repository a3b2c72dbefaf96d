"""Programs as forks of a process that has loaded the libraries, which takes longer than most tests."""

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from tests.processes.worlds import PRELOADED


@dataclass
class Forked:
    """`ramify` in a process of its own."""

    pid: int
    status: int | None = field(default=None)

    def poll(self) -> int | None:
        """The exit status; None while it runs."""
        if self.status is None:
            ended, found = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(found) if ended else None
        return self.status

    def stop(self) -> None:
        """Sends SIGTERM to its process group."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGTERM)


def start(words: Sequence[str], log: Path, slot: int = 0, name: str = "") -> Forked:
    """Starts `ramify` with these words and appends its output to a file; in place of `Launcher.start`."""
    sys.stdout.flush()  # the fork would write it as well
    pid = os.fork()
    if not pid:
        end(lambda: _in_fork(words, log))
    return Forked(pid)


def _in_fork(words: Sequence[str], log: Path) -> int:
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # the parent may have redirected them
    return run_ramify(words)


def end(work: Callable[[], int]) -> NoReturn:
    """Ends this process with the status that `work` returns; 1 after an exception."""
    status = 1
    try:
        status = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def run_ramify(words: Sequence[str]) -> int:
    """The exit status of `ramify` with these words, in this process."""
    import torch

    from ramify import cli

    torch.set_num_threads(1)
    sys.argv = ["ramify", *words]
    try:
        cli.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def apart(work: Callable[..., None], *arguments: Any) -> None:
    """Calls an importable function in a process of its own, which must succeed; `Launcher` forks it there.

    The process is not a daemon, which could not have children; the limit of a test ends it.
    """
    os.environ["OMP_NUM_THREADS"] = "1"  # of the server, and so of all processes
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=call, args=(work, *arguments))
    process.start()
    try:
        process.join()
    finally:
        process.kill()
    assert process.exitcode == 0


def call(work: Callable[..., None], *arguments: Any) -> None:
    """Calls a function in this process, whose `Launcher` forks it from then on."""
    import torch

    from ramify.run.launcher import Launcher

    torch.set_num_threads(1)
    Launcher.start = lambda self, words, log, *, slot, name: start(words, log)  # type: ignore[method-assign, assignment, return-value]
    work(*arguments)
