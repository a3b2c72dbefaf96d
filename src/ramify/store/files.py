"""Files of a store in either form: sequential reading of columns, and verification against the manifest."""

import hashlib
import math
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from ramify.errors import RamifyError
from ramify.files import sha256
from ramify.labels import BUILT_IN, further
from ramify.store.blocks import BLOCK_ROWS, block_count, block_sum, memory_of
from ramify.store.columns import COLUMNS, STATE_COLUMNS, column_type, npy_header
from ramify.store.manifest import REBUILD, SPLITS, Column, Manifest

Form = Literal["mapped", "adios"]
"""Form of a store on disk: one `.npy` file per column (`mapped`), or one ADIOS2 file for all (`adios`)."""
FORMS: tuple[Form, ...] = get_args(Form)
ADIOS_FILE = "columns.bp"

PIECE_BYTES = 8 << 20
"""Bytes per piece in sequential reads and writes: large enough for efficient disk access, small enough to stay in the
cache of a processor while it is verified and processed."""


class Scratch:
    """Reusable buffer: allocating new pages costs more than reading a file into them.

    It is returned to the system with its last array, which NumPy's allocator does not guarantee.
    """

    def __init__(self) -> None:
        self._bytes = mmap.mmap(-1, 1)

    def array(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """Returns an uninitialised array, which replaces the previous one."""
        size = np.dtype(dtype).itemsize * int(np.prod(shape, dtype=np.int64))
        if len(self._bytes) < size:
            self._bytes = mmap.mmap(-1, size)
        return np.ndarray(shape, dtype, self._bytes)


class StoreFiles(Protocol):
    """The files of one store.

    Attributes:
        path: folder of the store.
        manifest: its `manifest.json`.
        form: form of its columns on disk.
    """

    path: Path
    manifest: Manifest
    form: Form

    def read(self, column: str, start: int, out: NDArray[Any]) -> None:
        """Fills `out`, contiguous and of the column's type, with the rows of a column from `start`.

        Raises:
            RamifyError: the file is truncated or cannot be read.
        """

    def name_of(self, column: str) -> str:
        """Name of the file of a column, for messages."""

    def close(self) -> None:
        """Closes the files."""


def form_of(path: Path) -> Form:
    """Form of the store in folder `path`.

    Raises:
        RamifyError: it contains both forms.
    """
    adios, mapped = (path / ADIOS_FILE).exists(), (path / "n_atoms.npy").exists()
    if adios and mapped:
        raise RamifyError(f"{path} holds its columns twice, as {ADIOS_FILE} and as .npy files", fix=REBUILD)
    return "adios" if adios else "mapped"


def check_manifest(path: Path, manifest: Manifest) -> None:
    """Checks that the columns in a manifest match its numbers of structures and atoms.

    Raises:
        RamifyError: a column does not match; the message names it.
    """
    labels = {name for name in manifest.labels.counts if name not in BUILT_IN}
    states = {name for name in STATE_COLUMNS if any(getattr(state, name) is not None for state in manifest.states)}
    if set(manifest.columns) != (expected := {*COLUMNS, *states, *labels}):
        odd = ", ".join(sorted(set(manifest.columns) ^ expected))
        raise RamifyError(f"{path}: the columns in the manifest are not those of a store ({odd})", fix=REBUILD)
    counts = [count for split in manifest.splits.values() for count in (split.structures, split.atoms)]
    if set(manifest.splits) != set(SPLITS) or min(counts) < 0:
        raise RamifyError(f"{path}: the manifest is damaged at splits, found {manifest.splits}", fix=REBUILD)
    if unknown := sorted(labels - set(further())):
        raise RamifyError(
            f"{path}: the store holds labels that are not registered: {', '.join(unknown)}",
            fix="import the module that registers them (ramify.labels.register), or prepare the dataset without them",
        )
    for name, stated in manifest.columns.items():
        kind = column_type(name)
        shape = kind.shape(manifest.structures, manifest.atoms)
        if stated.shape != shape or not _is(stated.dtype, kind.dtype):
            raise RamifyError(
                f"{path}: the manifest is damaged, column {name} is {stated.dtype} {stated.shape} instead of "
                f"{kind.dtype} {shape}",
                fix=REBUILD,
            )
    if manifest.blocks is not None:
        wanted = {name: block_count(stated.shape[0]) for name, stated in manifest.columns.items()}
        found = {name: len(sums) for name, sums in manifest.blocks.items()}
        if found != wanted:
            raise RamifyError(
                f"{path}: the manifest is damaged at blocks, numbers of checksums are {found} instead of {wanted}",
                fix=REBUILD,
            )


def _is(stated: str, wanted: str) -> bool:
    """Returns whether a type in a manifest equals the type of the column."""
    try:
        return np.dtype(stated) == np.dtype(wanted)
    except (TypeError, ValueError):  # not a NumPy type
        return False


def verify(files: StoreFiles) -> None:
    """Reads all data and verifies all checksums.

    Raises:
        RamifyError: a checksum does not match; the message names the file.
    """
    for name, stated in files.manifest.columns.items():
        if column_checksum(files, name) != stated.sha256:
            raise damaged(files.path / files.name_of(name), f"the checksum of column {name} is not the manifest's")
    verify_names(files)


def verify_names(files: StoreFiles) -> None:
    """Verifies the checksum of `names.json`.

    Raises:
        RamifyError: it does not match the manifest.
    """
    names = files.path / "names.json"
    if not names.is_file() or sha256(names) != files.manifest.names_sha256:
        raise damaged(names, "its checksum is not the manifest's")


def column_checksum(files: StoreFiles, column: str) -> str:
    """SHA-256 of a column as a `.npy` file, for either form of store."""
    if files.form == "mapped":
        return sha256(files.path / files.name_of(column))
    stated = files.manifest.columns[column]
    digest = hashlib.sha256(npy_header(stated.dtype, stated.shape))
    for _, piece in pieces(files, column, Scratch()):
        digest.update(memory_of(piece))
    return digest.hexdigest()


def pieces(files: StoreFiles, column: str, scratch: Scratch) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yields a column in pieces of whole blocks: first row, and rows in `scratch`, valid until the next piece."""
    for rows in portions(files, column):
        yield rows.start, read_rows(files, column, rows, scratch)


def portions(files: StoreFiles, column: str) -> list[range]:
    """Ranges of rows of a column, of whole blocks and about `PIECE_BYTES` each."""
    stated = files.manifest.columns[column]
    row_bytes = np.dtype(stated.dtype).itemsize * int(np.prod(stated.shape[1:]))
    step = BLOCK_ROWS * max(1, PIECE_BYTES // (BLOCK_ROWS * row_bytes))
    return [range(start, min(start + step, stated.shape[0])) for start in range(0, stated.shape[0], step)]


def read_rows(files: StoreFiles, column: str, rows: range, scratch: Scratch) -> NDArray[Any]:
    """Reads rows of a column into `scratch`."""
    stated = files.manifest.columns[column]
    piece = scratch.array((len(rows), *stated.shape[1:]), stated.dtype)
    files.read(column, rows.start, piece)
    return piece


def checksums(files: StoreFiles) -> dict[str, list[int]]:
    """Returns the checksums of the blocks of each column.

    Raises:
        RamifyError: an older store without checksums of blocks.
    """
    if files.manifest.blocks is None:
        raise RamifyError(f"{files.path} has no checksums of blocks, an older version wrote it", fix=REBUILD)
    return files.manifest.blocks


def check_block(files: StoreFiles, column: str, block: int, rows: NDArray[Any]) -> None:
    """Verifies the checksum of one block of a column.

    Raises:
        RamifyError: the checksum does not match.
    """
    if block_sum(rows) != checksums(files)[column][block]:
        first = block * BLOCK_ROWS
        what = f"rows {first} to {first + len(rows)} of column {column} are not what was written"
        raise damaged(files.path / files.name_of(column), what)


def damaged(path: Path, what: str) -> RamifyError:
    """Creates the error for a damaged file."""
    return RamifyError(f"{path}: damaged, {what}", fix=REBUILD)


class MappedFiles:
    """One `.npy` file per column."""

    form: Form = "mapped"

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest
        self._at = {name: _check_npy(path / f"{name}.npy", column) for name, column in manifest.columns.items()}

    def map(self, column: str) -> NDArray[Any]:
        """A column as a read-only memory map."""
        stated = self.manifest.columns[column]
        if not stated.shape[0]:
            return np.empty(stated.shape, stated.dtype)
        mapped = np.memmap(
            self.path / f"{column}.npy", stated.dtype, "r", offset=self._at[column], shape=stated.shape, order="C"
        )
        return np.asarray(mapped)  # a plain view: indexing np.memmap is slower

    def read(self, column: str, start: int, out: NDArray[Any]) -> None:
        """See `StoreFiles`."""
        row_bytes = out.nbytes // len(out) if len(out) else 0
        rest, at = memory_of(out), self._at[column] + start * row_bytes
        with (self.path / f"{column}.npy").open("rb", buffering=0) as file:
            while len(rest):
                count = os.preadv(file.fileno(), [rest], at)
                if not count:
                    raise damaged(self.path / f"{column}.npy", "it is truncated")
                rest, at = rest[count:], at + count

    def name_of(self, column: str) -> str:
        """See `StoreFiles`."""
        return f"{column}.npy"

    def close(self) -> None:
        """See `StoreFiles`; no file is open, and existing maps remain valid."""


def _check_npy(path: Path, stated: Column) -> int:
    """Offset of the values in a `.npy` file, after checking it against the manifest."""
    try:
        with path.open("rb") as file:
            major, _ = np.lib.format.read_magic(file)
            reader = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = reader(file)
            begin, size = file.tell(), os.fstat(file.fileno()).st_size
    except Exception as error:  # any exception of NumPy's parser on an invalid header
        raise RamifyError(f"{path}: damaged or missing ({error})", fix=REBUILD) from None
    if (shape, dtype, fortran) != (stated.shape, np.dtype(stated.dtype), False):
        raise damaged(path, f"holds {dtype} {shape} instead of {np.dtype(stated.dtype)} {stated.shape}")
    if size != begin + dtype.itemsize * math.prod(shape):
        raise damaged(path, f"its size, {size} bytes, does not match its header")
    return begin
