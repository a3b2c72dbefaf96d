"""Validation of names in a recipe: formats, datasets, branches and labels."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal

from pydantic import ValidationError

from ramify.errors import nearest
from ramify.recipe.validation_errors import mistakes
from ramify.sources.base import DatasetOptions
from ramify.sources.formats import find_format, formats


def dataset_options(name: str, entry: Any) -> DatasetOptions:
    """Validates the keys of one dataset by the model of its format.

    Raises:
        ValueError: no format, an unknown one, or invalid keys; pydantic collects it.
    """
    if isinstance(entry, DatasetOptions):
        return entry
    if not isinstance(entry, Mapping) or "format" not in entry:
        raise ValueError(f"datasets.{name}: needs `format`, one of {', '.join(sorted(formats()))}, and `path`")
    chosen = find_format(str(entry["format"]))
    if chosen is None:
        hint = nearest(str(entry["format"]), formats())
        raise ValueError(
            f"datasets.{name}.format: '{entry['format']}' is unknown{hint}; accepted: {', '.join(sorted(formats()))}"
        )
    try:
        return chosen.options.model_validate(entry)
    except ValidationError as error:
        raise ValueError("\n  ".join(mistakes(error, chosen.options, f"datasets.{name}."))) from None


def check_known(
    key: str, names: Iterable[str], known: Collection[str], kind: Literal["dataset", "branch", "label"] = "dataset"
) -> None:
    """Raises an error that suggests the nearest known name if `key` contains an unknown dataset, branch or label."""
    for name in names:
        if name not in known:
            plural = {"dataset": "datasets", "branch": "branches", "label": "labels"}[kind]
            all_of_them = f"{plural}: {', '.join(known)}"
            raise ValueError(f"{key}: no {kind} is called '{name}'{nearest(name, known)}; {all_of_them}")
