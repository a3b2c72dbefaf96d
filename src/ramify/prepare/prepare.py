"""Preparation of a store from original files: read, screen, split, fit reference energies, write atomically."""

import platform
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import ramify
from ramify.errors import RamifyError
from ramify.files import write_json
from ramify.labels import further
from ramify.prepare.assemble import Assembled, assemble
from ramify.prepare.checks.cross_checks import compare
from ramify.prepare.checks.plausibility import findings
from ramify.prepare.inputs import distinct_names, fingerprint, source_files, with_companions
from ramify.prepare.isolated_atoms import check_stated, null_space, reference_file, stated_references
from ramify.prepare.limit import random_subset
from ramify.prepare.read import cut, read_parts
from ramify.prepare.split import Divided, ToSplit, divide
from ramify.prepare.staging import Staged, Staging
from ramify.prepare.workers import Workers
from ramify.references import Chunks, Fit, fit_references, stated_fit
from ramify.sources.base import DatasetOptions
from ramify.sources.formats import formats
from ramify.sources.quarantine import Quarantine
from ramify.sources.where import BEYOND_LIMIT
from ramify.store.adios import ADIOS_FILES
from ramify.store.columns import COLUMNS, STATE_COLUMNS
from ramify.store.convert import to_adios
from ramify.store.files import Form
from ramify.store.manifest import (
    REBUILD,
    VERSION,
    WITHOUT_STATES,
    Consistency,
    Described,
    Manifest,
    SourceFile,
    Versions,
    check_matches,
)
from ramify.store.open_files import open_files
from ramify.store.replace import clear_leftovers, replaced_store
from ramify.structures import Split

Progress = Callable[[int], None]
"""Called for each chunk with its number of structures."""


FILES = {
    *("manifest.json", "names.json", "quarantine.jsonl", *ADIOS_FILES),
    *(f"{column}.npy" for column in COLUMNS | STATE_COLUMNS),
}
"""Possible content of the folder of a store; a folder with other content is never replaced."""


