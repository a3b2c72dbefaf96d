"""From original files to a store: read, screen, split, fit reference energies, write; in one piece or not at all."""

import platform
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

import ramify
from ramify.data.adios import ADIOS_FILES
from ramify.data.assemble import Assembled, assemble
from ramify.data.columns import COLUMNS
from ramify.data.convert import to_adios
from ramify.data.duplicates import earlier_equals, equal_structures
from ramify.data.gates import DUPLICATE, OUTLIER, detail, energy_deviations
from ramify.data.inputs import fingerprint, source_files
from ramify.data.manifest import REBUILD, Consistency, Manifest, SourceFile, Versions
from ramify.data.replace import clear_leftovers, replaced_store
from ramify.data.split import check_given_split, split_by_group
from ramify.data.staging import Staged, Staging
from ramify.data.store_files import Form, open_files
from ramify.errors import RamifyError
from ramify.files import write_json
from ramify.quarantine import Quarantine
from ramify.sources import formats
from ramify.sources.base import DatasetOptions
from ramify.structures import Split, Structures

Progress = Callable[[int], None]
"""Hears of every chunk: how many structures more have been read."""


class Described(Protocol):
    """A store, opened or not: what tells whether it is the one that a recipe asks for."""

    path: Path
    manifest: Manifest


FILES = {"manifest.json", "names.json", "quarantine.jsonl", *ADIOS_FILES, *(f"{column}.npy" for column in COLUMNS)}
"""What a store's folder may hold; a folder with anything else in it is never replaced."""


def prepare_dataset(
    name: str,
    options: DatasetOptions,
    stores: Path,
    *,
    base: Path,
    force: bool = False,
    form: Form = "mapped",
    progress: Progress | None = None,
) -> Manifest:
    """Makes the store `stores / name`, or finds it made from the same files with the same options.

    Memory: a chunk, and at the most about 130 bytes per structure (1.3 GB for ten million), none per atom. Disk: twice
    the size of the store while it is being made.

    Args:
        name: of the dataset.
        options: its recipe entry.
        stores: folder of stores; made if need be.
        base: folder that relative paths in the recipe start from.
        force: make it anew even if there is one, whatever it was made from.
        form: how its columns are written; one that exists already in the other form is left as it is.
        progress: hears how many structures more have been read.

    Raises:
        RamifyError: a source cannot be read, forces contradict energies, no split can be made, the disk is full, or
            there is a store made from other files or options and `force` is not given. Nothing half-written is left.
    """
    files = source_files(name, options, base)
    target = stores / name
    clear_leftovers(target)
    if target.exists():
        _require_store(target, force)
    sources = [fingerprint(file) for file, _ in files]
    if target.exists() and not force:
        with open_files(target) as store:
            check_matches(store, options)
            _check_sources(store, sources)
            return store.manifest
    with replaced_store(target) as folder:
        manifest = _build(name, options, files, sources, folder, progress or (lambda structures: None))
        if form == "adios":
            to_adios(folder, manifest)
        return manifest


def check_matches(store: Described, options: DatasetOptions) -> None:
    """Refuses a store that was prepared with other options than the recipe now states.

    Raises:
        RamifyError: naming each key, what the store was prepared with and what the recipe says.
    """
    stated = options.model_dump(mode="json")
    try:
        used = type(options).model_validate(store.manifest.options).model_dump(mode="json")
    except ValidationError:  # another format, or keys that it no longer has
        used = store.manifest.options
    differing = [key for key in (*stated, *(k for k in used if k not in stated)) if stated.get(key) != used.get(key)]
    if differing:
        changes = "; ".join(f"{key}: prepared with {used.get(key)!r}, now {stated.get(key)!r}" for key in differing)
        raise RamifyError(
            f"the store {store.path} was prepared with other options ({changes})",
            fix="run `ramify prepare RECIPE --force` to make it anew, or name another `stores` folder",
        )


def _check_sources(store: Described, sources: list[SourceFile]) -> None:
    """Compares contents: files may have moved."""
    before = [(s.bytes, s.sha256) for s in store.manifest.sources]
    if before == [(s.bytes, s.sha256) for s in sources]:
        return
    known = {s.sha256 for s in store.manifest.sources}
    changed = ", ".join(s.path for s in sources if s.sha256 not in known) or "their number or order"
    raise RamifyError(
        f"the store {store.path} was prepared from other files (changed: {changed})",
        fix="run `ramify prepare RECIPE --force` to make it anew, or name another `stores` folder",
    )


