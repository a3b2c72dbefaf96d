"""Checkpoints: the encoder, one file per branch, and what training needs to go on; all by name.

    step-00000500/
        encoder.safetensors, branches/NAME.safetensors        the weights to use (averaged where the run averages)
        training/encoder.safetensors, training/branches/...   the weights being trained and AdamW's moments
        manifest.json                                         written last: step, recipe, references, all checksums

Only safetensors and JSON: loading a checkpoint runs no code. Nothing in it depends on how the run was spread over
processes: each rank writes the parts it is given into one hidden folder, and when all have, the first rank adds the
manifest and renames the folder; the links `latest` and `best` are moved afterwards. A rank reads only the parts it
hosts.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

import ramify
from ramify.checkpoint_manifest import CheckpointManifest, CheckpointNames
from ramify.errors import RamifyError
from ramify.files import disk_full_named, read_json, sha256, sync, write_json
from ramify.model.parts import branch_of_file, by_part, file_of_part, part_of_branch, parts_of, whole_names
from ramify.parallel.sync import Ranks, SingleProcess, on_all, on_rank_zero
from ramify.untrusted import has_file, parsed, regular_file

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


_ELSEWHERE = "take another checkpoint of the run (`latest` or `best`), or a copy"


def open_checkpoint(path: Path) -> Checkpoint:
    """Reads the manifest of a checkpoint folder.

    Raises:
        RamifyError: no checkpoint there, damaged, or of a newer version.
    """
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
    ranks: Ranks | None = None,
) -> Path:
    """Writes `step-XXXXXXXX` into `folder` (if it is there already, what the manifest says is renewed: the tensors of a
    step do not change), moves the links, and removes checkpoints that no link points to and what a
    process that was killed left half-written (a run has one writer, or several that act together).

    Args:
        folder: the run's `checkpoints` folder, which all ranks see.
        step: optimizer steps taken.
        weights, training: the tensors that this rank writes, under the names of a `MultiBranch`; each part (encoder,
            branch) is given by one rank, whole.
        manifest: what goes into manifest.json besides format, version, step, branches and checksums; plain data with
            text keys; the first rank's counts.
        best: this is the best one so far.
        ranks: the processes that call this together; None for one by itself.

    Raises:
        RamifyError: on all ranks if one fails, e.g. because the disk is full; earlier checkpoints stay as they are.
    """
    ranks = ranks or SingleProcess()
    target = folder / f"step-{step:08d}"
    if on_rank_zero(ranks, target.exists):
        on_rank_zero(ranks, lambda: _renew_manifest(target, manifest))
    else:
        _write_together(target, {"": weights, TRAINING: training}, {"step": step} | dict(manifest), ranks)
    on_rank_zero(ranks, lambda: _settle(folder, target.name, best))
    return target


def _write_together(
    target: Path, tensors: Mapping[str, Mapping[str, Tensor]], manifest: dict[str, Any], ranks: Ranks
) -> None:
    """Every rank writes its tensors (by folder) into a hidden sibling of `target`, which the first rank then seals."""
    partial = target.with_name(f".{target.name}.partial-{on_rank_zero(ranks, os.getpid)}")
    try:
        on_rank_zero(ranks, lambda: _make_empty(partial))
        with_each = on_all(ranks, lambda: _write_parts(target, partial, tensors))
        on_rank_zero(ranks, lambda: _seal(target, partial, with_each, manifest))
    except BaseException:
        if ranks.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise


def _make_empty(partial: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    for folder in ("branches", "training/branches"):
        (partial / folder).mkdir(parents=True)


def _write_parts(target: Path, partial: Path, tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, str]:
    """Sorts tensors into encoder and branches by their names and writes one file each; returns their checksums."""
    parts: dict[str, dict[str, Tensor]] = {}
    for folder, named in tensors.items():
        for part, tensors_of_part in by_part(named).items():
            parts[folder + file_of_part(part)] = {n: t.detach().cpu().contiguous() for n, t in tensors_of_part.items()}
    checksums = {}
    with disk_full_named(target):
        for name in list(parts):
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
                f"rank {rank} wrote {unseen[0]} into {partial}, but it is not there for the first rank",
                fix="the run directory must lie on a file system that all ranks share",
            )
    files = {name: checksum for names in written for name, checksum in sorted(names.items())}
    branches = sorted(branch for branch in map(branch_of_file, files) if branch is not None)
    about = {"format": "ramify-checkpoint", "version": VERSION, "branches": branches} | manifest
    about |= {"files": dict(sorted(files.items())), "ramify": ramify.__version__}
    with disk_full_named(target):
        write_json(partial / "manifest.json", about | {"checksum": _checksum(about)})
        for folder in (*(f for f in partial.rglob("*") if f.is_dir()), partial):
            sync(folder)
        os.rename(partial, target)
        sync(target.parent)


def _renew_manifest(target: Path, manifest: Mapping[str, Any]) -> None:
    """Says in one move what has become known since: that the step was evaluated, by which recipe the run goes on."""
    before = open_checkpoint(target).manifest
    about = before | dict(manifest)
    if about != before:
        write_json(target / "manifest.json", about | {"checksum": _checksum(about)})


def _settle(folder: Path, name: str, best: bool) -> None:
    """Moves the links to checkpoint `name` and removes what is no longer needed."""
    # `latest` last: a run cut off in between goes on from the one before, and comes to this `best` again
    for link in ("best", "latest") if best else ("latest",):
        _point(folder / link, name)
    remove_unlinked(folder)


def tidy(folder: Path) -> None:
    """Puts in order what a writer that was killed has left: a first checkpoint without its link becomes `latest`, and
    what no link points to goes. Whoever calls it must be the only one that writes."""
    whole = sorted(folder.glob("step-*"))
    if whole and not (folder / "latest").is_symlink():
        _point(folder / "latest", whole[-1].name)
    remove_unlinked(folder)


def keep_checkpoint(folder: Path, checkpoint: str, link: str) -> None:
    """Lets `link` point to `checkpoint`, so that it is kept whatever `latest` and `best` are later."""
    _point(folder / link, checkpoint)


def _point(link: Path, name: str) -> None:
    """Makes `link` point to `name` in one move."""
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(name)
    os.replace(temporary, link)


def remove_unlinked(folder: Path) -> None:
    """Removes checkpoints that no link points to, and what a writer that was killed left half-done."""
    kept = {os.readlink(link) for link in folder.iterdir() if link.is_symlink() and not link.name.startswith(".")}
    for old in folder.glob("step-*"):
        if old.name not in kept and not old.is_symlink():
            shutil.rmtree(old)
    for half_written in folder.glob(".step-*.partial-*"):
        shutil.rmtree(half_written)
    for half_moved in folder.glob(".*"):
        if half_moved.is_symlink():
            half_moved.unlink()


def _checksum(manifest: Mapping[str, Any]) -> str:
    """Of what a manifest says, whatever its layout; its own entry `checksum` does not count."""
    content = {key: value for key, value in manifest.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
