"""The columns of a store in one ADIOS2 file (BP5), written and read in large pieces.

ADIOS2 (https://github.com/ornladios/ADIOS2) is designed for bulk transfer on parallel file systems: a file is written
from memory without conversion and read in long sequential reads. Random access to rows is slow, so a store of this form
is read as a whole when a run begins, into memory that the processes share. Every column is one global array of one
step, with its unit as an attribute; `bpls -la columns.bp` lists them.
"""

import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ramify.errors import RamifyError
from ramify.files import read_json, sha256, sync, write_json
from ramify.labels import LABELS
from ramify.store.columns import COLUMNS, STATE_COLUMNS
from ramify.store.files import ADIOS_FILE, Form, damaged
from ramify.store.manifest import REBUILD, Column, Manifest
from ramify.untrusted import parsed

PARTS_FILE = "columns.json"
ADIOS_FILES = (ADIOS_FILE, PARTS_FILE)

UNITS = {"positions": "Å", "cell": "Å", "charge": "e"}
"""Units of columns that are not labels."""

PARAMETERS = {
    "StatsLevel": "0",  # no minima and maxima, which need a second pass over the data
    "MinDeferredSize": "1024",  # bytes; larger pieces are written without a copy
}


def write_adios(path: Path, manifest: Manifest, pieces: Mapping[str, Iterable[tuple[int, NDArray[Any]]]]) -> None:
    """Writes columns as the ADIOS2 file `path`.

    Args:
        path: file to create.
        manifest: manifest of the store, with types and shapes.
        pieces: for every column, first row and rows of each piece (whose memory may be reused for the next piece).

    Raises:
        OSError: the file cannot be written.
    """
    adios2 = _adios2()
    io = adios2.Adios().declare_io("write")
    io.set_engine("BP5")
    io.set_parameters(PARAMETERS)
    with _system_errors(path), _Syncing(path) as syncing:
        engine = io.open(str(path), adios2.bindings.Mode.Write)
        try:
            engine.begin_step()
            for name, parts in pieces.items():
                _put(adios2, io, engine, name, manifest.columns[name], parts, syncing)
            engine.end_step()
        except BaseException:
            with suppress(RuntimeError):  # closing may retry the failed write
                engine.close()
            raise
        engine.close()
    write_json(path.with_name(PARTS_FILE), _parts(path))


