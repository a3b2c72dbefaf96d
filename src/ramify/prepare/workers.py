"""Processes that share work out among themselves: on this machine, or over MPI on many. Results come in order."""

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
"""Tasks for each worker that may be under way or done and waiting: bounds the memory."""


class Served(Exception):
    """This process has worked for another one, which is through now: there is nothing left to do."""


class Workers:
    """Does tasks in order of their results, with `count` processes; in this process if there is one.

    Args:
        executor: hands tasks to processes; None does them here.
        count: of processes.
    """

    def __init__(self, executor: Executor | None = None, count: int = 1) -> None:
        self._executor, self.count = executor, count

    @property
    def alone(self) -> bool:
        """Whether this process does all the work."""
        return self._executor is None

    def results(self, work: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        """`work` of every task, in the order of the tasks; whatever a task raises is raised in its turn."""
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
        """Begins a task; the result is there when it is called for."""
        if self._executor is None:
            return lambda: work(task)
        return self._executor.submit(work, task).result


@contextmanager
def start_workers(count: int | Literal["mpi"]) -> Iterator[Workers]:
    """Workers for the time of the block.

    Args:
        count: how many processes; `mpi` for those that mpiexec or srun started: rank 0 leads, the others work for it.

    Raises:
        Served: on all other ranks, once rank 0 is through.
        RamifyError: `mpi`, but there is only this process.
    """
    if count == "mpi":
        with _mpi_workers() as workers:
            yield workers
    elif count == 1:
        yield Workers()
    else:
        context = multiprocessing.get_context("spawn")  # forking would copy threads' locks
        executor = ProcessPoolExecutor(count, mp_context=context, initializer=_end_with_parent)
        try:
            yield Workers(executor, count)
        finally:
            executor.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Lets a worker end when whoever started it ends, however that happens."""
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
            fix="start it on several, e.g. `mpiexec -n 8 ramify prepare RECIPE --workers mpi`",
        )
    executor: Any
    with MPICommExecutor(MPI.COMM_WORLD) as executor:
        if executor is not None:
            yield Workers(executor, executor.num_workers)
    if executor is None:
        raise Served
