"""Original files of a dataset."""

import glob
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from ramify.errors import RamifyError
from ramify.files import sha256
from ramify.sources.base import DatasetOptions
from ramify.sources.formats import formats
from ramify.store.manifest import SourceFile
from ramify.structures import Split


def source_files(dataset: str, options: DatasetOptions, base: Path) -> list[tuple[Path, Split]]:
    """Files selected by `path`, with the split of each (NONE if the recipe does not state one).

    Args:
        dataset: name, for messages.
        options: its recipe entry; `*` in a path matches any part of a name, matches are sorted by name.
        base: base folder of relative paths.

    Raises:
        RamifyError: a pattern without a match, a missing file, a folder, or a file named twice.
    """
    if isinstance(options.path, dict):
        named = [(p, Split[s.upper()]) for s, paths in options.path.items() for p in _listed(paths)]
    else:
        named = [(p, Split.NONE) for p in _listed(options.path)]
    files: list[tuple[Path, Split]] = []
    folder = formats()[options.format].folder
    for pattern, split in named:
        files += [(file, split) for file in _expand(dataset, pattern, base, folder)]
    if not files:
        raise RamifyError(f"datasets.{dataset}.path names no file", fix="state at least one file")
    seen: set[Path] = set()
    for file, _ in files:
        if file.resolve() in seen:
            raise RamifyError(f"datasets.{dataset}.path names {file} twice", fix="name every file once")
        seen.add(file.resolve())
    return files


def with_companions(options: DatasetOptions, files: list[tuple[Path, Split]]) -> list[Path]:
    """The files and their companion files, each once."""
    companions = formats()[options.format].companions
    listed = [part for file, _ in files for part in (file, *(companions(file, options) if companions else ()))]
    return list(dict.fromkeys(listed))


def distinct_names(files: Sequence[Path]) -> list[str]:
    """Unique names of the files for `origin` and the quarantine: the file name with as many parent folders as
    necessary."""
    names = [file.name for file in files]
    for depth in range(2, max((len(file.parts) for file in files), default=0) + 1):
        shared = {name for name, count in Counter(names).items() if count > 1}
        names = ["/".join(file.parts[-depth:]) if n in shared else n for n, file in zip(names, files, strict=True)]
    return names


def fingerprint(file: Path) -> SourceFile:
    """Size and checksum of a source file."""
    return SourceFile(path=str(file), bytes=file.stat().st_size, sha256=sha256(file))


def _listed(paths: str | list[str]) -> list[str]:
    return [paths] if isinstance(paths, str) else paths


def _expand(dataset: str, pattern: str, base: Path, folder: str | None) -> Iterator[Path]:
    """Files that match a pattern; a folder represents all files named `folder` in it, at any depth."""
    where = base / Path(pattern).expanduser()
    if "*" in pattern:
        found = sorted(Path(f) for f in glob.glob(glob.escape(str(where)).replace("[*]", "*"), recursive=True))
        files = [f for f in found if f.is_file()]
        if folder is not None:
            files = sorted({f for f in files if f.name == folder} | {f for d in found for f in d.rglob(folder)})
        if not files:
            raise RamifyError(f"datasets.{dataset}.path: no file matches {where}", fix="correct `path`")
        yield from files
    elif where.is_dir() and folder is not None:
        inside = sorted(where.rglob(folder))
        if not inside:
            raise RamifyError(f"datasets.{dataset}.path: {where} holds no {folder}", fix="correct `path`")
        yield from inside
    elif where.is_dir():
        raise RamifyError(f"datasets.{dataset}.path: {where} is a folder, not a file", fix=f"path: {pattern}/*")
    elif not where.is_file():
        raise RamifyError(f"datasets.{dataset}.path: {where} does not exist", fix="correct `path`, or get the file")
    else:
        yield where
