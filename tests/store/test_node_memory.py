"""Memory shared by processes: one of them reads the store, the others use it, and the last one removes it."""

import os
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from ramify.errors import RamifyError
from ramify.minicorpora import FILES
from ramify.prepare.prepare import prepare_dataset
from ramify.sources.formats import formats
from ramify.store.shared import node_memory
from ramify.store.store import Store
from tests.corpora import HELD
from tests.small import flip_byte

USER = """
import sys
from ramify.store.store import Store
read = []
store = Store.open(sys.argv[1], preload=True, progress=read.append)
print("read" if read else "found", int(store.take([0]).row[0]), flush=True)
sys.stdin.readline()
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = formats()["ani1x"].options.model_validate({"format": "ani1x", "path": str(FILES["ani1x_mini"])})
    stores = tmp_path_factory.mktemp("stores")
    prepare_dataset("ani", options, stores, base=Path())
    return stores / "ani"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Named memory of this test only."""
    made = tmp_path / "memory"
    made.mkdir()
    monkeypatch.setattr(node_memory, "FOLDER", made)
    return made


class User:
    """Another process that opens the store and keeps it open until it is told to end."""

    def __init__(self, store: Path, folder: Path, code: str = USER) -> None:
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            "RAMIFY_SHARED_MEMORY": str(folder),
        }
        command = [sys.executable, "-c", code, str(store)]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def leave(self) -> None:
        self.process.communicate("\n", timeout=30)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate(timeout=30)


def test_one_reads_and_all_use_it(store: Path, folder: Path) -> None:
    users = [User(store, folder) for _ in range(3)]  # all at once
    said = sorted(user.says().split()[0] for user in users)
    assert said == ["found", "found", "read"]
    (memory,) = folder.iterdir()
    read: list[int] = []
    with Store.open(store, preload=True, progress=read.append) as here, Store.open(store) as mapped:
        assert not read
        np.testing.assert_array_equal(here.take(range(99)).positions, mapped.take(range(99)).positions)
        with pytest.raises(ValueError, match="read-only"):
            here.n_atoms[0] = 1
    for user in users[:2]:
        user.leave()
    assert memory.exists()
    users[2].leave()
    assert not list(folder.iterdir())


def test_a_killed_user_leaves_memory_that_the_next_finds_and_removes(store: Path, folder: Path) -> None:
    user = User(store, folder)
    assert user.says().startswith("read")
    user.kill()
    assert len(list(folder.iterdir())) == 1
    read: list[int] = []
    with Store.open(store, preload=True, progress=read.append):
        assert not read
    assert not list(folder.iterdir())


def test_what_a_killed_user_left_goes_when_other_data_are_opened(store: Path, folder: Path) -> None:
    user = User(store, folder)
    user.says()
    user.kill()
    (left,) = folder.iterdir()
    abandoned = left.rename(left.with_name(left.name[:-3] + "abc"))
    with Store.open(store, preload=True):
        assert not abandoned.exists()
        assert len(list(folder.iterdir())) == 1


def test_a_reader_killed_half_way(store: Path, folder: Path) -> None:
    code = """
import os, signal, sys
from ramify.store.store import Store
read = []
def progress(done):
    read.append(done)
    if len(read) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
Store.open(sys.argv[1], preload=True, progress=progress)
"""
    user = User(store, folder, code)
    user.process.communicate(timeout=60)
    assert len(list(folder.iterdir())) == 1
    read: list[int] = []
    with Store.open(store, preload=True, progress=read.append) as here, Store.open(store) as mapped:
        assert read
        np.testing.assert_array_equal(
            here.take(range(HELD["ani1x_mini"].structures)).forces,
            mapped.take(range(HELD["ani1x_mini"].structures)).forces,
        )


def test_damage_leaves_nothing(store: Path, folder: Path, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(store, tmp_path / "copy"))
    flip_byte(copy / "forces.npy")
    with pytest.raises(RamifyError, match=r"forces\.npy: damaged, rows 0 to"):
        Store.open(copy, preload=True)
    assert not list(folder.iterdir())


def test_too_little_memory(store: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**6, 10**6 - 1000, 1000))
    with pytest.raises(RamifyError, match=r"GB of memory are needed.*\n  fix: enlarge it or name another tmpfs"):
        Store.open(store, preload=True)
    assert not list(folder.iterdir())
