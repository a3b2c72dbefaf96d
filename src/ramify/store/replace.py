"""Writing a store in the place of another: by one process at a time, whole or not at all, whatever was left behind."""

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
    """Gives a folder to write a store into; it becomes `target` when the block ends without error.

    A store that is at `target` now is put aside only then, and comes back if anything goes wrong. While the block runs
    the folder is locked, so that a second writer is told; the lock ends with the process, however that ends.

    Raises:
        RamifyError: another process is writing this store, or wrote it meanwhile; or the disk is full.
    """
    replaced = target.with_name(f".{target.name}.replaced-{process_tag()}")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with ExitStack() as until_renamed:
            with _locked(target.parent):  # one process at a time looks around and settles
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
                f"{target} was written by another process meanwhile", fix="look at what it made"
            ) from error
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def clear_leftovers(target: Path) -> None:
    """Removes what earlier runs that were killed left behind; a store they had put aside comes back."""
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
                f"{target} is being written by process {pid} already ({entry})",
                fix="wait until it is done, or stop it",
            )


def _beside(target: Path) -> list[tuple[Path, str, int, int | None]]:
    """Folders of writers of `target`: path, `partial` or `replaced`, the writer's number and when it began."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.(partial|replaced)-(\d+(?:-\d+)?)")
    found = [(entry, pattern.fullmatch(entry.name)) for entry in sorted(target.parent.glob(f".{target.name}.*"))]
    return [(entry, match[1], *parse_tag(match[2])) for entry, match in found if match]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Inside, no other process (of any machine, where the file system carries locks) holds the lock of `folder`."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: renaming still lets only one store through
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _is_locked(folder: Path) -> bool:
    """Whether another process holds the lock of `folder`."""
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
