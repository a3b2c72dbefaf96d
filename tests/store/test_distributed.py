"""The distributed store under mpiexec: the same structures as the mapped one, to the bit, on any number of ranks."""

import os
import re
import shutil
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramify.minicorpora import FILES
from ramify.prepare.prepare import prepare_dataset
from ramify.sources.formats import formats
from ramify.store.columns import COLUMNS
from ramify.store.convert import convert_store
from ramify.store.row_index import STRIDE, RowIndex
from ramify.store.shared.node_memory import PREFIX
from ramify.store.shared.records import pack, record_words, unpack
from ramify.store.storage import TAKEN
from ramify.store.store import Store
from tests.small import flip_byte

PROGRAM = Path(__file__).with_name("mpi_program.py")
SOCKETS = {"MPIR_CVAR_NOLOCAL": "1", "UCX_TLS": "tcp,self"}
"""MPICH then takes every rank for a node of its own, and its transport uses nothing but TCP."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Crystals, some left out; not to be changed."""
    keys = {"format": "mptrj", "path": str(FILES["mptrj_mini"]), "gates": {"max_force": 2.0}}
    stores = tmp_path_factory.mktemp("stores")
    prepare_dataset("crystals", formats()["mptrj"].options.model_validate(keys), stores, base=Path())
    return stores / "crystals"


def mpiexec() -> str:
    found = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip("no mpiexec: pip install mpich")
    return found


