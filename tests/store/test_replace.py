"""A store is written by one process at a time, and a full disk leaves the old store."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ramify.errors import RamifyError
from ramify.minicorpora import FILES
from ramify.prepare.prepare import prepare_dataset
from ramify.sources.formats import formats
from ramify.store.convert import convert_store
from ramify.store.replace import replaced_store
from ramify.store.store import Store
from tests.small import files_of

WRITER = """
import sys
from pathlib import Path
from ramify.prepare.prepare import prepare_dataset
from ramify.errors import RamifyError
from ramify.minicorpora import FILES
from ramify.sources.formats import formats
options = formats()["ani1x"].options.model_validate({"format": "ani1x", "path": str(FILES["ani1x_mini"])})
def progress(structures):
    print("writing", flush=True)
    sys.stdin.readline()
try:
    prepare_dataset("d", options, Path(sys.argv[1]), base=Path(), progress=progress, force=len(sys.argv) > 2)
    print("done", flush=True)
except RamifyError as error:
    print(error, flush=True)
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = formats()["ani1x"].options.model_validate({"format": "ani1x", "path": str(FILES["ani1x_mini"])})
    stores = tmp_path_factory.mktemp("stores")
    prepare_dataset("d", options, stores, base=Path())
    return stores / "d"


def writer(*arguments: object) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", WRITER, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_of_several_writers_one_writes(tmp_path: Path, store: Path) -> None:
    """All started at once; the errors of the others name it."""
    writers = [writer(tmp_path / "stores") for _ in range(3)]
    lines = {process: first_line(process) for process in writers}
    (one,) = (process for process, line in lines.items() if line == "writing")
    for process, line in lines.items():
        if process is not one:
            assert f"is already being written by process {one.pid}" in line
    output, _ = one.communicate("\n", timeout=60)
    assert output.endswith("done\n")
    for process in writers:
        process.communicate(timeout=10)
    assert files_of(tmp_path / "stores") == {f"d/{name}": data for name, data in files_of(store).items()}


def test_a_store_that_is_being_replaced_can_be_read_until_it_is(tmp_path: Path, store: Path) -> None:
    shutil.copytree(store, tmp_path / "stores" / "d")
    with Store.open(tmp_path / "stores" / "d") as before:
        process = writer(tmp_path / "stores", "force")
        assert first_line(process) == "writing"
        Store.open(tmp_path / "stores" / "d", verify=True)
        with pytest.raises(RamifyError, match="is already being written by process"):
            convert_store(tmp_path / "stores" / "d", "adios")
        process.communicate("\n", timeout=60)
        assert before.take(range(600)).forces.shape == (before.take(range(600)).n_atoms.sum(), 3)
    assert files_of(tmp_path / "stores" / "d") == files_of(store)


def test_a_killed_writer_does_not_lock_anyone_out(tmp_path: Path, store: Path) -> None:
    process = writer(tmp_path / "stores")
    assert first_line(process) == "writing"
    process.kill()
    process.communicate(timeout=10)
    process = writer(tmp_path / "stores")
    assert first_line(process) == "writing"
    process.communicate("\n", timeout=60)
    assert [p.name for p in (tmp_path / "stores").iterdir()] == ["d"]


def test_a_store_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    """As on a file system without locks."""

    def write() -> None:
        with replaced_store(tmp_path / "d") as folder:
            (folder / "ours").write_text("second")
            (tmp_path / "d").mkdir()
            (tmp_path / "d" / "theirs").write_text("first")

    with pytest.raises(RamifyError, match="was written by another process"):
        write()
    assert (tmp_path / "d" / "theirs").read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


@pytest.mark.parametrize("to", ["adios", "mapped"])
@pytest.mark.parametrize("place", ["elsewhere", "in place"])
def test_a_full_disk_while_converting(store: Path, tmp_path: Path, to: str, place: str) -> None:
    """The limit on file sizes makes write(2) itself fail, in this project's code or in ADIOS2's."""
    source = tmp_path / "d"
    if to == "adios":
        shutil.copytree(store, source)
    else:
        convert_store(store, "adios", source)
    before = files_of(tmp_path)
    target = None if place == "in place" else str(tmp_path / "new")
    code = f"""
import resource, signal
from pathlib import Path
from ramify.store.convert import convert_store
from ramify.errors import RamifyError
import adios2
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
target = {target!r}
try:
    convert_store(Path({str(source)!r}), {to!r}, Path(target) if target else None)
except RamifyError as error:
    print(error)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=100)
    assert "cannot write" in ended.stdout, ended.stderr
    assert "nothing was left behind\n  fix: free some space" in ended.stdout
    assert files_of(tmp_path) == before
