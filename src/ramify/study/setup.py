"""Sets up a study: opens or creates it, and adds the tasks that are requested."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ramify.bench.pace import step_seconds
from ramify.recipe import Recipe
from ramify.store.manifest import Manifest
from ramify.study.budget import ALL, budget_of, steps_of
from ramify.study.models import KINDS, Equal, Model, check_recipe, chosen
from ramify.study.table import Study, Task


@dataclass(frozen=True)
class Request:
    """Options of `ramify study`.

    Attributes:
        recipe: of the study.
        where: its source, for messages.
        out: folder of the study.
        models: kinds and names of models.
        seeds: number of seeds of each model, from `train.seed` on.
        equal: see `ramify.study.models.EQUAL`.
    """

    recipe: Recipe
    where: str
    out: Path
    models: Sequence[str] = KINDS
    seeds: int = 1
    equal: Equal = "passes"

    def open(self) -> Study:
        """The study at `out`, with the recipe of the request; it is not written.

        Raises:
            RamifyError: the recipe has fewer than two datasets, or differs from that of the study.
        """
        check_recipe(self.recipe)
        if not Study.exists(self.out):
            study = Study.create(self.out, self.recipe, self.equal)
        else:
            study = Study.open(self.out)
            study.extend(self.recipe, self.equal, self.where)
        chosen(study.models(), self.models)
        return study


def add_tasks(
    study: Study,
    request: Request,
    manifests: Mapping[str, Manifest],
    measure: Callable[[Recipe, Mapping[str, Path]], float] = step_seconds,
) -> list[str]:
    """Adds the requested tasks to the table and returns their names; tasks that it has already are kept, and lengthened
    if the recipe is longer than before.

    Args:
        study: the study, locked by this process.
        request: the options.
        manifests: of the stores of all datasets.
        measure: returns the seconds per step of a recipe with its stores, for `--equal time`.
    """
    structures = {name: manifest.splits["train"].structures for name, manifest in manifests.items()}
    requested, first, wanted = chosen(study.models(), request.models), request.recipe.train.seed, []
    for model in study.models():
        own = [task for task in study.tasks if task.model == model.name]
        if not own and model not in requested:
            continue
        seconds = _seconds(study, model, measure)
        budget = budget_of(model, study.recipe.train, study.first_datasets, structures, request.equal, seconds)
        steps = steps_of(model.recipe(study.recipe, first, budget), structures)
        if own and steps <= own[0].steps:
            budget, steps = own[0].budget, own[0].steps
        for task in own:
            task.lengthen(budget, steps)
        for seed in range(first, first + request.seeds) if model in requested else ():
            task = Task(
                model=model.name, kind=model.kind, datasets=[*model.datasets], seed=seed, budget=budget, steps=steps
            )
            study.add(task)
            wanted.append(task.name)
    return wanted


def _seconds(study: Study, model: Model, measure: Callable[[Recipe, Mapping[str, Path]], float]) -> Mapping[str, float]:
    """Seconds per step of a model and of the first multi-branch model, for `--equal time`; measured once."""
    if study.equal != "time":
        return {}
    reference = Model(ALL, "mtl", tuple(study.first_datasets))
    for each in (reference, model):
        if each.name not in study.seconds:
            recipe = each.recipe(study.recipe, study.recipe.train.seed, {})
            stores = {name: Path(recipe.stores) / name for name in recipe.datasets}
            is_reference = each.kind == "mtl" and [*each.datasets] == study.first_datasets and ALL in study.seconds
            study.seconds[each.name] = study.seconds[ALL] if is_reference else measure(recipe, stores)
    return study.seconds