def _build(
    name: str,
    options: DatasetOptions,
    files: list[tuple[Path, Split]],
    sources: list[SourceFile],
    folder: Path,
    progress: Progress,
) -> Manifest:
    """Writes a whole store into `folder`, its manifest last."""
    format_ = formats()[options.format]
    stage = folder / "staging"
    stage.mkdir()
    with Quarantine(folder / "quarantine.jsonl") as quarantine:
        staged, consistency = _stage(name, options, files, stage, quarantine, progress)
        keep = _screen_together(staged, options, quarantine)
        dropped = dict(sorted(quarantine.counts.items()))
        if not keep.any():
            reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "the files hold none"
            raise RamifyError(f"dataset '{name}': no structure is left ({reasons})", fix="check `path` and `gates`")
        split, moved = _split(name, options, staged, keep)
    made: Assembled = assemble(staged, split, folder, reference_ridge=options.reference_ridge)
    manifest = Manifest(
        dataset=name,
        theory=options.theory or format_.theory,
        options=options.model_dump(mode="json"),
        splits=made.splits,
        elements=made.elements,
        labels=made.labels,
        references=made.references,
        statistics=made.statistics,
        consistency=consistency,
        dropped=dropped,
        read=int(keep.sum()) + sum(dropped.values()),
        moved_to_train=moved,
        shared_groups=made.shared_groups,
        sources=sources,
        columns=made.columns,
        blocks=made.blocks,
        names_sha256=made.names_sha256,
        versions=Versions(ramify=ramify.__version__, numpy=np.__version__, python=platform.python_version()),
    )
    shutil.rmtree(stage)
    write_json(folder / "manifest.json", manifest.model_dump(mode="json"))
    return manifest


def _stage(
    name: str,
    options: DatasetOptions,
    files: list[tuple[Path, Split]],
    folder: Path,
    quarantine: Quarantine,
    progress: Progress,
) -> tuple[Staged, Consistency]:
    """Reads every file, and checks that its forces belong to its energies."""
    staging = Staging(folder, options.gates, quarantine)
    try:
        for file, split in files:
            for chunk in formats()[options.format].read(file, options, quarantine):
                staging.add(_as_stated(name, options, chunk, file, split))
                progress(len(chunk))
        return staging.finish(), staging.slope.check(name)
    finally:
        staging.close()


def _as_stated(name: str, options: DatasetOptions, chunk: Structures, file: Path, split: Split) -> Structures:
    """The chunk with the sign and the split that the recipe states."""
    if options.forces_sign == -1:
        chunk = replace(chunk, forces=-chunk.forces)
    if split == Split.NONE:
        return chunk
    other = np.flatnonzero((chunk.split != Split.NONE) & (chunk.split != split))
    if len(other):
        own = Split(int(chunk.split[other[0]])).name.lower()
        raise RamifyError(
            f"datasets.{name}.path puts {file} into the {split.name.lower()} split, but the file itself puts "
            f"{chunk.name(int(other[0]))} into {own}",
            fix="name the file without a split, its own is then honoured",
        )
    return replace(chunk, split=np.full(len(chunk), split, np.uint8))


def _screen_together(staged: Staged, options: DatasetOptions, quarantine: Quarantine) -> NDArray[np.bool_]:
    """(S,) what is left after the gates that compare structures with one another."""
    keep = np.ones(len(staged), np.bool_)
    if options.gates.duplicates == "drop":
        earlier = earlier_equals(
            staged.scalars["sequence"],
            staged.scalars["projection"],
            staged.n_atoms,
            partial(equal_structures, staged, staged.offsets),
        )
        for row in np.flatnonzero(earlier >= 0).tolist():
            quarantine.add(staged.name(row), DUPLICATE, f"equal to {staged.name(int(earlier[row]))}")
        keep = earlier < 0
    rows = np.flatnonzero(keep)
    limit = options.gates.energy_outlier
    per_atom = staged.columns.map("energy")[rows] / staged.n_atoms[rows]
    deviations = energy_deviations(per_atom, staged.scalars["composition"][rows], limit)
    for at in np.flatnonzero(deviations > limit).tolist():
        quarantine.add(staged.name(int(rows[at])), OUTLIER, detail(OUTLIER, float(deviations[at]), options.gates))
    keep[rows] = deviations <= limit
    return keep


def _split(
    name: str, options: DatasetOptions, staged: Staged, keep: NDArray[np.bool_]
) -> tuple[NDArray[np.uint8], list[str]]:
    """(S,) the split of each structure, NONE for those not kept, and the groups moved to train."""
    rows = np.flatnonzero(keep)
    given = staged.scalars["split"][rows]
    elements = staged.elements[staged.scalars["composition"][rows]]
    moved: list[str] = []
    if given.any():
        check_given_split(given, elements, dataset=name, name=lambda row: staged.name(int(rows[row])))
    else:
        given, moved = split_by_group(
            staged.columns.map("group")[rows],
            staged.groups,
            elements,
            fractions={str(part): fraction for part, fraction in options.split.items()},
            seed=options.split_seed,
            dataset=name,
        )
    split = np.full(len(staged), Split.NONE, np.uint8)
    split[rows] = given
    return split, moved


def _require_store(target: Path, force: bool) -> None:
    """Only stores, whole or damaged, are ever replaced."""
    if not target.is_dir() or {entry.name for entry in target.iterdir()} - FILES:
        raise RamifyError(f"{target} is in the way and is not a store", fix="move it, or name another `stores` folder")
    if not force and not (target / "manifest.json").is_file():
        raise RamifyError(f"{target} is a store without its manifest", fix=REBUILD)