def start(ranks: int, *arguments: object, **environment: str) -> subprocess.Popen[str]:
    command = [mpiexec(), "-n", str(ranks), sys.executable, str(PROGRAM), *map(str, arguments)]
    paths = os.pathsep.join(p for p in sys.path if p)
    return subprocess.Popen(
        command,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def said(ranks: int, *arguments: object, **environment: str) -> list[str]:
    """The output of every rank, in the order of ranks."""
    process = start(ranks, *arguments, **environment)
    try:
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, output
    return sorted(line for line in output.splitlines() if line[:1].isdigit())


def shares(lines: list[str], answers: bool) -> list[int]:
    """The numbers of structures that the ranks hold, from their output."""
    pattern = rf"(\d+): holds (\d+) of \d+ answers {answers}"
    found = [match for line in lines if (match := re.fullmatch(pattern, line))]
    assert [int(match[1]) for match in found] == list(range(len(lines)))
    return [int(match[2]) for match in found]


def kept(store: Path) -> int:
    with Store.open(store) as whole:
        return len(whole)


@pytest.mark.parametrize(("ranks", "width", "copies"), [(1, None, 1), (2, None, 1), (4, 2, 2), (3, 1, 3)])
def test_every_rank_reads_every_structure(store: Path, ranks: int, width: int | None, copies: int) -> None:
    """`copies` groups of ranks hold the dataset, in shares that differ by one block at most."""
    held = shares(said(ranks, "same", store, *([] if width is None else [width])), answers=False)
    assert len(held) == ranks
    assert sum(held) == copies * kept(store)
    assert max(held) - min(held) <= 32


def test_from_adios_and_over_sockets(store: Path, tmp_path: Path) -> None:
    """As on two nodes. Reads need the helper thread."""
    converted = convert_store(store, "adios", tmp_path / "crystals")
    assert sum(shares(said(2, "same", converted, **SOCKETS), answers=True)) == kept(store)
    assert said(2, "busy", store, **SOCKETS) == ["0: read while the other was busy"]


def test_stores_shared_by_different_ranks(store: Path) -> None:
    assert said(3, "some", store) == ["0: shared 1", "1: shared 2", "2: shared 1"]


def test_more_ranks_than_there_is_to_hold(tmp_path: Path) -> None:
    """12 structures: some ranks hold none."""
    from ase.build import molecule
    from ase.io import write

    images = []
    for k in range(12):
        atoms = molecule("H2O")
        atoms.rattle(0.05, seed=k)
        atoms.info = {"energy": -10.0 + 0.01 * k, "group": f"g{k // 2}"}
        images.append(atoms)
    write(tmp_path / "few.xyz", images, format="extxyz")
    keys = {"format": "extxyz", "path": str(tmp_path / "few.xyz"), "group_key": "group"}
    prepare_dataset("few", formats()["extxyz"].options.model_validate(keys), tmp_path / "stores", base=Path())
    for environment in ({}, SOCKETS):
        lines = said(4, "same", tmp_path / "stores" / "few", **environment)
        assert sum(int(line.split()[2]) for line in lines) == 12
        assert "holds 0 of 12" in " ".join(lines)


def test_damage_in_one_share_is_told_by_all(store: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(store, tmp_path / "copy"))
    flip_byte(copy / "forces.npy")
    first, second = said(2, "refused", copy)
    assert "forces.npy: damaged" in first
    assert "forces.npy: damaged" in second
    (copy / "forces.npy").unlink()
    assert all("forces.npy: damaged or missing" in line for line in said(2, "refused", copy))


def test_a_rank_that_is_killed_takes_the_others_along(store: Path, tmp_path: Path) -> None:
    process = start(3, "killed", store, RAMIFY_SHARED_MEMORY=str(tmp_path))
    try:
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode != 0
    assert output.count("reads") == 3
    time.sleep(0.5)
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(store) not in running
    assert not list(tmp_path.glob(f"{PREFIX}*"))


def alone(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(p for p in sys.path if p)
    command = [sys.executable, "-c", f"from ramify.store.shared.distributed import open_distributed\n{code}"]
    return subprocess.run(
        command, env=os.environ | {"PYTHONPATH": paths} | environment, capture_output=True, text=True, timeout=60
    )


def test_what_does_not_have_mpi_is_told(store: Path) -> None:
    ended = alone(f"open_distributed({str(store)!r})", WORLD_SIZE="2")
    assert "needs MPI, which sees 1 of 2 processes\n  fix: start with mpiexec or srun" in ended.stderr
    ended = alone(f"import sys; sys.modules['mpi4py'] = None; open_distributed({str(store)!r})")
    assert "needs mpi4py and an MPI library" in ended.stderr
    assert "fix: pip install 'ramify[scale]'" in ended.stderr


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=20), st.integers(0, 2**32 - 1))
def test_records_hold_everything(sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    n_atoms = np.array(sizes)
    columns = {}
    for name, kind in COLUMNS.items():
        shape = kind.shape(len(sizes), int(n_atoms.sum()))
        noise = rng.integers(0, 2 if kind.dtype == "|b1" else 255, (*shape, np.dtype(kind.dtype).itemsize), np.uint8)
        columns[name] = noise.view(kind.dtype)[..., 0]
    columns["n_atoms"] = n_atoms
    words = record_words(n_atoms)
    at = np.cumsum(words) - words
    memory = np.zeros(words.sum(), np.uint32)
    pack(columns, memory, at)
    order = rng.permutation(len(sizes))
    found = unpack(memory, at[order], n_atoms[order], TAKEN)
    starts = np.cumsum(n_atoms) - n_atoms
    atoms = np.concatenate([np.arange(starts[k], starts[k] + n_atoms[k]) for k in order])
    assert set(found) == set(COLUMNS) - {"n_atoms"}
    for name, values in found.items():
        expected = columns[name][atoms if COLUMNS[name].per_atom else order]
        assert (values.dtype, values.shape, values.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=5 * STRIDE), st.integers(1, 9))
def test_rows_are_found_and_shared_out(sizes: list[int], parts: int) -> None:
    n_atoms = np.array(sizes, np.int32)
    index = RowIndex(n_atoms, record_words)
    ends = np.concatenate([[0], np.cumsum(record_words(n_atoms.astype(np.int64)))])
    np.testing.assert_array_equal(index.starts(np.arange(len(sizes) + 1)), ends)
    assert index.total == ends[-1]
    shares = index.shares(parts)
    assert (shares[0], shares[-1], len(shares)) == (0, len(sizes), parts + 1)
    assert shares == sorted(shares)
    largest = max(ends[b] - ends[a] for a, b in pairwise(shares))
    assert largest <= index.total / parts + STRIDE * record_words(np.array([50]))[0]
