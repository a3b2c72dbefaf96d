"""Opening of the files of a store in either form."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ramify.store.adios import AdiosFiles
from ramify.store.files import MappedFiles, StoreFiles, check_manifest, form_of
from ramify.store.manifest import read_manifest


@contextmanager
def open_files(path: Path | str) -> Iterator[StoreFiles]:
    """Opens the files of the store in folder `path`, in either form, and checks types, shapes and sizes.

    Raises:
        RamifyError: no store, a newer version, or damaged.
    """
    path = Path(path)
    manifest = read_manifest(path)
    check_manifest(path, manifest)
    files: StoreFiles = AdiosFiles(path, manifest) if form_of(path) == "adios" else MappedFiles(path, manifest)
    try:
        yield files
    finally:
        files.close()
