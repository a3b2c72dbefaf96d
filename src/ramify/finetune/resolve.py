"""The complete recipe of a fine-tuning, from a trained model and a recipe with the new data and training keys.

Options, precision, reference energies and units of continued branches come from the model. A recipe that contradicts
the model is refused, never overridden silently.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ramify.errors import RamifyError, nearest
from ramify.inference.branches import DatasetInfo
from ramify.inference.saved import Saved
from ramify.recipe import ModelOptions, Recipe, parse_recipe
from ramify.recipe.overrides import dotted
from ramify.store.store import Store
from ramify.train.init_weights import FRESH

MODES = ("new-branch", "keep-branch", "frozen-encoder", "lora", "replay")


@dataclass(frozen=True, slots=True)
class FinetuneRequest:
    """Options of a fine-tuning besides the recipe.

    Attributes:
        mode: one of `MODES`.
        start: the value of `--from`: a branch of the model, `fresh`, or empty.
        steps: optimizer steps; None for those of the recipe.
        model: path of the model, as given by the user.
        checkpoint: checkpoint of the model, if it is a run.
    """

    mode: str
    model: str
    start: str | None = None
    steps: int | None = None
    checkpoint: str = "best"


def resolve(saved: Saved, recipe: Recipe, stores: Mapping[str, Store], request: FinetuneRequest) -> Recipe:
    """The recipe of the run.

    Args:
        saved: the model.
        recipe: new data and training keys.
        stores: stores of the datasets of the recipe.
        request: further options.

    Raises:
        RamifyError: the mode or a branch is unknown, the recipe contradicts the model or the mode, the start of a new
            branch is not stated, or data do not fit a branch.
    """
    if request.mode not in MODES:
        hint = nearest(request.mode, MODES)
        raise RamifyError(f"mode '{request.mode}' is unknown{hint}", fix=f"name one of: {', '.join(MODES)}")
    model = ModelOptions.model_validate(saved.options)
    adds = bool(recipe.model.conditions) and not model.conditions
    _agree(recipe, model, saved, adds=adds)
    branches = _branches(saved, recipe, request)
    _check_names(saved, branches)
    _check_mode(saved, branches, request)
    start = _start(saved, recipe, branches, request)
    scales = dict(_scales(saved, branches, stores))
    content = recipe.model_dump(mode="json")
    content |= {"model": _with_conditions(recipe, model, adds=adds), "branches": branches}
    content["train"] |= {"precision": _precision(saved, recipe)}
    if request.steps is not None:
        content["train"] |= {"max_steps": request.steps}
    content["finetune"] |= {
        "mode": request.mode,
        "new_conditions": adds,
        "start": start,
        "scales": scales,
        "model": request.model,
        "checkpoint": request.checkpoint,
        "weights": saved.weights_sha256,
    }
    return parse_recipe(content, "the recipe of the fine-tuning")


def _with_conditions(recipe: Recipe, model: ModelOptions, *, adds: bool) -> dict[str, Any]:
    """The options of the model, with the conditions that the recipe adds, and new datasets of the condition `dataset`
    after the old ones."""
    conditions = recipe.model.conditions if adds else model.conditions
    found = model.model_dump(mode="json") | {"conditions": conditions}
    if "dataset" in conditions:
        found["datasets"] = list(dict.fromkeys([*model.datasets, *recipe.datasets]))
    return found


def _agree(recipe: Recipe, model: ModelOptions, saved: Saved, *, adds: bool) -> None:
    """Refuses keys below `model` that differ from those of the trained model; `adds`: conditions are new."""
    stated = dict(dotted(recipe.model.model_dump(mode="json", exclude_unset=True), "model."))
    stated.pop("model.datasets", None)
    if adds:
        stated.pop("model.conditions", None)
    found = dict(dotted(model.model_dump(mode="json"), "model."))
    # another kind of encoder has other keys
    wrong = [
        f"{key}: {value}, the model has {found.get(key, 'no such key')}"
        for key, value in stated.items()
        if key not in found or value != found[key]
    ]
    if wrong:
        raise RamifyError(
            f"the recipe contradicts the model in {saved.path} ({'; '.join(wrong)})",
            fix="leave `model` out of the recipe of a fine-tuning: it comes from the model",
        )


def _precision(saved: Saved, recipe: Recipe) -> str:
    """The precision of the recipe, or else of the model; bf16 and fp32 have the same weights."""
    stated = recipe.train.precision if "precision" in recipe.train.model_fields_set else saved.precision
    if (stated == "fp64") != (saved.precision == "fp64"):
        raise RamifyError(
            f"train.precision: {stated}, but the model was trained in {saved.precision}; its predictions would change",
            fix=f"leave train.precision out, or set it to {saved.precision}",
        )
    return stated


def _branches(saved: Saved, recipe: Recipe, request: FinetuneRequest) -> dict[str, list[str]]:
    """The datasets of each branch. With keep-branch, `--from` names the branch to continue; datasets that a branch of
    the model was trained on stay with it, unless the recipe states branches."""
    if request.mode == "keep-branch" and request.start is not None:
        _must_have(saved, request.start)
        if recipe.branches != "per-dataset" and list(recipe.datasets_of_branches()) != [request.start]:
            raise RamifyError(f"--from {request.start} and the recipe's `branches` disagree", fix="give one of them")
        return {request.start: list(recipe.datasets)}
    if recipe.branches != "per-dataset":
        return recipe.datasets_of_branches()
    known = {dataset: branch for branch, group in saved.branches.items() for dataset in group}
    branches: dict[str, list[str]] = {}
    for name in recipe.datasets:
        branches.setdefault(known.get(name, name), []).append(name)
    return branches


def _check_names(saved: Saved, branches: Mapping[str, list[str]]) -> None:
    """Checks that each dataset has one branch only, including branches that the model keeps."""
    for branch, datasets in branches.items():
        for owner, group in saved.branches.items():
            if owner != branch and (both := sorted(set(group) & set(datasets))):
                raise RamifyError(
                    f"dataset '{both[0]}' belongs to branch '{owner}' of the model, but the recipe assigns it to "
                    f"branch '{branch}'",
                    fix=f"rename it in the recipe, or continue branch '{owner}' with it",
                )


def _check_mode(saved: Saved, branches: Mapping[str, list[str]], request: FinetuneRequest) -> None:
    """Checks that the branches of the recipe fit the mode."""
    listed = ", ".join(saved.branches)
    old = [branch for branch in branches if branch in saved.branches]
    new = [branch for branch in branches if branch not in saved.branches]
    if request.mode == "new-branch" and old:
        raise RamifyError(
            f"the model already has a branch '{old[0]}', which --mode new-branch would train",
            fix="give the new dataset (or its branch) another name, or use --mode keep-branch or --mode replay",
        )
    if request.mode == "keep-branch" and new:
        raise RamifyError(
            f"--mode keep-branch: the model has no branch '{new[0]}'{nearest(new[0], saved.branches)}",
            fix=f"name the branch to continue: --from BRANCH, one of {listed}; or use --mode new-branch",
        )
    missing = [branch for branch in saved.branches if branch not in branches]
    if request.mode == "replay" and missing:
        raise RamifyError(
            f"--mode replay mixes in the old datasets, but the recipe has none for {', '.join(missing)}",
            fix="add them to `datasets` (by the names the model has: "
            f"{', '.join(name for branch in missing for name in saved.branches[branch])}), or leave their branches out "
            "of the model: ramify export MODEL --branch NAME",
        )
    if request.mode == "replay" and not new and all(set(saved.branches[b]) >= set(branches[b]) for b in old):
        raise RamifyError("--mode replay: the recipe has no new dataset", fix="add one, or use --mode keep-branch")


def _start(saved: Saved, recipe: Recipe, branches: Mapping[str, list[str]], request: FinetuneRequest) -> dict[str, str]:
    """The start of each branch. Old branches continue; the start of a new one must be stated."""
    start = {}
    for branch in branches:
        stated = recipe.finetune.start.get(branch)
        if branch in saved.branches:
            if stated not in (None, branch):
                raise RamifyError(
                    f"finetune.start.{branch}: {stated}; but branch '{branch}' of the model continues its own weights",
                    fix="leave it out, or give the new branch another name",
                )
            start[branch] = branch
            continue
        origin = stated or request.start
        if origin is None:
            raise RamifyError(
                f"the start of the new branch '{branch}' is not stated",
                fix=f"--from BRANCH, one of {', '.join(saved.branches)}: the one with the most similar data; "
                f"or --from {FRESH}: random weights",
            )
        if origin != FRESH:
            _must_have(saved, origin)
        start[branch] = origin
    return start


def _scales(
    saved: Saved, branches: Mapping[str, list[str]], stores: Mapping[str, Store]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """References and units of the datasets of continued branches; none if the store has the same."""
    for branch, datasets in branches.items():
        for name in datasets:
            if branch not in saved.branches:
                continue
            group = saved.branches[branch]
            info = group.get(name) or _only_scale(branch, group, name)
            forces = [old.spread.forces for old in (info, *group.values()) if old.spread.forces is not None]
            scale = {
                "references": dict(info.references),
                "energy": info.spread.energy,
                "forces": forces[0] if forces else None,
            }
            own = DatasetInfo.of_manifest(name, stores[name].manifest)
            units = {"energy": own.spread.energy, "forces": own.spread.forces}
            if scale != {"references": own.references} | units:
                yield name, scale


def _only_scale(branch: str, group: Mapping[str, DatasetInfo], name: str) -> DatasetInfo:
    """The energy scale of a dataset that is new to a branch."""
    first = next(iter(group.values()))
    if any(info.references != first.references for info in group.values()):
        raise RamifyError(
            f"branch '{branch}' has several energy scales ({', '.join(group)}); that of dataset '{name}' is not stated",
            fix="give the dataset in the recipe the name of the one whose scale it shares",
        )
    return first


def _must_have(saved: Saved, branch: str) -> None:
    if branch not in saved.branches:
        raise RamifyError(
            f"the model has no branch '{branch}'{nearest(branch, saved.branches)}",
            fix=f"name one of: {', '.join(saved.branches)}",
        )
