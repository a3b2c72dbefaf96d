"""Checkpoints: the encoder, one file per branch, and the state of training; all by name.

    step-00000500/
        encoder.safetensors, branches/NAME.safetensors        weights for inference (averaged if the run averages)
        training/encoder.safetensors, training/branches/...   weights being trained, and moments of the optimizer
        manifest.json                                         written last: step, recipe, references, all checksums

The files are safetensors and JSON only: loading a checkpoint executes no code. A checkpoint does not depend on the
placement: each rank writes its parts into one hidden folder, then rank zero adds the manifest and renames the folder;
the pointers `latest` and `best` (`ramify.checkpoint.pointers`) are updated afterwards. A rank reads only the parts it
hosts.
"""

import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

import ramify
from ramify.checkpoint.manifest import CheckpointManifest, CheckpointNames
from ramify.checkpoint.pointers import NAME as POINTERS
from ramify.checkpoint.pointers import after_failure, move_pointers, remove_unneeded, resolve
from ramify.errors import RamifyError
from ramify.files import content_sha256, read_json, sha256, sync, write_json, writing
from ramify.model.parts import branch_of_file, by_part, file_of_part, part_of_branch, parts_of, whole_names
from ramify.parallel.sync import on_all, on_rank_zero
from ramify.parallel.world import World
from ramify.store.manifest import Manifest
from ramify.untrusted import Name, check_version, has_file, parsed, regular_file

VERSION = 1
TRAINING = "training/"
"""The folder of a checkpoint with the files that only training needs."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint on disk whose manifest has been read.

    Attributes:
        path: its folder.
        manifest: `step`, `recipe`, `datasets` (references and statistics by dataset), `branches`, `trainer`, ...
    """

    path: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return int(self.manifest["step"])

    @property
    def branches(self) -> tuple[str, ...]:
        """The branches it holds."""
        return tuple(self.manifest["branches"])

    @property
    def datasets(self) -> dict[str, Manifest]:
        """The manifests of the stores that the model was trained on, by dataset.

        Raises:
            RamifyError: the manifests are damaged.
        """
        file = self.path / "manifest.json"
        return parsed(dict[Name, Manifest], self.manifest["datasets"], file, at="datasets.", fix=_USE_ANOTHER)

    def complete(self) -> dict[str, Any]:
        """The manifest, after checking that it contains all entries that a model and a run need.

        Raises:
            RamifyError: naming a missing entry.
        """
        parsed(CheckpointManifest, self.manifest, self.path / "manifest.json", fix=_USE_ANOTHER)
        return self.manifest

    def weights(self, branches: Collection[str] | None = None) -> dict[str, Tensor]:
        """Weights for inference under the names of a `MultiBranch`: of the encoder and of `branches` (None: all).

        Raises:
            RamifyError: there is no such branch, or a file is missing or damaged; `training` raises the same.
        """
        return self._gather("", branches)

    def training(self, branches: Collection[str] | None = None) -> dict[str, Tensor]:
        """Weights being trained and moments of the optimizer, the latter as `NAME/exp_avg`, `NAME/exp_avg_sq`; of the
        encoder and of `branches` (None: all that are trained; a fine-tuning run keeps other branches unchanged)."""
        if branches is None:
            files = self.manifest["files"]
            branches = [b for b in self.branches if TRAINING + file_of_part(part_of_branch(b)) in files]
        return self._gather(TRAINING, branches)

    def _gather(self, folder: str, branches: Collection[str] | None) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for part in parts_of(self.branches if branches is None else branches):
            tensors |= whole_names(part, self._load(folder + file_of_part(part)))
        return tensors

    def _load(self, name: str) -> dict[str, Tensor]:
        expected = self.manifest["files"].get(name)
        if expected is None or not (self.path / name).exists():
            raise RamifyError(f"checkpoint {self.path} lacks {name}", fix=_USE_ANOTHER)
        path = regular_file(self.path, name, fix=_USE_ANOTHER)
        if sha256(path) != expected:
            raise RamifyError(
                f"checkpoint file {path} is damaged: its checksum differs from the manifest", fix=_USE_ANOTHER
            )
        try:
            return load_file(path)
        except SafetensorError as error:
            raise RamifyError(f"checkpoint file {path} is damaged: {error}", fix=_USE_ANOTHER) from None


