"""Preparing in parallel: the same bytes for any number of readers, and no process is left behind."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ase.io import write

from ramify.errors import RamifyError
from ramify.minicorpora import FILES
from ramify.prepare import read
from ramify.prepare.prepare import prepare_dataset
from ramify.prepare.workers import Workers, start_workers
from ramify.sources.base import DatasetOptions
from ramify.sources.formats import formats
from tests.small import files_of

SMALL_PARTS = """
from ramify.sources.parsing import hdf5
from ramify.sources.formats.materials import mptrj
hdf5.PART_ATOMS, mptrj.PART_BYTES, hdf5.PART_MOLECULES = 400, 20_000, 3
"""
"""Makes several parts of the embedded corpora, each of which is far below the size of one."""


def entries(folder: Path) -> dict[str, DatasetOptions]:
    """Formats that divide their files into parts, and one that does not, with two files; all with dropped records."""
    from ase.build import molecule

    images = []
    for k in range(40):
        atoms = molecule(("H2O", "CH4", "NH3", "C2H6")[k % 4])
        atoms.rattle(0.05, seed=k)
        atoms.info = {"energy": -10.0 * len(atoms) + 0.01 * k, "group": f"g{k // 2}"}
        images.append(atoms)
    images[7].info.pop("energy")
    write(folder / "a.xyz", images[:20], format="extxyz")
    write(folder / "b.xyz", images[20:], format="extxyz")
    keys = {
        "ani1x": {"format": "ani1x", "path": str(FILES["ani1x_mini"]), "gates": {"max_force": 5.0}},
        "qm7x": {"format": "qm7x", "path": str(FILES["qm7x_mini"]), "labels": "pbe0", "gates": {"max_force": 5.0}},
        "transition1x": {"format": "transition1x", "path": str(FILES["transition1x_mini"]), "every": 2},
        "mptrj": {"format": "mptrj", "path": str(FILES["mptrj_mini"]), "gates": {"max_force": 2.0}},
        "own": {"format": "extxyz", "path": str(folder / "*.xyz"), "group_key": "group"},
    }
    return {name: formats()[str(k["format"])].options.model_validate(k) for name, k in keys.items()}


def prepare(folder: Path, stores: str, workers: Workers) -> dict[str, bytes]:
    for name, options in entries(folder).items():
        prepare_dataset(name, options, folder / stores, base=folder, workers=workers)
    return files_of(folder / stores)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ramify.sources.parsing.hdf5.PART_ATOMS", 400)
    monkeypatch.setattr("ramify.sources.formats.materials.mptrj.PART_BYTES", 20_000)
    monkeypatch.setattr("ramify.sources.parsing.hdf5.PART_MOLECULES", 3)


def test_any_number_of_workers_makes_the_same_bytes(tmp_path: Path, small_parts: None) -> None:
    expected = prepare(tmp_path, "alone", Workers())
    options = entries(tmp_path)
    parts = {n: len(list(read.cut(n, o, Path(str(o.path)), n, 0))) for n, o in options.items() if n != "own"}
    assert min(parts.values()) > 3
    assert all(f"{name}/quarantine.jsonl" in expected for name in options)
    with start_workers(3) as workers:  # the parts are cut here, so they are small there too
        assert prepare(tmp_path, "three", workers) == expected


@pytest.mark.slow
def test_over_mpi(tmp_path: Path, small_parts: None) -> None:
    mpiexec = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if mpiexec is None:
        pytest.skip("no mpiexec: pip install mpich")
    expected = prepare(tmp_path, "alone", Workers())
    code = f"""{SMALL_PARTS}
from pathlib import Path
from tests.prepare.test_workers import prepare
from ramify.prepare.workers import Served, start_workers
try:
    with start_workers("mpi") as workers:
        print("workers", workers.count, flush=True)
        prepare(Path({str(tmp_path)!r}), "mpi", workers)
except Served:
    print("served", flush=True)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in (os.getcwd(), *sys.path) if p)}
    command = [mpiexec, "-n", "3", sys.executable, "-c", code]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    # ranks that end together may put their lines into each other's
    assert sorted(re.findall(r"served|workers \d+", ended.stdout)) == ["served", "served", "workers 2"]
    assert files_of(tmp_path / "mpi") == expected


def test_what_goes_wrong_in_a_worker_is_told_here(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_text("3\nnothing\nH 0 0 0\n")
    options = formats()["extxyz"].options.model_validate({"format": "extxyz", "path": str(tmp_path / "a.xyz")})
    with start_workers(2) as workers, pytest.raises(RamifyError, match=r"a\.xyz is truncated.*\n  fix: compare"):
        prepare_dataset("d", options, tmp_path / "stores", base=tmp_path, workers=workers)
    assert not list((tmp_path / "stores").iterdir())


def test_results_come_in_order_and_not_too_far_ahead() -> None:
    taken = []

    def tasks() -> Iterator[float]:  # the first takes longest
        for k in range(12):
            taken.append(k)
            yield 0.3 if k == 0 else 0.0

    with start_workers(2) as workers:
        results = workers.results(time.sleep, tasks())
        next(results)
        assert len(taken) <= 2 * 2 + 1
        assert len(list(results)) == 11
        assert list(workers.results(abs, range(-9, 0))) == list(range(9, 0, -1))


def test_mpi_needs_several_processes() -> None:
    code = """
from ramify.prepare.workers import start_workers
with start_workers("mpi"):
    pass
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert "MPI sees one process, so there are no workers\n  fix: start several processes" in ended.stderr


def test_workers_end_when_their_master_is_killed() -> None:
    code = """
import os, time
from ramify.prepare.workers import start_workers
if __name__ == "__main__":
    with start_workers(2) as workers:
        for pid in workers.results(os.getpgid, [0, 0]):
            pass
        print(*workers._executor._processes, flush=True)
        time.sleep(60)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    master = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
    assert master.stdout is not None
    children = [int(pid) for pid in master.stdout.readline().split()]
    assert len(children) == 2
    master.send_signal(signal.SIGKILL)
    master.wait(timeout=10)
    master.stdout.close()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in children):
        assert time.monotonic() < deadline, "a worker is still there"
        time.sleep(0.1)
