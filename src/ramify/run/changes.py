"""Allowed differences between the recipe of a run and the recipe with which it resumes.

Other differences are refused, with the command that can change them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ramify.errors import RamifyError
from ramify.recipe import Recipe
from ramify.recipe.overrides import dotted

FREE = (
    "name",
    "stores",
    "parallel",
    "data",
    "train.device",
    "train.slow_precision",
    "train.compile",
    "train.checkpointing",
    "train.threads",
    "train.time_limit",
    "train.stop_after",
    "train.checkpoint_every",
    "train.log_every",
    "train.trackers",
    "train.edge_cache",
    "train.neighbor_search",
    "train.resume",
)
"""Keys (with all below them) that change neither the model and the data nor the steps."""
TRAINING = (
    "train.epochs",
    "train.max_steps",
    "train.patience",
    "train.evaluate_every",
    "train.batch",
    "train.sampling",
    "train.temperature",
    "train.precision",
    "optimizer.lr",
    "optimizer.weight_decay",
    "optimizer.betas",
    "optimizer.clip",
    "optimizer.ema",
    "schedule",
    "objective",
)
"""Keys (with all below them) that change the further steps of the same model on the same data."""
ELSEWHERE = (
    (("model",), "start a new run for another model: ramify train RECIPE --run NEW"),
    (("train.seed",), "start a new run for another order of structures: ramify train RECIPE --run NEW"),
    (("finetune",), "fine-tune the model that this run started from again: ramify finetune MODEL RECIPE --run NEW"),
    (
        ("datasets", "branches", "optimizer"),
        "start another run from the weights of this one: ramify finetune RUN RECIPE --run NEW",
    ),
)
"""Groups of other keys, and the command that can change them."""
BY_DATASET = ("datasets", "objective.weights", "train.sampling")
"""Keys with an entry for each dataset, which is added and dropped with the dataset."""


@dataclass(frozen=True, slots=True)
class Changes:
    """Differences between the previous recipe of a run and the recipe with which it resumes.

    Attributes:
        keys: [previous value, new value] of every key that differs, by its dotted name.
        added, dropped: datasets.
    """

    keys: dict[str, list[Any]]
    added: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    @property
    def of_training(self) -> bool:
        """Whether the further steps of the run change."""
        return any(_is_below(key, TRAINING) for key in self.keys)

    def texts(self) -> list[str]:
        """Descriptions of the changes for users: keys with both values, and names of datasets."""
        whole = [f"dataset {name} added" for name in self.added] + [f"dataset {name} dropped" for name in self.dropped]
        datasets = (*self.added, *self.dropped)
        keys = {key: values for key, values in self.keys.items() if not _belongs_to(key, datasets)}
        return whole + [f"{key}: {_text(old)} -> {_text(new)}" for key, (old, new) in keys.items()]

    @property
    def of_data(self) -> bool:
        """Whether the datasets change, so that previous errors cannot be compared with later ones."""
        return bool(self.added or self.dropped)


def compare(before: Recipe, now: Recipe, where: str) -> Changes:
    """The differences between two recipes of a run.

    Args:
        before: the previous recipe.
        now: the recipe with which the run resumes.
        where: the source of `now`, for the message.

    Raises:
        RamifyError: naming every key that must not differ, and every dataset that was added or dropped without being
            listed.
    """
    added = tuple(name for name in now.datasets if name not in before.datasets)
    dropped = tuple(name for name in before.datasets if name not in now.datasets)
    refused = _unlisted("add", added, now.train.resume.add) + _unlisted("drop", dropped, now.train.resume.drop)
    refused += _moved(before, now)
    keys = differing_keys(before, now, free=("branches",))
    for key, (old, new) in keys.items():
        if not _is_below(key, (*FREE, *TRAINING)) and not _belongs_to(key, (*added, *dropped)):
            refused.append(f"{key}: {old}, now {new}")
    if refused:
        raise RamifyError(
            f"{where} is not the recipe of this run ({'; '.join(refused)})",
            fix=f"restore it; or {_elsewhere(refused)}. A resumed run may change {', '.join(TRAINING + FREE)}, "
            "and datasets listed in train.resume",
        )
    return Changes(keys, added, dropped)


def differing_keys(
    before: Recipe, now: Recipe, *, free: Sequence[str] = (), added: Sequence[str] = ()
) -> dict[str, list[Any]]:
    """[previous value, new value] of every dotted key that differs between two recipes.

    Args:
        before, now: the recipes.
        free: keys that are left out, with all below them.
        added: datasets whose keys are left out.
    """
    old, new = _values(before), _values(now)
    return {
        key: [old.get(key), new.get(key)]
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not _is_below(key, free) and not _belongs_to(key, added)
    }


def _elsewhere(refused: list[str]) -> str:
    """The commands that can change the refused keys."""
    keys = [text.split(":", 1)[0] for text in refused]
    found = [advice for groups, advice in ELSEWHERE if any(_is_below(key, groups) for key in keys)]
    return ", or ".join(found or ["start a new run: ramify train RECIPE --run NEW"])


def _text(value: Any) -> str:
    return "null" if value is None else str(value)


def _unlisted(verb: str, names: tuple[str, ...], listed: list[str]) -> list[str]:
    other = {"add": "the run has no such dataset", "drop": "the run has it"}[verb]
    return [f"datasets.{n}: {other}, and train.resume.{verb} does not list it" for n in names if n not in listed]


def _moved(before: Recipe, now: Recipe) -> list[str]:
    """Messages for datasets that moved to another branch."""
    old, new = before.branch_of_datasets(), now.branch_of_datasets()
    moved = [name for name in new if old.get(name, new[name]) != new[name]]
    return [f"branches: {name} was read by {old[name]}, now by {new[name]}" for name in moved]


def _values(recipe: Recipe) -> dict[str, Any]:
    """Values by dotted key; a placement is one value, and an empty group is none, since its keys would replace it."""
    content = recipe.model_dump(mode="json")
    placement = content["parallel"].pop("placement")
    values = {key: value for key, value in dotted(content) if value != {}}
    return values | {"parallel.placement": placement}


def _is_below(key: str, groups: Sequence[str]) -> bool:
    return any(key == group or key.startswith(f"{group}.") for group in groups)


def _belongs_to(key: str, datasets: Sequence[str]) -> bool:
    return any(_is_below(key, (f"{group}.{name}",)) for group in BY_DATASET for name in datasets)
