"""Exports: a trained model as a small folder that needs neither its run nor its data.

    model/
        encoder.safetensors
        branches/NAME.safetensors
        README.md                   model card
        router.safetensors          only if a router was fitted
        uncertainty.safetensors     only if error bars were calibrated
        manifest.json               written last: options, references, recipe, checksums

An export consists of safetensors, JSON and Markdown: loading it runs no code. All versions stay readable; the tests
contain a sample of each.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

import ramify
from ramify.errors import RamifyError, nearest
from ramify.evaluate.results import Evaluation
from ramify.files import content_sha256, read_json, sha256, whole_folder, write_json, write_whole
from ramify.inference.branches import DatasetInfo
from ramify.inference.export.card import model_card
from ramify.inference.saved import ROUTER, Saved, options_of
from ramify.model.parts import by_part, file_of_part, parts_of, whole_names
from ramify.uncertainty.error_bars import FILE as UNCERTAINTY
from ramify.untrusted import Name, check_name, check_version, parsed, regular_file

FORMAT: Literal["ramify-model"] = "ramify-model"
VERSION = 1
_AGAIN = "export the run again, or take another copy"


class ExportManifest(BaseModel):
    """`manifest.json` of an export."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["ramify-model"] = FORMAT
    version: int = VERSION
    ramify: str
    """Version that trained the model."""
    exported_by: str
    """Version that wrote the export."""
    model: dict[str, Any]
    """Encoder and heads, as in a recipe."""
    precision: str
    """Precision of the training: `fp32`, `fp64` or `bf16`."""
    branches: dict[Name, list[Name]]
    """The datasets that each branch was trained on."""
    datasets: dict[Name, dict[str, Any]]
    """Facts about each dataset: level of theory, reference energies, spreads, checksum of its manifest."""
    recipe: dict[str, Any]
    """The complete recipe of the training, including parts that were not exported; absolute paths are reduced to file
    names."""
    step: int
    """Number of optimizer steps taken."""
    evaluation: dict[str, Any] | None
    """The rows of the exported branches in `evaluation.json`; null if the run was not evaluated."""
    files: dict[str, str]
    """SHA-256 of each file of weights."""


def write_export(saved: Saved, target: Path, branches: Sequence[str] = ()) -> Path:
    """Writes an export atomically.

    Args:
        saved: the model.
        target: the folder; must not exist.
        branches: the branches to export; all if empty.

    Raises:
        RamifyError: `target` exists, a branch is unknown, or the disk is full.
    """
    if target.exists():
        raise RamifyError(f"{target} exists already; an export is never overwritten", fix="choose another folder")
    for name in branches:
        if name not in saved.branches:
            raise RamifyError(
                f"{saved.path} has no branch '{name}'{nearest(name, saved.branches)}",
                fix=f"name one of: {', '.join(saved.branches)}",
            )
    kept = {name: group for name, group in saved.branches.items() if not branches or name in branches}
    evaluation, recipe = _rows_of(saved.evaluation, kept), _without_folders(saved.recipe)
    with whole_folder(target) as partial:
        files = _write_weights(partial, saved.weights, list(kept))
        if saved.router is not None:
            shutil.copyfile(regular_file(saved.router.parent, ROUTER), partial / ROUTER)
            files[ROUTER] = sha256(partial / ROUTER)
        bars = saved.error_bars()
        if bars is not None:
            bars = bars.only(kept)
            bars.write(partial / UNCERTAINTY)
            files[UNCERTAINTY] = sha256(partial / UNCERTAINTY)
        about = ExportManifest(
            ramify=saved.ramify,
            exported_by=ramify.__version__,
            model=dict(saved.options),
            precision=saved.precision,
            branches={name: list(group) for name, group in kept.items()},
            datasets={info.name: info.to_dict() for group in kept.values() for info in group.values()},
            recipe=recipe,
            step=saved.step,
            evaluation=evaluation,
            files=files,
        ).model_dump(mode="json")
        card = model_card(replace(saved, recipe=recipe), kept, evaluation, VERSION, bars)
        write_whole(partial / "README.md", card)
        write_json(partial / "manifest.json", about | {"checksum": content_sha256(about)})
    return target