class _Syncing:
    """Flushes the written parts of an ADIOS2 file to disk in a thread; otherwise the system would keep all data in
    memory until the end, while the disk is idle.

    The system reports a disk error to only one caller of fsync, so it is raised here.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, "ramify-sync")
        self._last: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown()
        if self._last is not None and kind is None:
            self._last.result()

    def wrote(self) -> None:
        """Notifies the thread that more was written.

        Raises:
            OSError: earlier data could not be flushed to disk.
        """
        if self._last is not None:
            if not self._last.done():
                return
            self._last.result()
        self._last = self._thread.submit(self._sync)

    def _sync(self) -> None:
        for part in self._path.glob("data.*"):
            sync(part)


def _put(
    adios2: Any,
    io: Any,
    engine: Any,
    name: str,
    stated: Column,
    parts: Iterable[tuple[int, NDArray[Any]]],
    syncing: _Syncing,
) -> None:
    """Writes one column."""
    kind = np.empty(1, _stored(stated.dtype))
    variable = io.define_variable(name, kind, list(stated.shape), [0] * len(stated.shape), list(stated.shape))
    if name in UNITS:
        io.define_attribute("unit", UNITS[name], name)
    elif name in LABELS:
        io.define_attribute("unit", LABELS[name].unit, name)
    for start, piece in parts:
        variable.set_selection([[start, *[0] * (piece.ndim - 1)], list(piece.shape)])
        engine.put(variable, piece.view(kind.dtype), adios2.bindings.Mode.Deferred)
        engine.perform_data_write()  # before the memory of the piece is reused
        syncing.wrote()


@contextmanager
def _system_errors(path: Path) -> Iterator[None]:
    """Converts system errors in messages of ADIOS2 to `OSError`."""
    try:
        yield
    except RuntimeError as error:
        number = re.search(r"errno = (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


class AdiosFiles:
    """One ADIOS2 file for all columns."""

    form: Form = "adios"

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest
        self._adios2 = _adios2()
        _check_parts(path)
        self._lock = threading.Lock()  # an engine is not thread-safe
        self._io = self._adios2.Adios().declare_io("read")
        self._io.set_engine("BP5")
        try:
            self._engine: Any = self._io.open(str(path / ADIOS_FILE), self._adios2.bindings.Mode.ReadRandomAccess)
        except (RuntimeError, ValueError) as error:
            raise damaged(path / ADIOS_FILE, f"it cannot be opened ({_short(error)})") from None
        found = self._io.available_variables()
        for name, stated in manifest.columns.items():
            shape = tuple(int(n) for n in found[name]["Shape"].split(",")) if name in found else None
            kind = self._io.inquire_variable(name).type() if name in found else None
            if (shape, kind) != (stated.shape, _TYPES[_stored(stated.dtype).str]):
                self.close()
                raise damaged(path / ADIOS_FILE, f"column {name} is {kind} {shape} instead of {stated.shape}")

    def read(self, column: str, start: int, out: NDArray[Any]) -> None:
        """See `StoreFiles`."""
        with self._lock:
            variable = self._io.inquire_variable(column)
            variable.set_selection([[start, *[0] * (out.ndim - 1)], list(out.shape)])
            try:
                self._engine.get(variable, out.view(_stored(out.dtype.str)), self._adios2.bindings.Mode.Sync)
            except (RuntimeError, ValueError) as error:
                raise damaged(self.path / ADIOS_FILE, f"column {column} cannot be read ({_short(error)})") from None

    def name_of(self, column: str) -> str:
        """See `StoreFiles`."""
        return ADIOS_FILE

    def close(self) -> None:
        """See `StoreFiles`."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None


def _parts(path: Path) -> dict[str, dict[str, Any]]:
    """Size of every file of an ADIOS2 dataset, and checksums of its metadata files."""
    found: dict[str, dict[str, Any]] = {}
    for part in sorted(path.iterdir()):
        found[part.name] = {"bytes": part.stat().st_size}
        if not part.name.startswith("data."):
            found[part.name]["sha256"] = sha256(part)
    return found


def _check_parts(path: Path) -> None:
    """Raises an error if files are not as written, before ADIOS2 opens them: it would wait for the rest of a truncated
    file."""
    stated = parsed(dict[str, dict[str, Any]], read_json(path / PARTS_FILE), path / PARTS_FILE, fix=REBUILD)
    found = _parts(path / ADIOS_FILE)
    for name in sorted({*stated, *found} - {"profiling.json"}):
        if stated.get(name) != found.get(name):
            raise damaged(path / ADIOS_FILE / name, f"{found.get(name)} instead of {stated.get(name)}")


_TYPES = {"|u1": "uint8_t", "<f4": "float", "<f8": "double", "<i4": "int32_t", "<i8": "int64_t"}
"""ADIOS2's names of the types that columns have."""
assert {np.dtype(kind.dtype).str for kind in (COLUMNS | STATE_COLUMNS).values()} <= {*_TYPES, "|b1"}


def _stored(dtype: str) -> np.dtype[Any]:
    """Type of a column in the file: ADIOS2 has no booleans."""
    return np.dtype(np.uint8 if np.dtype(dtype) == np.bool_ else dtype)


def _short(error: Exception) -> str:
    """Message of an ADIOS2 error, without colours, time and class names."""
    plain = re.sub(r"\x1b\[[0-9;]*m|\[[^\]]*\]|<\w+>", "", str(error))
    return " ".join(plain.split()).lstrip(": ") or type(error).__name__


def _adios2() -> Any:
    """Imports the package, which is needed only for stores of this form."""
    try:
        import adios2
    except ImportError as error:
        raise RamifyError(
            f"a store in the form `adios` needs the package adios2 ({error})", fix="pip install 'ramify[scale]'"
        ) from None
    return adios2
