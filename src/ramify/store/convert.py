"""Conversion of a store to the other form, with the same manifest and bitwise equal values."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ramify.errors import RamifyError
from ramify.files import write_json
from ramify.store.adios import write_adios
from ramify.store.blocks import BLOCK_ROWS, block_sum
from ramify.store.columns import NpyFile
from ramify.store.files import (
    ADIOS_FILE,
    Form,
    MappedFiles,
    Scratch,
    StoreFiles,
    damaged,
    pieces,
    portions,
    read_rows,
    verify,
    verify_names,
)
from ramify.store.manifest import Manifest
from ramify.store.open_files import open_files
from ramify.store.prefetch import Prefetcher
from ramify.store.replace import clear_leftovers, replaced_store
from ramify.untrusted import has_file

Progress = Callable[[int], None]
"""Called for each piece with its number of bytes."""

READERS = 2
"""Threads that read and verify for one writing thread: ADIOS2 holds the GIL while it writes, so that each of them
completes only one call in that time."""
READ_AHEAD = 3
"""Maximum number of pieces that are read but not yet written."""


def convert_store(source: Path, to: Form, target: Path | None = None, progress: Progress = lambda done: None) -> Path:
    """Writes the store `source` in the form `to`.

    All checksums are verified, so that damaged data are not copied.

    Args:
        source: folder of a store.
        to: `mapped` or `adios`.
        target: folder of the new store, which must not exist; None replaces `source`.
        progress: called with the number of bytes written.

    Returns:
        the folder of the new store.

    Raises:
        RamifyError: no store, damaged, already of this form, `target` exists, or the disk is full. `source` is then
            unchanged, and no partial store remains.
    """
    if target is not None and target.exists():
        raise RamifyError(f"{target} exists already; nothing is overwritten", fix="choose another folder")
    clear_leftovers(source)
    with open_files(source) as files:
        if files.form == to:
            raise RamifyError(f"the store {source} already has the form `{to}`", fix="there is nothing to do")
        with replaced_store(source if target is None else target) as folder:
            verify_names(files)
            for name in ("names.json", "quarantine.jsonl"):
                if has_file(source, name):
                    shutil.copyfile(source / name, folder / name)
            copy_columns(files, folder, to, progress)
    return source if target is None else target


def to_adios(folder: Path, manifest: Manifest) -> None:
    """Converts the columns of a store that is being written to the form `adios`, in place."""
    copy_columns(MappedFiles(folder, manifest), folder, "adios")
    for name in manifest.columns:
        (folder / f"{name}.npy").unlink()


def copy_columns(files: StoreFiles, folder: Path, to: Form, progress: Progress = lambda done: None) -> Manifest:
    """Writes the columns of a store and its manifest into `folder` in the form `to`.

    Raises:
        RamifyError: a column does not match the manifest.
    """
    manifest = files.manifest
    if manifest.blocks is None:  # an older store without checksums of blocks: verified as a whole
        verify(files)
    blocks = (_write_adios if to == "adios" else _write_mapped)(files, folder, progress)
    if manifest.blocks is not None and (wrong := [name for name in blocks if blocks[name] != manifest.blocks[name]]):
        raise damaged(files.path / files.name_of(wrong[0]), f"the checksum of column {wrong[0]} is not the manifest's")
    manifest = manifest.model_copy(update={"blocks": blocks})
    write_json(folder / "manifest.json", manifest.to_json())
    return manifest


def _write_adios(files: StoreFiles, folder: Path, progress: Progress) -> dict[str, list[int]]:
    """Writes the form `adios`; returns the checksums of the blocks. Threads read and verify during writing."""
    sums: dict[str, list[int]] = {name: [] for name in files.manifest.columns}
    plans = [(name, rows) for name in sums for rows in portions(files, name)]
    memory = [Scratch() for _ in range(READ_AHEAD + 1)]  # for pieces being read or waiting, and the one being written

    def read(plan: tuple[int, tuple[str, range]]) -> tuple[int, NDArray[Any], list[int]]:
        number, (name, rows) = plan
        piece = read_rows(files, name, rows, memory[number % len(memory)])
        return rows.start, piece, [block_sum(piece[k : k + BLOCK_ROWS]) for k in range(0, len(piece), BLOCK_ROWS)]

    with Prefetcher(enumerate(plans), read, workers=READERS, ahead=READ_AHEAD) as ready:

        def column(name: str) -> Iterator[tuple[int, NDArray[Any]]]:
            for _ in portions(files, name):
                start, piece, found = next(ready)
                sums[name] += found
                yield start, piece
                progress(piece.nbytes)

        write_adios(folder / ADIOS_FILE, files.manifest, {name: column(name) for name in sums})
    return sums


def _write_mapped(files: StoreFiles, folder: Path, progress: Progress) -> dict[str, list[int]]:
    blocks, scratch = {}, Scratch()
    for name, stated in files.manifest.columns.items():
        file = NpyFile(folder / f"{name}.npy", stated.dtype, stated.shape)
        try:
            for _, piece in pieces(files, name, scratch):
                file.append(piece)
                progress(piece.nbytes)
            if file.finish() != stated:
                raise damaged(files.path / files.name_of(name), f"the checksum of column {name} is not the manifest's")
        finally:
            file.close()
        blocks[name] = file.blocks
    return blocks
