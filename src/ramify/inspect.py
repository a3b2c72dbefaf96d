"""`ramify inspect`: the contents of a store, a run directory, a checkpoint or an export.

Readers are imported when they are needed: PyTorch takes seconds to load, and reading a store does not need it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ramify.checkpoint.committee import refuse_committee
from ramify.checkpoint.pointers import resolve
from ramify.errors import RamifyError
from ramify.files import read_json
from ramify.model.parts import ENCODER, branch_of

if TYPE_CHECKING:
    from ramify.inference.saved import Saved
    from ramify.run.run import Run


def describe(path: Path, *, verify: bool) -> tuple[str, dict[str, Any]]:
    """A title and the main facts.

    Args:
        path: a store, a run, a checkpoint or an export.
        verify: read all files and compare checksums.

    Raises:
        RamifyError: `path` is none of these, or it is damaged.
    """
    path = resolve(path)
    if (path / "recipe.yaml").is_file():
        from ramify.run.run import Run

        return f"run {path}", _run(Run.open(path), verify)
    if (path / "manifest.json").is_file():
        manifest = read_json(path / "manifest.json")
        kind = manifest.get("format") if isinstance(manifest, dict) else None
        if kind == "ramify-store":
            return f"store {path}", _store(path, verify)
        if kind == "ramify-checkpoint":
            return f"checkpoint {path}", _checkpoint(path, verify)
        if kind == "ramify-model":
            return f"model {path}", _export(path)
    refuse_committee(path)
    raise RamifyError(f"{path} is not a store, a run directory, a checkpoint or an export")


def _store(path: Path, verify: bool) -> dict[str, Any]:
    from ramify.store.files import verify as verify_files
    from ramify.store.open_files import open_files

    with open_files(path) as files:
        if verify:
            verify_files(files)
        # every key, also those that `to_json` leaves out at their default
        manifest = files.manifest.model_dump(mode="json") | {"form": files.form}
    shown = (
        "dataset",
        "theory",
        "form",
        "splits",
        "labels",
        "states",
        "elements",
        "references",
        "statistics",
        "consistency",
        "dropped",
        "remarks",
    )
    return {key: manifest[key] for key in (*shown, "moved_to_train", "sources", "versions") if key in manifest}


def _run(run: "Run", verify: bool) -> dict[str, Any]:
    recipe = run.recipe()
    facts: dict[str, Any] = {
        "branches": recipe.datasets_of_branches(),
        "model": recipe.model.model_dump(mode="json"),
        "files": sorted(p.name for p in run.path.iterdir() if not p.name.startswith(".")),
    }
    for which in ("latest", "best"):
        if resolve(run.checkpoints / which).exists():
            facts[which] = _checkpoint(run.checkpoints / which, verify)
    if "uncertainty.safetensors" in facts["files"]:
        from ramify.inference.model import read_saved

        facts["calibrated"] = _calibrated(read_saved(run.path))
    return facts


def _checkpoint(path: Path, verify: bool) -> dict[str, Any]:
    from ramify.checkpoint.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(path)
    manifest, weights = checkpoint.complete(), checkpoint.weights()
    if verify:
        checkpoint.training()
    return {
        "step": checkpoint.step,
        "parameters": _sizes(weights),
        "branch_of": manifest["branch_of"],
        "trainer": manifest["trainer"],
        "carried": {b: list(group) for b, group in manifest.get("carried", {}).items()},
        "references": {n: m.references.energies for n, m in checkpoint.datasets.items()},
        "ramify": manifest["ramify"],
    }


def _export(path: Path) -> dict[str, Any]:
    from ramify.inference.export.exported import read_export

    saved = read_export(path)  # compares all checksums
    infos = {name: info for group in saved.branches.values() for name, info in group.items()}
    return {
        "step": saved.step,
        "branches": {branch: list(group) for branch, group in saved.branches.items()},
        "model": dict(saved.options),
        "parameters": _sizes(saved.weights),
        "theory": {name: info.theory for name, info in infos.items()},
        "references": {name: dict(info.references) for name, info in infos.items()},
        "evaluation": None if saved.evaluation is None else saved.evaluation["rows"],
        "calibrated": _calibrated(saved),
        "ramify": saved.ramify,
    }


def _calibrated(saved: "Saved") -> dict[str, list[str]] | None:
    """The datasets of each branch that have error bars; None without any for these weights."""
    bars = saved.error_bars()
    return None if bars is None else {name: list(found.facts.datasets) for name, found in bars.branches.items()}


def _sizes(weights: Mapping[str, Any]) -> dict[str, int]:
    """Numbers of parameters of the encoder and of each branch."""
    sizes: dict[str, int] = {}
    for name, tensor in weights.items():
        part = branch_of(name) or ENCODER
        sizes[part] = sizes.get(part, 0) + tensor.numel()
    return sizes
