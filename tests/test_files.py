"""Files are there and whole, or not there: exceptions in the middle, a full disk, damaged JSON."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ramify.errors import RamifyError
from ramify.files import disk_full_named, read_json, sha256, whole_folder, write_json, write_whole
from ramify.system import process_tag

LIMIT = 20_000
"""Bytes that a process with `limited` may write into one file: the system then says so as it does for a full disk."""


def limited(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs code in a process that cannot write files above `LIMIT` bytes."""
    start = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({LIMIT}, {LIMIT}))\n"
    command = [sys.executable, "-c", start + textwrap.dedent(code)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "folder"
    with whole_folder(target) as partial:
        assert partial.parent == target.parent  # the same file system: renaming it is one step
        (partial / "sub").mkdir()
        (partial / "sub" / "a.txt").write_text("a")
        assert not target.exists()
    assert (target / "sub" / "a.txt").read_text() == "a"
    assert [p.name for p in target.parent.iterdir()] == ["folder"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_folder_that_fails_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with whole_folder(tmp_path / "folder") as partial:
            (partial / "a.txt").write_text("a")
            raise error

    with pytest.raises(error):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_never_replaces_another(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "precious.txt").write_text("old")
    with pytest.raises(OSError, match="not empty"), whole_folder(tmp_path / "folder") as partial:
        (partial / "precious.txt").write_text("new")
    assert [p.name for p in tmp_path.rglob("*")] == ["folder", "precious.txt"]
    assert (tmp_path / "folder" / "precious.txt").read_text() == "old"


def test_leftovers_of_the_same_process_number_are_no_part(tmp_path: Path) -> None:
    stale = tmp_path / f".folder.partial-{process_tag()}"
    stale.mkdir()
    (stale / "old.txt").write_text("old")
    with whole_folder(tmp_path / "folder") as partial:
        (partial / "new.txt").write_text("new")
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["new.txt"]


def test_a_file_is_old_or_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    write_whole(path, "old")
    write_whole(path, b"newer \xc3\x85")
    assert path.read_text(encoding="utf-8") == "newer Å"

    def power_cut(handle: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", power_cut)
    with pytest.raises(OSError, match="Input/output"):
        write_whole(path, "half-written")
    assert path.read_text(encoding="utf-8") == "newer Å"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_full_disk_while_a_folder_is_written(tmp_path: Path) -> None:
    done = limited(
        """
        from pathlib import Path
        from ramify.errors import RamifyError
        from ramify.files import whole_folder
        try:
            with whole_folder(Path("store")) as partial:
                (partial / "small").write_bytes(b"x")
                (partial / "large").write_bytes(b"x" * 100_000)
        except RamifyError as error:
            print(error)
        """,
        tmp_path,
    )
    assert done.stderr == ""
    assert done.stdout.startswith("cannot write store: File too large; nothing was left behind\n  fix: free some space")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_while_a_file_is_written(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text('{"old": 1}\n')
    done = limited(
        """
        from pathlib import Path
        from ramify.errors import RamifyError
        from ramify.files import write_json
        try:
            write_json(Path("data.json"), list(range(100_000)))
        except RamifyError as error:
            print(error)
        """,
        tmp_path,
    )
    assert done.stderr == ""
    assert done.stdout.startswith("cannot write data.json: File too large")
    assert read_json(tmp_path / "data.json") == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["data.json"]


def test_other_errors_of_the_system_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), disk_full_named(tmp_path):
        raise PermissionError(13, "Permission denied")


def test_json_comes_back(tmp_path: Path) -> None:
    content = {"a": [1, 0.1, None, True], "Å": {"x": 1e-300}}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert read_json(tmp_path / "a.json") == content


@pytest.mark.parametrize("damage", [b"", b"{", b'{"a": 1', b"\xff\xfe\x00", b'{"a": 1}}'])
def test_damaged_json_is_named(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "a.json").write_bytes(damage)
    with pytest.raises(RamifyError, match=r"a\.json is damaged: "):
        read_json(tmp_path / "a.json")


def test_missing_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(RamifyError, match=r"a\.json is missing"):
        read_json(tmp_path / "a.json")


def test_checksum_of_a_known_content(tmp_path: Path) -> None:
    """FIPS 180-2, appendix B.1."""
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