def read_export(path: Path) -> Saved:
    """Reads the model of an export.

    Raises:
        RamifyError: there is no export, or it is damaged or of a newer version.
    """
    manifest = _read_manifest(path)
    file = path / "manifest.json"
    infos = {name: DatasetInfo.from_dict(name, content, file) for name, content in manifest.datasets.items()}
    if unknown := {name for group in manifest.branches.values() for name in group} - set(infos):
        raise RamifyError(f"{file} is damaged at 'branches': '{min(unknown)}' is not in 'datasets'", fix=_AGAIN)
    weights: dict[str, Tensor] = {}
    for part in parts_of(manifest.branches):
        weights |= whole_names(part, _load(path, manifest, file_of_part(part)))
    return Saved(
        path=path,
        options=options_of(manifest.model, file),
        precision=manifest.precision,
        branches={branch: {name: infos[name] for name in group} for branch, group in manifest.branches.items()},
        weights=weights,
        recipe=manifest.recipe,
        step=manifest.step,
        evaluation=manifest.evaluation,
        ramify=manifest.ramify,
        router=_addition(path, manifest, ROUTER),
        uncertainty=_addition(path, manifest, UNCERTAINTY),
    )


def _addition(path: Path, manifest: ExportManifest, name: str) -> Path | None:
    """The file of the router or of the error bars, if it was exported."""
    expected = manifest.files.get(name)
    if expected is None:
        return None
    file = regular_file(path, name, fix=_AGAIN)
    if sha256(file) != expected:
        raise RamifyError(f"{file} is damaged: its checksum differs from the manifest", fix=_AGAIN)
    return file


def _read_manifest(path: Path) -> ExportManifest:
    file = regular_file(path, "manifest.json", fix=_AGAIN)
    content = read_json(file)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise RamifyError(f"{path} is not a model: its manifest.json describes something else")
    writer = f"use the version of ramify that wrote it ({content.get('exported_by', 'unknown')}), or a newer one"
    check_version(content, VERSION, f"the model in {path}", f"{writer}; here is {ramify.__version__}")
    checksum = content.pop("checksum", None)
    if checksum != content_sha256(content):
        raise RamifyError(f"{file} is damaged: it differs from its checksum", fix=_AGAIN)
    manifest = parsed(ExportManifest, content, file, fix=_AGAIN)
    if manifest.evaluation is not None:
        parsed(Evaluation, manifest.evaluation, file, fix=_AGAIN)
    return manifest


def _load(path: Path, manifest: ExportManifest, name: str) -> dict[str, Tensor]:
    file = regular_file(path, name, fix=_AGAIN)
    if sha256(file) != manifest.files.get(name):
        raise RamifyError(f"{file} is damaged: its checksum differs from the manifest", fix=_AGAIN)
    try:
        return load(file.read_bytes())
    except SafetensorError as error:
        raise RamifyError(f"{file} is damaged: {error}", fix=_AGAIN) from None


def _write_weights(folder: Path, weights: Mapping[str, Tensor], branches: Sequence[str]) -> dict[str, str]:
    """Writes one file for the encoder and one for each branch; returns their checksums."""
    (folder / "branches").mkdir()
    found, files = by_part(weights), {}
    for part in parts_of([check_name(name) for name in branches]):
        file = folder / file_of_part(part)
        # `save_file` hides the reason when the disk is full
        file.write_bytes(save({name: tensor.cpu().contiguous() for name, tensor in found[part].items()}))
        files[file_of_part(part)] = sha256(file)
    return files


def _without_folders(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with absolute paths reduced to file names."""

    def cut(value: Any) -> Any:
        if isinstance(value, str):
            return Path(value).name if Path(value).is_absolute() else value
        if isinstance(value, Mapping):
            return {key: cut(entry) for key, entry in value.items()}
        return [cut(entry) for entry in value] if isinstance(value, list) else value

    def with_cut(group: Any, key: str) -> Any:
        return {**group, key: cut(group[key])} if isinstance(group, Mapping) and key in group else group

    found = with_cut(recipe, "stores")
    datasets = recipe.get("datasets")
    if isinstance(datasets, Mapping):
        found["datasets"] = {name: with_cut(entry, "path") for name, entry in datasets.items()}
    if "finetune" in recipe:  # recipes of 0.1 have none
        found["finetune"] = with_cut(recipe["finetune"], "model")
    return dict(found)


def _rows_of(
    evaluation: Mapping[str, Any] | None, branches: Mapping[str, Mapping[str, DatasetInfo]]
) -> dict[str, Any] | None:
    """The evaluation without the rows of branches that are not exported."""
    if evaluation is None:
        return None
    rows = [row for row in evaluation["rows"] if row["branch"] in branches]
    datasets = {row["dataset"] for row in rows}
    trivial = [row for row in evaluation["trivial"] if row["dataset"] in datasets]
    branch_of = {name: branch for name, branch in evaluation["branch_of"].items() if branch in branches}
    return {**evaluation, "rows": rows, "trivial": trivial, "branch_of": branch_of}