_SHARED = "the run directory must lie on a file system that all ranks share"
_USE_ANOTHER = "use another checkpoint of the run (`latest` or `best`), or a copy"


def open_checkpoint(path: Path) -> Checkpoint:
    """Reads the manifest of a checkpoint folder; the path may end in a pointer, e.g. `RUN/checkpoints/best`.

    Raises:
        RamifyError: there is no checkpoint, or it is damaged or of a newer version.
    """
    path = resolve(path)
    if not has_file(path, "manifest.json", fix=_USE_ANOTHER):
        raise RamifyError(f"no checkpoint at {path}", fix="a run's checkpoints are in RUN/checkpoints; train first")
    manifest = read_json(path / "manifest.json")
    if not isinstance(manifest, dict) or manifest.get("format") != "ramify-checkpoint":
        raise RamifyError(f"{path} is not a checkpoint: its manifest.json has another format")
    check_version(manifest, VERSION, f"checkpoint {path}")
    if manifest.get("checksum") != _checksum(manifest):
        raise RamifyError(f"{path / 'manifest.json'} is damaged: it differs from its checksum", fix=_USE_ANOTHER)
    parsed(CheckpointNames, manifest, path / "manifest.json", fix=_USE_ANOTHER)
    return Checkpoint(path, manifest)


def save_checkpoint(
    folder: Path,
    step: int,
    weights: Mapping[str, Tensor],
    training: Mapping[str, Tensor],
    manifest: Mapping[str, Any],
    *,
    best: bool,
    ranks: World | None = None,
    permit: Callable[[], None] = lambda: None,
) -> Path:
    """Writes `step-XXXXXXXX` into `folder` (if it exists, only its manifest is updated: the tensors of a step do not
    change), updates the pointers, and removes checkpoints without a pointer and incomplete files of killed processes
    (a run has one writer, or several that write together).

    Args:
        folder: the run's `checkpoints` folder, on a file system shared by all ranks.
        step: number of optimizer steps.
        weights, training: the tensors that this rank writes, under the names of a `MultiBranch`; exactly one rank
            passes each part (encoder, branch), unsharded.
        manifest: entries of manifest.json besides format, version, step, branches and checksums; plain data with
            text keys; those of rank zero are used.
        best: whether this is the best checkpoint so far.
        ranks: the processes that call this together; None for a single process.
        permit: called on rank zero before anything is written, before the checkpoint becomes visible and before
            anything is removed; raises where these processes may no longer write.

    Raises:
        RamifyError: on all ranks if one fails, e.g. because the disk is full; earlier checkpoints are unchanged. Or
            the error that `permit` raises.
    """
    ranks = ranks or World()
    target = folder / f"step-{step:08d}"

    def update_pointers() -> None:
        permit()
        tidy(folder, **dict.fromkeys(("best", "latest") if best else ("latest",), target.name))

    try:
        on_rank_zero(ranks, permit)
        if on_rank_zero(ranks, target.exists):
            on_rank_zero(ranks, lambda: _renew_manifest(target, manifest))
        else:
            about = {"step": step} | dict(manifest)
            _write_together(target, {"": weights, TRAINING: training}, about, ranks, permit)
        on_rank_zero(ranks, update_pointers)
    except Exception:  # on all ranks
        on_rank_zero(ranks, permit)  # another writer may have removed files of these ranks
        raise
    return target


def _write_together(
    target: Path,
    tensors: Mapping[str, Mapping[str, Tensor]],
    manifest: dict[str, Any],
    ranks: World,
    permit: Callable[[], None],
) -> None:
    """Every rank writes its tensors (by folder) into a hidden folder next to `target`, which rank zero then renames."""
    # a random name: process numbers are not unique over machines
    partial = target.with_name(f".{target.name}.partial-{on_rank_zero(ranks, lambda: secrets.token_hex(4))}")

    def finish() -> None:
        permit()
        _finish(target, partial, checksums, manifest)

    try:
        on_rank_zero(ranks, lambda: _make_empty(target, partial))
        checksums = on_all(ranks, lambda: _write_parts(target, partial, tensors))
        on_rank_zero(ranks, finish)
    except BaseException:
        if ranks.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise


