"""Starts the ranks of a case on this machine, as torchrun does, and returns their results."""

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ramify.errors import RamifyError
from ramify.files import read_json
from ramify.parallel.startup.secret import VARIABLE

POLL = 0.05
"""Seconds between checks of the ranks."""


def spawn(verb: str, content: dict[str, Any], ranks: int, *, threads: int = 1, limit: float = 600.0) -> dict[str, Any]:
    """Runs `ramify bench VERB` in `ranks` new processes and returns the result that rank zero writes.

    Args:
        verb: hidden command that reads a file and writes one.
        content: content of the file to read.
        ranks: number of processes.
        threads: number of threads per process.
        limit: time limit in seconds.

    Raises:
        RamifyError: a process failed, with the end of its output, or the time limit was exceeded.
    """
    with tempfile.TemporaryDirectory(prefix="ramify-bench-") as name:
        folder = Path(name)
        (folder / "case.json").write_text(json.dumps(content), encoding="utf-8")
        rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), VARIABLE: secrets.token_hex(16)}
        processes = [_start(verb, folder, rank, ranks, threads, rendezvous) for rank in range(ranks)]
        try:
            _wait(processes, folder, time.monotonic() + limit, limit)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        return dict(read_json(folder / "found.json"))


def _start(
    verb: str, folder: Path, rank: int, ranks: int, threads: int, rendezvous: dict[str, str]
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ramify", "bench", verb, str(folder / "case.json"), str(folder / "found.json")]
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    env = os.environ | rendezvous | {key: str(value) for key, value in (place | {"OMP_NUM_THREADS": threads}).items()}
    with (folder / f"output-{rank}").open("wb") as output:
        return subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.STDOUT)


def _wait(processes: list[subprocess.Popen[bytes]], folder: Path, deadline: float, limit: float) -> None:
    """Waits until all processes have ended successfully."""
    while True:
        ended = [process.poll() for process in processes]
        failed = [rank for rank, status in enumerate(ended) if status]
        if failed:
            output = (folder / f"output-{failed[0]}").read_text(encoding="utf-8", errors="replace")
            raise RamifyError(
                f"rank {failed[0]} of {len(processes)} ended with status {ended[failed[0]]}:\n{output[-2000:]}"
            )
        if all(status == 0 for status in ended):
            return
        if time.monotonic() > deadline:
            raise RamifyError(
                f"{len(processes)} ranks took longer than {limit:g} s", fix="use fewer --steps or a smaller --batch"
            )
        time.sleep(POLL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
