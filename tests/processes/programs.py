"""`ramify ...` on several ranks, as a launcher starts it: processes of their own that may be stopped and killed."""

import multiprocessing
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.processes.forked import end, run_ramify
from tests.processes.worlds import PRELOADED, free_port


@dataclass(frozen=True)
class Done:
    """Exit statuses of the ranks of a program (minus the number of a signal that ended one), and the output of each,
    both streams."""

    statuses: list[int]
    said: list[str]


class Program:
    """A running program.

    Args:
        folder: for files with the output of the ranks.
        world: number of ranks.
        words: arguments after `ramify`.
        at: `{"rank": 1, "step": 7, "signal": 15}`: that rank sends itself a signal during that step.
        first: Python code that every rank executes first.
        env: further variables.

    Attributes:
        outputs: files with the output of each rank.
    """

    def __init__(
        self,
        folder: Path,
        world: int,
        *words: object,
        at: dict[str, int] | None = None,
        first: str = "",
        **env: str,
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        port = str(free_port())
        os.environ["OMP_NUM_THREADS"] = "1"  # of the server, and so of all ranks
        self.outputs, self.ranks = [], []
        for rank in range(world):
            self.outputs.append(folder / f"said-{port}-{rank}")
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1"}
            environ = env | ({n: str(v) for n, v in place.items()} | {"MASTER_PORT": port} if world > 1 else {})
            hit = at if at is not None and at["rank"] == rank else None
            arguments = (self.outputs[-1], [str(word) for word in words], environ, hit, first)
            self.ranks.append(context.Process(target=_rank, args=arguments, daemon=True))
            self.ranks[-1].start()

    def kill(self, number: int, rank: int | None = None) -> None:
        """Sends a signal to one rank or to all."""
        for process in self.ranks if rank is None else [self.ranks[rank]]:
            if process.is_alive():
                os.kill(int(process.pid or 0), number)

    def wait(self, limit: float = 120.0) -> Done:
        """Waits for all ranks; those that are not done in time are killed."""
        deadline = time.monotonic() + limit
        for process in self.ranks:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.exitcode is None:
                process.kill()
                process.join()
        return Done([int(p.exitcode or 0) for p in self.ranks], [path.read_text() for path in self.outputs])


def run(folder: Path, world: int, *words: object, **options: Any) -> Done:
    """A program from its start to its end; see `Program`."""
    return Program(folder, world, *words, **options).wait()


def _rank(output: Path, words: list[str], environ: dict[str, str], at: dict[str, int] | None, first: str) -> None:
    """The program of a rank; ends the process with the exit status of the command line."""
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(handle, stream)
    os.environ.update(environ)
    end(lambda: _run(words, at, first))


def _run(words: list[str], at: dict[str, int] | None, first: str) -> int:
    exec(first, {})
    if at is not None:
        _signal_at(at["step"], at["signal"])
    return run_ramify(words)


def _signal_at(step: int, number: int) -> None:
    """Makes this process send itself a signal during step `step` (from 1)."""
    from ramify.train.loop import Trainer

    take = Trainer.step

    def signalled(trainer: Trainer, *arguments: Any) -> Any:
        if trainer.progress.step == step - 1:
            os.kill(os.getpid(), number)
        return take(trainer, *arguments)

    Trainer.step = signalled  # type: ignore[method-assign]


TERM, USR1, KILL = int(signal.SIGTERM), int(signal.SIGUSR1), int(signal.SIGKILL)
