"""Atomic replacement of a store, by one process at a time, with cleanup after earlier interrupted writers."""

import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ramify.errors import RamifyError
from ramify.files import whole_folder
from ramify.system import parse_tag, process_runs, process_tag


@contextmanager
def replaced_store(target: Path) -> Iterator[Path]:
    """Creates a folder to write a store into; it is renamed to `target` when the block ends without error.

    An existing store at `target` is moved aside only then, and restored on failure. The folder is locked during the
    block, so that a second writer raises an error; the lock ends with the process.

    Raises:
        RamifyError: another process is writing this store, or has written it in the meantime; or the disk is full.
    """
    replaced = target.with_name(f".{target.name}.replaced-{process_tag()}")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with ExitStack() as until_renamed:
            with _locked(target.parent):  # one process at a time checks and creates folders
                _refuse_second_writer(target)
                replacing = target.exists()
                lock = until_renamed.enter_context(ExitStack())
                folder = until_renamed.enter_context(whole_folder(target))
                lock.enter_context(_locked(folder))
            yield folder
            if replacing and target.exists():
                os.rename(target, replaced)
    except BaseException as error:
        if replaced.exists() and not target.exists():
            os.rename(replaced, target)
        if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise RamifyError(
                f"{target} was written by another process in the meantime", fix="check the store that it wrote"
            ) from error
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def clear_leftovers(target: Path) -> None:
    """Removes temporary folders of earlier killed processes, and restores a store that they had moved aside."""
    for entry, kind, pid, began in _beside(target):
        if process_runs(pid, began) or _is_locked(entry):
            continue
        if kind == "replaced" and not target.exists():
            os.rename(entry, target)
        else:
            shutil.rmtree(entry, ignore_errors=True)


def _refuse_second_writer(target: Path) -> None:
    for entry, _, pid, _ in _beside(target):
        if _is_locked(entry):
            raise RamifyError(
                f"{target} is already being written by process {pid} ({entry})",
                fix="wait until it is done, or stop it",
            )


def _beside(target: Path) -> list[tuple[Path, str, int, int | None]]:
    """Temporary folders of writers of `target`: path, `partial` or `replaced`, id and start time of the process."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.(partial|replaced)-(\d+(?:-\d+)?)")
    found = [(entry, pattern.fullmatch(entry.name)) for entry in sorted(target.parent.glob(f".{target.name}.*"))]
    return [(entry, match[1], *parse_tag(match[2])) for entry, match in found if match]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the exclusive lock of `folder` (across machines, if the file system supports locks)."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: renaming still admits only one store
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _is_locked(folder: Path) -> bool:
    """Returns whether another process holds the lock of `folder`."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no locks here
        return False
    finally:
        os.close(handle)
    return False
