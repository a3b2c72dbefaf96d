"""The parts of the data benchmark: reading speed of stores, and limits of the machine."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from benchmarks.data.local_limits import (
    copy_bandwidth,
    drop_from_cache,
    file_bandwidth,
    read_seconds,
    timed,
    write_seconds,
)
from benchmarks.data.rates import BATCH, draws, rate
from benchmarks.data.stores import Kind, column_bytes, make_store
from benchmarks.data.waiting import serve_consumers, step_waits

from ramify.batches.batch import Batch, BatchPart
from ramify.errors import RamifyError
from ramify.neighbors.edges import find_edges
from ramify.store.convert import convert_store
from ramify.store.manifest import read_manifest
from ramify.store.store import Store

CUTOFF = 5.0
"""Å."""
MAX_NEIGHBORS = 20
OF_SUCCESSORS = 544_000_000
"""Number of structures in the largest trainings of this kind, for extrapolation."""

SOCKETS = {"MPIR_CVAR_NOLOCAL": "1", "UCX_TLS": "tcp,self"}
"""Makes MPICH treat every rank as a separate node and use TCP only."""

ROOT = Path(__file__).parents[2]
"""Folder from which child processes import this package."""

Result = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataBench:
    """Options of the data benchmark.

    Attributes:
        folder: folder for the stores, which are removed at the end.
        structures: number of molecules in the store that batches are drawn from; a second store has a quarter as many
            crystals.
        large: number of structures in the store of the part `scale`.
        ranks: numbers of processes in the part `distributed`.
        seconds: duration of a measurement in the part `waiting`.
        width: width of the encoder in the part `waiting`.
        steps: number of steps in the part `waiting`.
        turns: number of repetitions for files, since single rates differ by a third.
        file_bytes: size of the file for the limits of the machine.
        say: called with the name of each part at its start.
    """

    folder: Path
    structures: int = 1_000_000
    large: int = 24_000_000
    ranks: Sequence[int] = (2, 4)
    seconds: float = 5.0
    width: int = 866
    steps: int = 8
    turns: int = 7
    file_bytes: int = 1 << 30
    say: Callable[[str], None] = lambda text: None

    def run(self, parts: Sequence[str]) -> Result:
        """Measures `parts`, a selection of `PARTS`, and the limits of the machine.

        Raises:
            RamifyError: there is no such part, or a package that it needs is not installed.
        """
        if unknown := sorted(set(parts) - set(PARTS)):
            raise RamifyError(f"{', '.join(unknown)} is not a part of the benchmark; accepted: {', '.join(PARTS)}")
        self.folder.mkdir(parents=True, exist_ok=True)
        made = self.folder / "bench-data"
        made.mkdir()
        try:
            self.say("the machine itself")
            result: Result = {"machine": _machine(made, self.file_bytes)}
            for part in parts:
                self.say(part)
                result[part] = PARTS[part](self)
        finally:
            shutil.rmtree(made, ignore_errors=True)
        return result

    def store(self, kind: Kind) -> Path:
        """A store of molecules or crystals, made at the first call."""
        path = self.folder / "bench-data" / kind
        if not path.exists():
            self.say(f"making a store of {kind}")
            make_store(path, kind, self.structures if kind == "molecules" else max(BATCH, self.structures // 4))
        return path


def _machine(folder: Path, size: int) -> Result:
    return {
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "copy_gb_s": copy_bandwidth(),
        "file_gb_s": file_bandwidth(folder, size),
    }


def mapped(bench: DataBench) -> Result:
    """Random batches from a mapped store, by one thread: structures alone, with edges, and as tensors."""
    return {kind: _batches(bench.store(kind)) for kind in ("molecules", "crystals")}


def _batches(path: Path) -> Result:
    with Store.open(path) as store:
        for start in range(0, len(store), 1 << 16):  # checksums are verified at the first read
            store.take(np.arange(start, min(start + (1 << 16), len(store))))
        rows = draws(len(store))

        def batch(max_neighbors: int | None) -> Batch:
            structures = store.take(next(rows))
            edges = find_edges(structures, CUTOFF, max_neighbors)
            return Batch.make([BatchPart("bench", "bench", structures, edges, store.references)])

        example = batch(None)
        return {
            "structures": len(store),
            "bytes": column_bytes(store.manifest),
            "atoms_per_structure": store.manifest.atoms / len(store),
            "edges_per_atom": len(example.receiver) / len(example.numbers),
            "without_edges": rate(lambda: store.take(next(rows))),
            "with_edges": rate(lambda: find_edges(store.take(next(rows)), CUTOFF)),
            "with_edges_of_max_neighbors": rate(lambda: find_edges(store.take(next(rows)), CUTOFF, MAX_NEIGHBORS)),
            "as_tensors": rate(lambda: batch(None)),
            "as_tensors_of_max_neighbors": rate(lambda: batch(MAX_NEIGHBORS)),
        }


def adios(bench: DataBench) -> Result:
    """Converts a store to one ADIOS2 file, reads it into shared memory, converts it back and compares the result.

    Each is measured several times, alternating with plain writing (to the disk, as in a conversion) and reading
    (uncached) of the same number of bytes; ratios are those within one repetition.
    """
    source, made = bench.store("molecules"), bench.folder / "bench-data"
    target, back, plain = made / "adios", made / "back", made / "plain"
    convert_store(source, "adios", target)
    convert_store(target, "mapped", back)
    identical = all((back / file.name).read_bytes() == file.read_bytes() for file in sorted(source.iterdir()))
    shutil.rmtree(back)
    size = column_bytes(read_manifest(source))
    turns = [_turn(source, target, plain, size) for _ in range(bench.turns)]
    pairs = {
        "convert_over_machine": ("convert", "machine_write"),
        "bulk_read_over_machine": ("bulk_read", "machine_read_into_fresh_memory"),
        "bulk_read_over_machine_without_keeping": ("bulk_read", "machine_read"),
        "preload_of_mapped_over_machine": ("preload_of_mapped", "machine_read_into_fresh_memory"),
    }
    return {
        "bytes": size,
        "back_bit_identical": identical,
        **{f"{name}_gb_s": median(turn[name] for turn in turns) for name in turns[0]},
        **{name: median(turn[ours] / turn[limit] for turn in turns) for name, (ours, limit) in pairs.items()},
        "turns": turns,
    }


def _turn(source: Path, target: Path, plain: Path, size: int) -> dict[str, float]:
    """GB/s of one repetition; each file is removed just before it is written, so that both have the same free
    memory."""
    writing = write_seconds(plain, size)
    shutil.rmtree(target)
    seconds = {
        "machine_write": writing,
        "convert": timed(lambda: convert_store(source, "adios", target)),
        "machine_read": read_seconds(plain, fresh=False),
        "machine_read_into_fresh_memory": read_seconds(plain, fresh=True),
        "bulk_read": _open_seconds(target, preload=False),
        "preload_of_mapped": _open_seconds(source, preload=True),
    }
    written = plain.stat().st_size
    return {name: (written if name.startswith("machine") else size) / took / 1e9 for name, took in seconds.items()}


def _open_seconds(path: Path, *, preload: bool) -> float:
    """Seconds to read all columns of an uncached store into shared memory and check them."""
    drop_from_cache(path)
    opened = []
    took = timed(lambda: opened.append(Store.open(path, preload=preload)))
    opened[0].close()
    return took


def distributed(bench: DataBench) -> Result:
    """The distributed store on one node: random batches on every rank, and the memory of each."""
    mpiexec = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if mpiexec is None:
        raise RamifyError("the part `distributed` needs mpiexec", fix="pip install mpich, or load the system's MPI")
    path = bench.store("molecules")
    found = {}
    layouts: list[tuple[str, int, dict[str, str]]] = [(str(ranks), ranks, {}) for ranks in bench.ranks]
    for name, ranks, environment in [*layouts, ("2 over sockets", 2, SOCKETS)]:
        command = [mpiexec, "-n", str(ranks), sys.executable, "-m", "benchmarks.data.ranks", str(path)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=1800, env=_environment() | environment)
        if ended.returncode:
            raise RamifyError(f"the benchmark on {name} ranks failed: {ended.stderr.strip()[-2000:]}")
        found[name] = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    return found


def waiting(bench: DataBench) -> Result:
    """Waiting time for data in real steps, and in a consumer that only sleeps."""
    path = bench.store("molecules")
    return {
        "consumer": serve_consumers(path, (1, 2), bench.seconds),
        "step": step_waits(path, bench.steps, bench.width),
    }


def scale(bench: DataBench) -> Result:
    """A store of the size in the paper: opening, memory, batches, and the order of an epoch."""
    path = bench.folder / "bench-data" / "large"
    begun = time.perf_counter()
    make_store(path, "molecules", bench.large)
    made = time.perf_counter() - begun
    drop_from_cache(path)
    command = [sys.executable, "-m", "benchmarks.data.large", str(path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=3600, env=_environment())
    if ended.returncode:
        raise RamifyError(f"the benchmark of a large store failed: {ended.stderr.strip()[-2000:]}")
    opened: Result = json.loads(ended.stdout)
    times = OF_SUCCESSORS / bench.large
    grows = ("open_cold_s", "open_warm_s", "private_bytes_of_index", "shared_bytes_of_index")
    return {
        "structures": bench.large,
        "bytes": column_bytes(read_manifest(path)),
        "make_s": made,
        **opened,
        f"extrapolated_to_{OF_SUCCESSORS}": {key: opened[key] * times for key in grows},
    }


def _environment() -> dict[str, str]:
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}


PARTS: dict[str, Callable[[DataBench], Result]] = {
    "mapped": mapped,
    "adios": adios,
    "distributed": distributed,
    "waiting": waiting,
    "scale": scale,
}
"""The parts by name."""
