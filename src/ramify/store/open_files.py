"""Opens the files of a store, of whichever form they are."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ramify.store.adios import AdiosFiles
from ramify.store.files import MappedFiles, StoreFiles, check_manifest, form_of
from ramify.store.manifest import read_manifest


@contextmanager
def open_files(path: Path | str) -> Iterator[StoreFiles]:
    """The files of the store in folder `path`, of whichever form it is; types, shapes and sizes are compared.

    Raises:
        RamifyError: no store there, a newer version, or damaged.
    """
    path = Path(path)
    manifest = read_manifest(path)
    check_manifest(path, manifest)
    files: StoreFiles = AdiosFiles(path, manifest) if form_of(path) == "adios" else MappedFiles(path, manifest)
    try:
        yield files
    finally:
        files.close()
