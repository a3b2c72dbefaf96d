"""Ranks as separate processes on this machine, connected by Gloo."""

import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

from ramify.parallel.startup.launch import LaunchEnv

PRELOADED = ["tests.processes.preloaded"]
"""Of the server that all ranks are forked from."""


def free_port() -> int:
    """An unused port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_world(world: int, work: Callable[..., Any], *args: Any, limit: float = 120.0) -> list[Any]:
    """The result of `work(rank, *args)` on each of `world` connected processes; `work` must be importable.

    Raises:
        AssertionError: a process failed, with its traceback, or they took longer than `limit` seconds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    os.environ["OMP_NUM_THREADS"] = "1"  # of the server, and so of all ranks
    port, pipes, processes = free_port(), [], []
    for rank in range(world):
        ours, theirs = context.Pipe(duplex=False)
        site = LaunchEnv(rank, world, rank, "127.0.0.1", port, "a test")
        processes.append(context.Process(target=_rank, args=(theirs, site, work, args), daemon=True))
        processes[-1].start()
        theirs.close()
        pipes.append(ours)
    try:
        return _collect(pipes, time.monotonic() + limit)
    finally:
        for process in processes:
            process.join(timeout=5)
            if process.is_alive():
                process.kill()


def _collect(pipes: list[Connection], deadline: float) -> list[Any]:
    """Results by rank; the first failure ends the waiting, since the others may then hang for good."""
    results: dict[int, Any] = {}
    while len(results) < len(pipes):
        missing = [rank for rank in range(len(pipes)) if rank not in results]
        ready = wait([pipes[rank] for rank in missing], timeout=max(0.0, deadline - time.monotonic()))
        assert ready, f"rank {', '.join(map(str, missing))} of {len(pipes)} did not finish in time"
        for rank in missing:
            if pipes[rank] in ready:
                try:
                    failure, results[rank] = pipes[rank].recv()
                except EOFError:
                    failure = "the process ended"
                assert failure is None, f"rank {rank} of {len(pipes)} failed: {failure}"
    return [results[rank] for rank in range(len(pipes))]


def _rank(pipe: Connection, site: LaunchEnv, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    import torch

    from ramify.parallel.startup.rendezvous import connect

    torch.set_num_threads(1)
    try:
        with connect(site, torch.device("cpu"), 60.0):
            result = work(site.rank, *args)
        pipe.send((None, result))
    except BaseException:
        pipe.send((traceback.format_exc(), None))
