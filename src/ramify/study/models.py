"""The models of a study, each with its recipe: single-dataset models, one shared branch, a branch per dataset."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ramify.errors import RamifyError, nearest
from ramify.recipe import Recipe, parse_recipe

Kind = Literal["single", "baseline", "mtl"]
KINDS: tuple[Kind, ...] = ("single", "baseline", "mtl")
"""Groups of models in `--models`, in the order of the tables: one model per dataset; one shared branch; a branch per
dataset."""

Equal = Literal["passes", "steps", "time"]
EQUAL: tuple[Equal, ...] = ("passes", "steps", "time")
"""Quantities that all models have in common: passes over their own data, optimizer steps, or training time."""


@dataclass(frozen=True)
class Model:
    """One model of a study.

    Attributes:
        name: in tables; the name of its runs is followed by the seed.
        kind: see `KINDS`.
        datasets: that it is trained on.
    """

    name: str
    kind: Kind
    datasets: tuple[str, ...]

    def run(self, seed: int) -> str:
        """Name of the run with a seed."""
        return f"{self.name}-seed{seed}"

    def recipe(self, whole: Recipe, seed: int, budget: Mapping[str, float]) -> Recipe:
        """The recipe of the run with a seed.

        Args:
            whole: recipe of the study.
            seed: of the weights and the order of structures.
            budget: keys of `train` that set its length, see `ramify.study.budget`.
        """
        content = whole.content_with(self.datasets)
        content |= {"name": self.name, "branches": self._branches(whole)}
        content["train"] |= {"seed": seed, "stop_after": None, "resume": {"add": [], "drop": []}} | dict(budget)
        if self.kind != "mtl" and not isinstance(whole.parallel.placement, str):
            content["parallel"]["placement"] = "auto"  # it names the branches of the multi-branch model
        return parse_recipe(content, f"the recipe of {self.run(seed)}")

    def _branches(self, whole: Recipe) -> Any:
        if self.kind == "baseline":
            return "shared"
        if self.kind == "single" or not isinstance(whole.branches, dict):
            return "per-dataset"
        return without_empty(whole.branches, self.datasets)


def without_empty(branches: Mapping[str, Sequence[str]], datasets: Collection[str]) -> dict[str, list[str]]:
    """The branches that read any of `datasets`, with these."""
    grouped = {branch: [d for d in group if d in datasets] for branch, group in branches.items()}
    return {branch: group for branch, group in grouped.items() if group}


def models_of(generations: Sequence[Sequence[str]]) -> list[Model]:
    """All models of a study, in the order of the tables.

    Args:
        generations: the datasets at the beginning of the study, and after each extension. Models of several datasets
            from before an extension are kept; those with all datasets then have the number of datasets in their name.
    """
    models = [Model(f"Model-{name}", "single", (name,)) for name in generations[-1]]
    for kind, base in (("baseline", "Baseline-All"), ("mtl", "MTL-All")):
        for k, datasets in enumerate(generations):
            name = base if k == 0 else f"{base}-{len(datasets)}"
            models.append(Model(name, kind, tuple(datasets)))  # type: ignore[arg-type]  # mypy widens the literals
    return models


def whole_model(models: Sequence[Model], kind: Kind) -> Model | None:
    """The latest model of several datasets of a kind; None if there is none."""
    return next((model for model in reversed(models) if model.kind == kind), None)


def chosen(models: Sequence[Model], wanted: Sequence[str]) -> list[Model]:
    """The models that `--models` names: kinds and names of models.

    Raises:
        RamifyError: an unknown name.
    """
    names = [model.name for model in models]
    latest = [m for m in models if m.kind == "single" or m == whole_model(models, m.kind)]
    for word in wanted:
        if word not in KINDS and word not in names:
            accepted = ", ".join([*KINDS, *names])
            raise RamifyError(f"--models {word}: unknown{nearest(word, [*KINDS, *names])}; accepted: {accepted}")
    return [m for m in models if m.name in wanted or (m.kind in wanted and m in latest)]


def check_recipe(recipe: Recipe) -> None:
    """Refuses a recipe that a study cannot compare models of.

    Raises:
        RamifyError: naming the key.
    """
    if len(recipe.datasets) < 2:
        raise RamifyError(
            f"datasets: {', '.join(recipe.datasets)}; a study compares models of one dataset with models of several",
            fix="name at least two datasets",
        )
    if recipe.finetune.mode is not None:
        raise RamifyError(
            f"finetune.mode: {recipe.finetune.mode}; the models of a study start from random weights",
            fix="remove the group `finetune`",
        )
