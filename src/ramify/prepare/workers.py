"""Pool of worker processes, on this machine or over MPI on several, with results in order."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

from ramify.errors import RamifyError

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 2
"""Maximum number of tasks per worker in progress or waiting, which bounds the memory."""


class Served(Exception):
    """Raised in worker processes of MPI when rank zero has finished."""


class Workers:
    """Executes tasks with `count` processes and yields results in order; a single process executes them itself.

    Args:
        executor: executor of tasks; None for this process.
        count: number of processes.
    """

    def __init__(self, executor: Executor | None = None, count: int = 1) -> None:
        self._executor, self.count = executor, count

    @property
    def alone(self) -> bool:
        """Whether this process executes all tasks."""
        return self._executor is None

    def results(self, work: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        """Yields `work(task)` for all tasks in order; an exception is raised in place of its result."""
        if self._executor is None:
            yield from map(work, tasks)
            return
        under_way: deque[Future[R]] = deque()
        try:
            for task in tasks:
                if len(under_way) == AHEAD * self.count:
                    yield under_way.popleft().result()
                under_way.append(self._executor.submit(work, task))
            while under_way:
                yield under_way.popleft().result()
        finally:
            for future in under_way:
                future.cancel()

    def submit(self, work: Callable[[T], R], task: T) -> Callable[[], R]:
        """Starts a task; returns a function that waits for the result."""
        if self._executor is None:
            return lambda: work(task)
        return self._executor.submit(work, task).result


@contextmanager
def start_workers(count: int | Literal["mpi"]) -> Iterator[Workers]:
    """Starts workers for the duration of the block.

    Args:
        count: number of processes; `mpi` for those started by mpiexec or srun: rank zero distributes the tasks.

    Raises:
        Served: on all other ranks, when rank zero has finished.
        RamifyError: `mpi` with only one process.
    """
    if count == "mpi":
        with _mpi_workers() as workers:
            yield workers
    elif count == 1:
        yield Workers()
    else:
        context = multiprocessing.get_context("spawn")  # fork would copy locks held by threads
        executor = ProcessPoolExecutor(count, mp_context=context, initializer=_end_with_parent)
        try:
            yield Workers(executor, count)
        finally:
            executor.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Terminates a worker when its parent process ends for any reason."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="ramify-parent", daemon=True).start()


@contextmanager
def _mpi_workers() -> Iterator[Workers]:
    try:
        from mpi4py import MPI
        from mpi4py.futures import MPICommExecutor
    except (ImportError, RuntimeError) as error:
        raise RamifyError(
            f"--workers mpi needs mpi4py and an MPI library ({error})",
            fix="pip install 'ramify[scale]'; without an MPI of the system, pip install mpich too",
        ) from None
    if MPI.COMM_WORLD.size < 2:
        raise RamifyError(
            "--workers mpi: MPI sees one process, so there are no workers",
            fix="start several processes, e.g. `mpiexec -n 8 ramify prepare RECIPE --workers mpi`",
        )
    executor: Any
    with MPICommExecutor(MPI.COMM_WORLD) as executor:
        if executor is not None:
            yield Workers(executor, executor.num_workers)
    if executor is None:
        raise Served
