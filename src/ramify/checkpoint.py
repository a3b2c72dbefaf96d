"""Checkpoints: the encoder, one file per branch, and what training needs to go on; all by name.

    step-00000500/
        encoder.safetensors, branches/NAME.safetensors        the weights to use (averaged where the run averages)
        training/encoder.safetensors, training/branches/...   the weights being trained and AdamW's moments
        manifest.json                                         written last: step, recipe, references, all checksums

Only safetensors and JSON: loading a checkpoint runs no code. A checkpoint is written into a hidden folder and renamed
when it is whole; the links `latest` and `best` are moved afterwards.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

import ramify
from ramify.errors import RamifyError
from ramify.files import read_json, sha256, whole_folder, write_json

VERSION = 1


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

    def weights(self) -> dict[str, Tensor]:
        """The weights to use, under the names of a `MultiBranch`."""
        return self._gather("")

    def training(self) -> dict[str, Tensor]:
        """The weights being trained and the optimizer's moments; the moments as `NAME/exp_avg`, `NAME/exp_avg_sq`."""
        return self._gather("training/")

    def _gather(self, folder: str) -> dict[str, Tensor]:
        tensors = {f"encoder.{key}": t for key, t in self._load(f"{folder}encoder.safetensors").items()}
        for branch in self.manifest["branches"]:
            loaded = self._load(f"{folder}branches/{branch}.safetensors")
            tensors |= {f"branches.{branch}.{key}": t for key, t in loaded.items()}
        return tensors

    def _load(self, name: str) -> dict[str, Tensor]:
        path = self.path / name
        expected = self.manifest["files"].get(name)
        if expected is None or not path.is_file():
            raise RamifyError(f"checkpoint {self.path} lacks {name}", fix=_ELSEWHERE)
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
    if not (path / "manifest.json").is_file():
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
    return Checkpoint(path, manifest)


def save_checkpoint(
    folder: Path,
    step: int,
    weights: Mapping[str, Tensor],
    training: Mapping[str, Tensor],
    manifest: Mapping[str, Any],
    *,
    best: bool,
) -> Path:
    """Writes `step-XXXXXXXX` into `folder`, moves the links, and removes checkpoints that no link points to and what a
    process that was killed left half-written (a run has one writer).

    Args:
        folder: the run's `checkpoints` folder.
        step: optimizer steps taken.
        weights, training: tensors under the names of a `MultiBranch`.
        manifest: what goes into manifest.json besides format, version, step, branches and checksums; plain data with
            text keys.
        best: this is the best one so far.

    Raises:
        RamifyError: the disk is full; earlier checkpoints stay as they are.
    """
    target = folder / f"step-{step:08d}"
    if not target.exists():
        with whole_folder(target) as partial:
            names = _write_parts(partial, weights, "") | _write_parts(partial, training, "training/")
            files = {str(f.relative_to(partial)): sha256(f) for f in sorted(partial.rglob("*.safetensors"))}
            about = {"format": "ramify-checkpoint", "version": VERSION, "step": step, "branches": sorted(names)}
            about |= dict(manifest) | {"files": files, "ramify": ramify.__version__}
            write_json(partial / "manifest.json", about | {"checksum": _checksum(about)})
    # `latest` last: a run cut off in between goes on from the one before, and comes to this `best` again
    for link in ("best", "latest") if best else ("latest",):
        _point(folder / link, target.name)
    _remove_unlinked(folder)
    return target


def _write_parts(folder: Path, tensors: Mapping[str, Tensor], prefix: str) -> set[str]:
    """Sorts tensors into encoder and branches by their names and saves one file each; returns the branches."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        kind, rest = name.split(".", 1)
        if kind == "branches":
            branch, rest = rest.split(".", 1)
            kind = f"branches/{branch}"
        parts.setdefault(kind, {})[rest] = tensor.detach().cpu().contiguous()
    for part, content in parts.items():
        path = folder / f"{prefix}{part}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(save(content))  # `save_file` loses the reason when a disk is full
    return {part.removeprefix("branches/") for part in parts if part.startswith("branches/")}


def _point(link: Path, name: str) -> None:
    """Makes `link` point to `name` in one move."""
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(name)
    os.replace(temporary, link)


def _remove_unlinked(folder: Path) -> None:
    kept = {os.readlink(link) for link in (folder / "latest", folder / "best") if link.is_symlink()}
    for old in folder.glob("step-*"):
        if old.name not in kept:
            shutil.rmtree(old)
    for half_written in folder.glob(".step-*.partial-*"):
        shutil.rmtree(half_written)
    for half_moved in (*folder.glob(".latest.*"), *folder.glob(".best.*")):
        half_moved.unlink()


def _checksum(manifest: Mapping[str, Any]) -> str:
    """Of what a manifest says, whatever its layout; its own entry `checksum` does not count."""
    content = {key: value for key, value in manifest.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