def _writing(target: Path, name: str = "") -> AbstractContextManager[None]:
    """Context for writing a file of the checkpoint `target`, or `target` itself; errors name it."""
    remains, fix = after_failure(target.parent.parent)
    return writing(target / name, f"nothing was left behind, {remains}", fix)


def _make_empty(target: Path, partial: Path) -> None:
    with _writing(target):
        partial.mkdir()
        for folder in ("branches", "training", "training/branches"):
            (partial / folder).mkdir()  # without parents: a run that has just been moved is not made again


def _write_parts(target: Path, partial: Path, tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, str]:
    """Groups tensors into encoder and branches by their names and writes one file each; returns the checksums."""
    if not partial.is_dir():
        raise RamifyError(f"{partial}, which the first rank has made, is not visible to this one", fix=_SHARED)
    parts: dict[str, dict[str, Tensor]] = {}
    for folder, named in tensors.items():
        for part, tensors_of_part in by_part(named).items():
            parts[folder + file_of_part(part)] = {n: t.detach().cpu().contiguous() for n, t in tensors_of_part.items()}
    checksums = {}
    for name in list(parts):
        with _writing(target, name):
            content = save(parts.pop(name))  # errors of `save_file` do not state that the disk is full
            (partial / name).write_bytes(content)
            sync(partial / name)
            checksums[name] = hashlib.sha256(content).hexdigest()
    return checksums


def _finish(target: Path, partial: Path, written: list[dict[str, str]], manifest: dict[str, Any]) -> None:
    """Adds the manifest and renames `partial` to `target`.

    Raises:
        RamifyError: a file of another rank is not visible here.
    """
    for rank, names in enumerate(written):
        if unseen := [name for name in names if not (partial / name).is_file()]:
            raise RamifyError(
                f"rank {rank} wrote {unseen[0]} into {partial}, but it is not visible to the first rank", fix=_SHARED
            )
    files = {name: checksum for names in written for name, checksum in sorted(names.items())}
    branches = sorted(branch for branch in map(branch_of_file, files) if branch is not None)
    about = {"format": "ramify-checkpoint", "version": VERSION, "branches": branches} | manifest
    about |= {"files": dict(sorted(files.items())), "ramify": ramify.__version__}
    with _writing(target, "manifest.json"):
        write_json(partial / "manifest.json", about | {"checksum": _checksum(about)})
    with _writing(target):
        for folder in (*(f for f in partial.rglob("*") if f.is_dir()), partial):
            sync(folder)
        os.rename(partial, target)
        sync(target.parent)


def _renew_manifest(target: Path, manifest: Mapping[str, Any]) -> None:
    """Updates the manifest atomically with newer entries: the evaluation of the step, the recipe of the resumed run."""
    before = open_checkpoint(target).manifest
    about = before | dict(manifest)
    if about != before:
        with _writing(target, "manifest.json"):
            write_json(target / "manifest.json", about | {"checksum": _checksum(about)})


def tidy(folder: Path, **moved: str) -> None:
    """Updates pointers in `folder`, then removes checkpoints without a pointer and incomplete files of killed writers.
    The caller must be the only writer, and must have read the checkpoint from which it resumes.

    Raises:
        RamifyError: the folder cannot be written.
    """
    remains, fix = after_failure(folder.parent)
    with writing(folder / POINTERS, remains, fix):
        move_pointers(folder, **moved)
    with writing(folder, remains, fix):
        remove_unneeded(folder)


def _checksum(manifest: Mapping[str, Any]) -> str:
    """Checksum of the content of a manifest without its entry `checksum`."""
    return content_sha256({key: value for key, value in manifest.items() if key != "checksum"})
