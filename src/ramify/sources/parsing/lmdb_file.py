"""LMDB files: the check that none of their pages is missing, and their records in the order of the keys."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb

from ramify.errors import RamifyError

RECORDS = 20_000
"""Records read before a file is mapped again: mapped pages count as memory of the process until then."""


def require_whole(path: Path) -> None:
    """Checks that all pages of a file exist: LMDB maps the file, and access beyond its end terminates the process.

    Raises:
        RamifyError: pages are missing, or the file is not of LMDB.
    """
    with opened(path) as environment:
        pages, page_size = environment.info()["last_pgno"] + 1, environment.stat()["psize"]
    if path.stat().st_size < pages * page_size:
        raise RamifyError(
            f"{path} is truncated: {path.stat().st_size} of {pages * page_size} bytes",
            fix="compare its size and checksum with the published ones and download it again",
        )


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Opens a file of LMDB (not its folder), read-only and without a lock file.

    Raises:
        RamifyError: no such file, or not of LMDB.
    """
    if not path.is_file():  # LMDB would create it
        raise RamifyError(f"{path} does not exist", fix="correct `path`")
    try:
        environment = lmdb.open(str(path), subdir=False, readonly=True, lock=False, readahead=False)
    except lmdb.Error as error:
        raise RamifyError(f"{path} cannot be read as LMDB: {error}", fix="correct `path` or `format`") from error
    with environment:
        yield environment


def record(path: Path, key: bytes) -> bytes | None:
    """The value of a key; None where there is none.

    Raises:
        RamifyError: no such file, not of LMDB, damaged, or truncated.
    """
    require_whole(path)
    with opened(path) as environment, _damage_named(path), environment.begin() as transaction:
        found = transaction.get(key)
        return None if found is None else bytes(found)


def records(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Yields keys and values in the order of the keys.

    Raises:
        RamifyError: no such file, not of LMDB, damaged, or truncated.
    """
    require_whole(path)
    last: bytes | None = None
    while True:
        count = 0
        with opened(path) as environment, _damage_named(path), environment.begin() as transaction:
            cursor = transaction.cursor()
            found = cursor.first() if last is None else cursor.set_range(last) and cursor.next()
            while found and count < RECORDS:
                last = bytes(cursor.key())
                yield last, bytes(cursor.value())
                count += 1
                found = cursor.next()
        if not found:
            return


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except lmdb.Error as error:
        raise RamifyError(f"{path} is damaged: {error}", fix="download it again") from error
