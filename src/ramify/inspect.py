"""`ramify inspect`: what a store, a run directory or a checkpoint holds."""

from pathlib import Path
from typing import Any

from ramify.checkpoint import open_checkpoint
from ramify.data.store_files import open_files
from ramify.data.store_files import verify as verify_files
from ramify.errors import RamifyError
from ramify.files import read_json
from ramify.train.run import Run


def describe(path: Path, *, verify: bool) -> tuple[str, dict[str, Any]]:
    """A title and the facts worth knowing.

    Args:
        path: of a store, a run or a checkpoint.
        verify: read everything and compare checksums.

    Raises:
        RamifyError: none of these, or damaged.
    """
    if (path / "recipe.yaml").is_file():
        return f"run {path}", _run(Run.open(path), verify)
    if (path / "manifest.json").is_file():
        manifest = read_json(path / "manifest.json")
        kind = manifest.get("format") if isinstance(manifest, dict) else None
        if kind == "ramify-store":
            return f"store {path}", _store(path, verify)
        if kind == "ramify-checkpoint":
            return f"checkpoint {path}", _checkpoint(path, verify)
    raise RamifyError(f"{path} is neither a store nor a run directory nor a checkpoint")


def _store(path: Path, verify: bool) -> dict[str, Any]:
    with open_files(path) as files:
        if verify:
            verify_files(files)
        manifest = files.manifest.model_dump(mode="json") | {"form": files.form}
    shown = (
        "dataset",
        "theory",
        "form",
        "splits",
        "labels",
        "elements",
        "references",
        "statistics",
        "consistency",
        "dropped",
    )
    return {key: manifest[key] for key in (*shown, "moved_to_train", "sources", "versions")}


def _run(run: Run, verify: bool) -> dict[str, Any]:
    recipe = run.recipe()
    facts: dict[str, Any] = {
        "branches": recipe.datasets_of_branches(),
        "model": recipe.model.model_dump(mode="json"),
        "files": sorted(p.name for p in run.path.iterdir() if not p.name.startswith(".")),
    }
    for which in ("latest", "best"):
        if (run.checkpoints / which).exists():
            facts[which] = _checkpoint(run.checkpoints / which, verify)
    return facts


def _checkpoint(path: Path, verify: bool) -> dict[str, Any]:
    checkpoint = open_checkpoint(path)
    weights = checkpoint.weights()
    if verify:
        checkpoint.training()
    sizes: dict[str, int] = {}
    for name, tensor in weights.items():
        part = name.split(".")[1] if name.startswith("branches.") else "encoder"
        sizes[part] = sizes.get(part, 0) + tensor.numel()
    return {
        "step": checkpoint.step,
        "parameters": sizes,
        "branch_of": checkpoint.manifest["branch_of"],
        "trainer": checkpoint.manifest["trainer"],
        "references": {n: m["references"]["energies"] for n, m in checkpoint.manifest["datasets"].items()},
        "ramify": checkpoint.manifest["ramify"],
    }
