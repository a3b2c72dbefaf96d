"""What may differ between the recipe a run was trained by and the one it is to go on with.

All else is refused, with the command that can change it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ramify.errors import RamifyError
from ramify.recipe import Recipe

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
    "train.checkpoint_every",
    "train.log_every",
    "train.edge_cache",
    "train.resume",
)
"""Keys (with all below them) that change neither what is trained nor by which steps."""
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
"""Keys (with all below them) that change by which steps the same model is trained on the same data from here on."""
ELSEWHERE = (
    (("model",), "start a new run for another model: ramify train RECIPE --run NEW"),
    (("train.seed",), "start a new run for another order of structures: ramify train RECIPE --run NEW"),
    (("finetune",), "fine-tune the model that this run started from again: ramify finetune MODEL RECIPE --run NEW"),
    (
        ("datasets", "branches", "optimizer"),
        "go on from the weights of this run in another one: ramify finetune RUN RECIPE --run NEW",
    ),
)
"""Groups of other keys, and the command that can change them."""
BY_DATASET = ("datasets", "objective.weights", "train.sampling")
"""Keys below which datasets have entries of their own, which come and go with them."""


@dataclass(frozen=True, slots=True)
class Changes:
    """How a run goes on by another recipe than it was trained by so far.

    Attributes:
        keys: [value before, value from now on] of every key that differs, by its dotted name.
        added, dropped: datasets.
    """

    keys: dict[str, list[Any]]
    added: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    @property
    def of_training(self) -> bool:
        """Whether the run takes other steps from here on than it would have taken."""
        return any(_is_below(key, TRAINING) for key in self.keys)

    def texts(self) -> list[str]:
        """What changes, for a user: each key with both values, datasets by their names."""
        whole = [f"dataset {name} added" for name in self.added] + [f"dataset {name} dropped" for name in self.dropped]
        datasets = (*self.added, *self.dropped)
        keys = {key: values for key, values in self.keys.items() if not _belongs_to(key, datasets)}
        return whole + [f"{key}: {_text(old)} -> {_text(new)}" for key, (old, new) in keys.items()]

    @property
    def of_data(self) -> bool:
        """Whether the run goes on with other datasets: progress so far says nothing about errors to come."""
        return bool(self.added or self.dropped)


def compare(before: Recipe, now: Recipe, where: str) -> Changes:
    """What differs between two recipes of a run.

    Args:
        before: what it was trained by.
        now: what it is to go on with.
        where: what `now` was read from, for the message.

    Raises:
        RamifyError: naming every key that may not differ, and every dataset that came or went without being listed.
    """
    added = tuple(name for name in now.datasets if name not in before.datasets)
    dropped = tuple(name for name in before.datasets if name not in now.datasets)
    refused = _unlisted("add", added, now.train.resume.add) + _unlisted("drop", dropped, now.train.resume.drop)
    refused += _moved(before, now)
    old, new = (_flat(recipe.model_dump(mode="json")) for recipe in (before, now))
    keys = {}
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) == new.get(key) or _is_below(key, ("branches",)):
            continue
        keys[key] = [old.get(key), new.get(key)]
        if not _is_below(key, (*FREE, *TRAINING)) and not _belongs_to(key, (*added, *dropped)):
            refused.append(f"{key}: {old.get(key)}, now {new.get(key)}")
    if refused:
        raise RamifyError(
            f"{where} is not what this run was trained by ({'; '.join(refused)})",
            fix=f"restore it; or {_elsewhere(refused)}. A run that goes on may change {', '.join(TRAINING + FREE)}, "
            "and datasets listed in train.resume",
        )
    return Changes(keys, added, dropped)


def _elsewhere(refused: list[str]) -> str:
    """The commands that can change what was refused."""
    keys = [text.split(":", 1)[0] for text in refused]
    found = [advice for groups, advice in ELSEWHERE if any(_is_below(key, groups) for key in keys)]
    return ", or ".join(found or ["start a new run: ramify train RECIPE --run NEW"])


def _text(value: Any) -> str:
    return "null" if value is None else str(value)


def _unlisted(verb: str, names: tuple[str, ...], listed: list[str]) -> list[str]:
    other = {"add": "the run has no such dataset", "drop": "the run has it"}[verb]
    return [f"datasets.{n}: {other}, and train.resume.{verb} does not list it" for n in names if n not in listed]


def _moved(before: Recipe, now: Recipe) -> list[str]:
    """Datasets that another branch would read."""
    old, new = before.branch_of_datasets(), now.branch_of_datasets()
    moved = [name for name in new if old.get(name, new[name]) != new[name]]
    return [f"branches: {name} was read by {old[name]}, now by {new[name]}" for name in moved]


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys and their values; a placement counts as one value."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        path = f"{prefix}{key}"
        flat |= _flat(value, f"{path}.") if isinstance(value, dict) and path != "parallel.placement" else {path: value}
    return flat


def _is_below(key: str, groups: tuple[str, ...]) -> bool:
    return any(key == group or key.startswith(f"{group}.") for group in groups)


def _belongs_to(key: str, datasets: tuple[str, ...]) -> bool:
    return any(_is_below(key, (f"{group}.{name}",)) for group in BY_DATASET for name in datasets)
