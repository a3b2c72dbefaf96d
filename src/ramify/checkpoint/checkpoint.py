"""Checkpoints: the encoder, one file per branch, and what training needs to go on; all by name.

    step-00000500/
        encoder.safetensors, branches/NAME.safetensors        the weights to use (averaged where the run averages)
        training/encoder.safetensors, training/branches/...   the weights being trained and AdamW's moments
        manifest.json                                         written last: step, recipe, references, all checksums

Only safetensors and JSON: loading a checkpoint runs no code. Nothing in it depends on how the run was spread over
processes: each rank writes the parts it is given into one hidden folder, and when all have, the first rank adds the
manifest and renames the folder; the pointers `latest` and `best` (`ramify.checkpoint.pointers`) are moved afterwards. A
rank reads only the parts it hosts."""

import hashlib
import json
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
from ramify.files import read_json, sha256, sync, write_json, writing
from ramify.model.parts import branch_of_file, by_part, file_of_part, part_of_branch, parts_of, whole_names
from ramify.parallel.sync import on_all, on_rank_zero
from ramify.parallel.world import World
from ramify.store.manifest import Manifest
from ramify.untrusted import Name, has_file, parsed, regular_file

VERSION = 1
TRAINING = "training/"
"""The folder inside a checkpoint of what only training needs."""


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
            RamifyError: they are damaged.
        """
        file = self.path / "manifest.json"
        return parsed(dict[Name, Manifest], self.manifest["datasets"], file, at="datasets.", fix=_ELSEWHERE)

    def complete(self) -> dict[str, Any]:
        """The manifest, after checking that it says all that a model and a run are made of.

        Raises:
            RamifyError: naming what it lacks.
        """
        parsed(CheckpointManifest, self.manifest, self.path / "manifest.json", fix=_ELSEWHERE)
        return self.manifest

    def weights(self, branches: Collection[str] | None = None) -> dict[str, Tensor]:
        """The weights to use, under the names of a `MultiBranch`: the encoder's and those of `branches` (None: all).

        Raises:
            RamifyError: it holds no such branch, or a file is missing or damaged; so does `training`.
        """
        return self._gather("", branches)

    def training(self, branches: Collection[str] | None = None) -> dict[str, Tensor]:
        """The weights being trained and the optimizer's moments; the moments as `NAME/exp_avg`, `NAME/exp_avg_sq`. Of
        `branches` (None: all that are trained; a fine-tuning carries others along)."""
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
            raise RamifyError(f"checkpoint {self.path} lacks {name}", fix=_ELSEWHERE)
        path = regular_file(self.path, name, fix=_ELSEWHERE)
        if sha256(path) != expected:
            raise RamifyError(
                f"checkpoint file {path} is damaged: its checksum differs from the manifest", fix=_ELSEWHERE
            )
        try:
            return load_file(path)
        except SafetensorError as error:
            raise RamifyError(f"checkpoint file {path} is damaged: {error}", fix=_ELSEWHERE) from None


_SHARED = "the run directory must lie on a file system that all ranks share"
_ELSEWHERE = "take another checkpoint of the run (`latest` or `best`), or a copy"


def open_checkpoint(path: Path) -> Checkpoint:
    """Reads the manifest of a checkpoint folder, which may be named by a pointer, e.g. `RUN/checkpoints/best`.

    Raises:
        RamifyError: no checkpoint there, damaged, or of a newer version.
    """
    path = resolve(path)
    if not has_file(path, "manifest.json", fix=_ELSEWHERE):
        raise RamifyError(f"no checkpoint at {path}", fix="a run's checkpoints are in RUN/checkpoints; train first")
    manifest = read_json(path / "manifest.json")
    if not isinstance(manifest, dict) or manifest.get("format") != "ramify-checkpoint":
        raise RamifyError(f"{path} is not a checkpoint: its manifest.json is that of something else")
    version = manifest.get("version")
    if isinstance(version, int) and version > VERSION:
        raise RamifyError(
            f"checkpoint {path} has format version {version}, this program reads up to {VERSION}",
            fix="use the version of ramify that wrote it, or a newer one",
        )
    if manifest.get("checksum") != _checksum(manifest):
        raise RamifyError(f"{path / 'manifest.json'} is damaged: it differs from its checksum", fix=_ELSEWHERE)
    parsed(CheckpointNames, manifest, path / "manifest.json", fix=_ELSEWHERE)
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
    """Writes `step-XXXXXXXX` into `folder` (if it is there already, what the manifest says is renewed: the tensors of a
    step do not change), moves the pointers, and removes checkpoints that no pointer names and what a process that was
    killed left half-written (a run has one writer, or several that act together).

    Args:
        folder: the run's `checkpoints` folder, which all ranks see.
        step: optimizer steps taken.
        weights, training: the tensors that this rank writes, under the names of a `MultiBranch`; each part (encoder,
            branch) is given by one rank, whole.
        manifest: what goes into manifest.json besides format, version, step, branches and checksums; plain data with
            text keys; the first rank's counts.
        best: this is the best one so far.
        ranks: the processes that call this together; None for one by itself.
        permit: called on the first rank before anything is written, before it counts and before anything is removed;
            raises where these processes may no longer write.

    Raises:
        RamifyError: on all ranks if one fails, e.g. because the disk is full; earlier checkpoints stay as they are. Or
            what `permit` raises.
    """
    ranks = ranks or World()
    target = folder / f"step-{step:08d}"

    def settle() -> None:
        permit()
        tidy(folder, **dict.fromkeys(("best", "latest") if best else ("latest",), target.name))

    try:
        on_rank_zero(ranks, permit)
        if on_rank_zero(ranks, target.exists):
            on_rank_zero(ranks, lambda: _renew_manifest(target, manifest))
        else:
            about = {"step": step} | dict(manifest)
            _write_together(target, {"": weights, TRAINING: training}, about, ranks, permit)
        on_rank_zero(ranks, settle)
    except Exception:  # on all ranks
        on_rank_zero(ranks, permit)  # who writes here now may have removed what these ranks were writing
        raise
    return target


def _write_together(
    target: Path,
    tensors: Mapping[str, Mapping[str, Tensor]],
    manifest: dict[str, Any],
    ranks: World,
    permit: Callable[[], None],
) -> None:
    """Every rank writes its tensors (by folder) into a hidden sibling of `target`, which the first rank then seals."""
    # no process of another machine, whatever its number, comes to the same name
    partial = target.with_name(f".{target.name}.partial-{on_rank_zero(ranks, lambda: secrets.token_hex(4))}")

    def seal() -> None:
        permit()
        _seal(target, partial, with_each, manifest)

    try:
        on_rank_zero(ranks, lambda: _make_empty(target, partial))
        with_each = on_all(ranks, lambda: _write_parts(target, partial, tensors))
        on_rank_zero(ranks, seal)
    except BaseException:
        if ranks.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise


def _writing(target: Path, name: str = "") -> AbstractContextManager[None]:
    """Names a file of the checkpoint `target` that cannot be written, or itself."""
    left, then = after_failure(target.parent.parent)
    return writing(target / name, f"nothing was left behind, {left}", then)


def _make_empty(target: Path, partial: Path) -> None:
    with _writing(target):
        partial.mkdir()
        for folder in ("branches", "training/branches"):
            (partial / folder).mkdir(parents=True)


def _write_parts(target: Path, partial: Path, tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, str]:
    """Sorts tensors into encoder and branches by their names and writes one file each; returns their checksums."""
    if not partial.is_dir():
        raise RamifyError(f"{partial}, which the first rank has made, is not there for this one", fix=_SHARED)
    parts: dict[str, dict[str, Tensor]] = {}
    for folder, named in tensors.items():
        for part, tensors_of_part in by_part(named).items():
            parts[folder + file_of_part(part)] = {n: t.detach().cpu().contiguous() for n, t in tensors_of_part.items()}
    checksums = {}
    for name in list(parts):
        with _writing(target, name):
            content = save(parts.pop(name))  # `save_file` loses the reason when a disk is full
            (partial / name).write_bytes(content)
            sync(partial / name)
            checksums[name] = hashlib.sha256(content).hexdigest()
    return checksums


def _seal(target: Path, partial: Path, written: list[dict[str, str]], manifest: dict[str, Any]) -> None:
    """Adds the manifest and makes `partial` the checkpoint.

    Raises:
        RamifyError: what another rank wrote is not here.
    """
    for rank, names in enumerate(written):
        if unseen := [name for name in names if not (partial / name).is_file()]:
            raise RamifyError(
                f"rank {rank} wrote {unseen[0]} into {partial}, but it is not there for the first rank", fix=_SHARED
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
    """Says in one move what has become known since: that the step was evaluated, by which recipe the run goes on."""
    before = open_checkpoint(target).manifest
    about = before | dict(manifest)
    if about != before:
        with _writing(target, "manifest.json"):
            write_json(target / "manifest.json", about | {"checksum": _checksum(about)})


def tidy(folder: Path, **moved: str) -> None:
    """Moves pointers in `folder`, then removes checkpoints that no pointer names and what a writer that was killed has
    left. Whoever calls it must be the only one that writes, and have read the checkpoint that it goes on from.

    Raises:
        RamifyError: the folder cannot be written.
    """
    left, then = after_failure(folder.parent)
    with writing(folder / POINTERS, left, then):
        move_pointers(folder, **moved)
    with writing(folder, left, then):
        remove_unneeded(folder)


def _checksum(manifest: Mapping[str, Any]) -> str:
    """Of what a manifest says, whatever its layout; its own entry `checksum` does not count."""
    content = {key: value for key, value in manifest.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
