"""Atomic writing of files and folders, reading of JSON, checksums, and the folder of the cache."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ramify.errors import RamifyError
from ramify.system import process_tag


def cache_folder() -> Path:
    """Folder of compiled programs: `RAMIFY_CACHE`, or `ramify` in the cache folder of the user."""
    if own := os.environ.get("RAMIFY_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ramify"


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Creates a temporary folder next to `target` and renames it to `target` when the block ends without error.

    Raises:
        RamifyError: the disk is full; the temporary folder is removed.
    """
    partial = target.with_name(f".{target.name}.partial-{process_tag()}")
    shutil.rmtree(partial, ignore_errors=True)
    with disk_full_named(target):
        try:
            partial.mkdir(parents=True)
            yield partial
            for entry in (*partial.rglob("*"), partial):
                sync(entry)
            os.rename(partial, target)
            sync(target.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file atomically: readers see either the old or the new content.

    Raises:
        RamifyError: the disk is full; the old file is unchanged.
    """
    with _partial(path, content) as partial:
        os.replace(partial, path)


def create_whole(path: Path, content: str | bytes) -> bool:
    """Creates a file atomically; an existing one is left unchanged.

    Returns:
        Whether this process created it; of several, only one does.

    Raises:
        RamifyError: the disk is full; no file was created.
    """
    with _partial(path, content) as partial:
        try:
            os.link(partial, path)  # fails if the file exists; atomic, also over NFS
        except FileExistsError:
            return False
    return True


@contextmanager
def _partial(path: Path, content: str | bytes) -> Iterator[Path]:
    """Context with a complete temporary file beside `path`, which is removed at the end unless it was renamed."""
    partial = path.with_name(f".{path.name}.partial-{process_tag()}")
    data = content.encode() if isinstance(content, str) else content
    with disk_full_named(path):
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield partial
        finally:
            partial.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Writes indented JSON atomically; raises an error on NaN, which JSON does not have."""
    write_whole(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_json(path: Path, *, fix: str = "") -> Any:
    """Reads a JSON file.

    Raises:
        RamifyError: the file is missing or damaged; with `fix`.
    """
    try:
        return parse_json(path.read_bytes())
    except FileNotFoundError:
        raise RamifyError(f"{path} is missing", fix=fix) from None
    except ValueError as error:  # bytes that are not UTF-8 too
        raise RamifyError(f"{path} is damaged: {error}", fix=fix) from None
    except OSError as error:
        raise RamifyError(f"{path} cannot be read: {error.strerror}", fix=fix) from None


def parse_json(text: bytes) -> Any:
    """Parses JSON.

    Raises:
        ValueError: not JSON in UTF-8, nested too deeply, or with an unpaired surrogate.
    """
    try:
        content = json.loads(text.decode("utf-8"))
    except RecursionError:
        raise ValueError("its groups are nested too deeply") from None
    if b"\\ud" in text.lower():  # an escaped surrogate without its pair cannot be written again
        json.dumps(content, ensure_ascii=False).encode()
    return content


def json_lines(text: bytes) -> list[dict[str, Any]]:
    """The objects in lines of JSON; lines that are incomplete or damaged, as a killed program leaves them, are left
    out."""
    found = []
    for line in text.split(b"\n"):
        with suppress(ValueError):
            if isinstance(content := parse_json(line), dict):
                found.append(content)
    return found


def sha256(path: Path) -> str:
    """Checksum of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_sha256(content: Any) -> str:
    """Checksum of plain data, independent of their layout in a file."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sync(path: Path) -> None:
    """Flushes the content of a file or folder to disk (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class CannotWrite(RamifyError):
    """A file or folder cannot be written.

    Args:
        path: the file or folder.
        cause: error of the operating system.
        left: state of the files after the failure.
        fix: how to correct it.
    """

    def __init__(self, path: Path, cause: OSError, left: str, fix: str) -> None:
        super().__init__(f"cannot write {path}: {_reason(cause)}; {left}", fix=fix)
        self.cause = cause


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""A full disk, a quota, a limit on file sizes."""
FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)
"""A file system mounted read-only, missing permissions, files that may not be changed (`chattr +i`)."""


@contextmanager
def disk_full_named(
    target: Path,
    left: str = "nothing was left behind",
    fix: str = "free some space or choose another folder, then run the same command again",
) -> Iterator[None]:
    """Converts the system's errors for a full disk, a quota or a file size limit into an error that names `target`.

    Raises:
        CannotWrite: with `left` and `fix`.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise CannotWrite(target, error, left, fix) from error
        raise


@contextmanager
def writing(target: Path, left: str, then: str) -> Iterator[None]:
    """Converts every system error of a block that only writes `target` into an error that names `target`.

    Args:
        target: a file of the user; the block may write next to it first.
        left: state of the files if it cannot be written.
        then: how to continue after correcting the cause.

    Raises:
        CannotWrite: with the cause, `left`, the fix and `then`.
    """
    try:
        yield
    except (OSError, CannotWrite) as error:
        cause = error.cause if isinstance(error, CannotWrite) else error
        if cause.errno in FULL:
            fix = "free some space"
        elif cause.errno in FORBIDDEN:
            fix = f"make {target.parent} writable (permissions, a read-only mount, chattr -i)"
        else:
            fix = f"check that {target.parent} exists and is writable"
        raise CannotWrite(target, cause, left, f"{fix}, then {then}") from error


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)