def prepare_dataset(
    name: str,
    options: DatasetOptions,
    stores: Path,
    *,
    base: Path,
    force: bool = False,
    form: Form = "mapped",
    workers: Workers | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Prepares the store `stores / name`, unless it was already prepared from the same files with the same options.

    Memory: a chunk (with several workers, two parts of a file each, about 100 MB), and at most about 130 bytes per
    structure (1.3 GB for ten million), none per atom. Disk: temporarily twice the size of the store.

    Args:
        name: name of the dataset.
        options: its recipe entry.
        stores: folder of stores; created if necessary.
        base: base folder of relative paths in the recipe.
        force: replace an existing store, whatever it was prepared from.
        form: form of the columns; an existing store of the other form is kept unchanged.
        workers: processes that read; None for this process alone. The store does not depend on it.
        progress: called with the number of structures read.

    Raises:
        RamifyError: a source cannot be read, forces contradict energies, no split is possible, the disk is full, or
            the existing store has other files or options and `force` is not set. No partial store remains.
    """
    files = source_files(name, options, base)
    target = stores / name
    clear_leftovers(target)
    if target.exists():
        _require_store(target, force)
    workers = workers or Workers()
    if target.exists() and not force:
        with open_files(target) as store:
            check_matches(store, options)
            inputs = [*with_companions(options, files), *reference_file(options, base)]
            _check_sources(store, list(workers.results(fingerprint, inputs)))
            return store.manifest
    with replaced_store(target) as folder:
        manifest = _build(name, options, files, base, folder, progress or (lambda structures: None), workers)
        if form == "adios":
            to_adios(folder, manifest)
        return manifest


def _check_sources(store: Described, sources: list[SourceFile]) -> None:
    """Compares checksums of files, whose paths may have changed."""
    before = [(s.bytes, s.sha256) for s in store.manifest.sources]
    if before == [(s.bytes, s.sha256) for s in sources]:
        return
    known = {s.sha256 for s in store.manifest.sources}
    changed = ", ".join(s.path for s in sources if s.sha256 not in known) or "their number or order"
    raise RamifyError(
        f"the store {store.path} was prepared from other files (changed: {changed})",
        fix="run `ramify prepare RECIPE --force` to prepare it again, or set another `stores` folder",
    )


def _build(
    name: str,
    options: DatasetOptions,
    files: list[tuple[Path, Split]],
    base: Path,
    folder: Path,
    progress: Progress,
    workers: Workers,
) -> Manifest:
    """Writes a whole store into `folder`, its manifest last."""
    inputs = [*with_companions(options, files), *reference_file(options, base)]
    sources = [workers.submit(fingerprint, file) for file in inputs]  # computed concurrently
    stage = folder / "staging"
    stage.mkdir()
    with Quarantine(folder / "quarantine.jsonl") as quarantine:
        staged, consistency = _stage(name, options, files, stage, quarantine, progress, workers)
        compared = compare(staged, options.gates, quarantine)
        keep = _limited(options, staged, compared.keep, quarantine)
        dropped = dict(sorted(quarantine.counts.items()))
        if not keep.any():
            reasons = quarantine.summary() or "the files hold none"
            raise RamifyError(
                f"dataset '{name}': no structure is left ({reasons})",
                fix="check `path`, `where` and `gates`, or the first record",
            )
        doubts = findings(name, staged, keep, dropped)
        split, divided = _divided(name, options, staged, keep)
    made: Assembled = assemble(staged, split, folder, fit=_fit_of(name, options, base), threads=workers.count)
    manifest = Manifest(
        version=VERSION if made.states else WITHOUT_STATES,
        dataset=name,
        theory=options.theory or formats()[options.format].theory,
        options=options.model_dump(mode="json"),
        splits=made.splits,
        elements=made.elements,
        labels=made.labels,
        references=made.references,
        statistics=made.statistics,
        consistency=consistency,
        dropped=dropped,
        states=made.states,
        conflicts=compared.conflicts,
        findings=(*doubts, *compared.findings, *divided.findings, *null_space(options, made.references)),
        remarks=dict(sorted(quarantine.remarks.items())),
        read=int(keep.sum()) + sum(dropped.values()),
        moved_to_train=divided.moved,
        shared_groups=made.shared_groups,
        sources=[source() for source in sources],
        columns=made.columns,
        blocks=made.blocks,
        names_sha256=made.names_sha256,
        versions=Versions(ramify=ramify.__version__, numpy=np.__version__, python=platform.python_version()),
    )
    shutil.rmtree(stage)
    write_json(folder / "manifest.json", manifest.to_json())
    return manifest


def _fit_of(name: str, options: DatasetOptions, base: Path) -> Callable[[Chunks, NDArray[np.integer]], Fit]:
    """How the reference energies of a dataset are found."""
    stated = stated_references(name, options, base)
    if stated is None:
        return partial(fit_references, ridge=options.reference_ridge)

    def fit(chunks: Chunks, elements: NDArray[np.integer]) -> Fit:
        check_stated(name, stated, elements)
        return stated_fit(chunks, elements, stated)

    return fit


def _stage(
    name: str,
    options: DatasetOptions,
    files: list[tuple[Path, Split]],
    folder: Path,
    quarantine: Quarantine,
    progress: Progress,
    workers: Workers,
) -> tuple[Staged, Consistency]:
    """Reads all files, and checks the consistency of forces and energies."""
    names = distinct_names([file for file, _ in files])
    parts = (
        part for (file, split), own in zip(files, names, strict=True) for part in cut(name, options, file, own, split)
    )
    staging = Staging(folder)
    try:
        for notes, chunk in read_parts(parts, workers, folder):
            quarantine.take_over(notes)
            if chunk is not None:
                staging.add(chunk)
                progress(chunk.read)
        return staging.finish(), staging.slope.check(name)
    finally:
        staging.close()


def _limited(
    options: DatasetOptions, staged: Staged, keep: NDArray[np.bool_], quarantine: Quarantine
) -> NDArray[np.bool_]:
    """(S,) of the structures that passed all gates, those within `limit`; the others are counted."""
    rows = np.flatnonzero(keep)
    if options.limit is None or len(rows) <= options.limit:
        return keep
    place, origin = (staged.column(column)[rows] for column in ("row", "origin"))
    chosen = random_subset(place, origin, staged.origins, options.limit, options.split_seed)
    others = rows[~chosen]
    quarantine.add(f"{staged.name(int(others[0]))} and others", BEYOND_LIMIT, count=len(others))
    within = np.zeros_like(keep)
    within[rows[chosen]] = True
    return within


def _divided(
    name: str, options: DatasetOptions, staged: Staged, keep: NDArray[np.bool_]
) -> tuple[NDArray[np.uint8], Divided]:
    """(S,) split of each structure, NONE for those not kept; and the other results of splitting."""
    rows = np.flatnonzero(keep)
    structures = ToSplit(
        dataset=name,
        group=staged.column("group")[rows],
        origin=staged.column("origin")[rows],
        row=staged.column("row")[rows],
        groups=staged.groups,
        origins=staged.origins,
        elements=staged.elements[staged.scalars["composition"][rows]],
        given=staged.scalars["split"][rows],
    )
    found = divide(structures, options.split, options.split_seed)
    split = np.full(len(staged), Split.NONE, np.uint8)
    split[rows] = found.split
    return split, found


def _require_store(target: Path, force: bool) -> None:
    """Raises an error if `target` is not a store (complete or damaged), because only stores are replaced."""
    if not target.is_dir() or {entry.name for entry in target.iterdir()} - FILES - {
        f"{label}.npy" for label in further()
    }:
        raise RamifyError(f"{target} exists and is not a store", fix="move it, or set another `stores` folder")
    if not force and not (target / "manifest.json").is_file():
        raise RamifyError(f"{target} is a store without its manifest", fix=REBUILD)
