"""Values of the conditions of a model (`model.conditions`) for structures, and the check that they are stated."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ramify.errors import RamifyError
from ramify.recipe import ModelOptions
from ramify.store.store import Store
from ramify.structures import STATES, Structures

ROWS_AT_ONCE = 10_000


def condition_values(options: ModelOptions, structures: Structures, dataset: str) -> NDArray[np.float64] | None:
    """(S, C) values of the conditions of a model, in their order: charge in e, multiplicity, number of the dataset.

    Args:
        options: of the model.
        structures: with all values that the model takes.
        dataset: of the structures.

    Returns:
        The values; None for a model without conditions.

    Raises:
        RamifyError: a structure has no charge or spin, which is a condition, or the model was not trained on the
            dataset, which is one.
    """
    if not options.conditions:
        return None
    for name, rows in missing_states(options.conditions, structures).items():
        raise RamifyError(
            f"{structures.name(int(rows[0]))} has no {name} ({len(rows)} of {len(structures)} structures), which the "
            "model takes as a condition (model.conditions)",
            fix=no_state_fix(name),
        )
    columns = [
        getattr(structures, name)
        if name in STATES
        else np.full(len(structures), dataset_number(options, dataset), np.float64)
        for name in options.conditions
    ]
    return np.stack(columns, axis=1)


def dataset_number(options: ModelOptions, dataset: str) -> int:
    """Row of a dataset in the condition `dataset`.

    Raises:
        RamifyError: the model was not trained on it.
    """
    if dataset not in options.datasets:
        raise RamifyError(
            f"model.conditions has `dataset`, and the model was not trained on the dataset '{dataset}'; accepted: "
            f"{', '.join(options.datasets)}",
            fix="name one of these with dataset=... (on the command line --dataset)",
        )
    return options.datasets.index(dataset)


def no_state_fix(name: str) -> str:
    """How to state a condition of a structure whose prediction is requested."""
    usual, meaning = {"charge": (0, "total charge in e"), "spin": (1, "multiplicity 2S+1")}[name]
    return f"set atoms.info['{name}'], the {meaning}, e.g. {usual}; or Calculator(..., {name}={usual})"


def missing_states(conditions: Sequence[str], structures: Structures) -> dict[str, NDArray[np.int64]]:
    """Indices of the structures without a value, by condition; conditions that all structures have are left out."""
    absent = {name: np.flatnonzero(np.isnan(getattr(structures, name))) for name in STATES if name in conditions}
    return {name: rows for name, rows in absent.items() if len(rows)}


def has_states(conditions: Sequence[str], store: Store) -> bool:
    """Whether all structures of a store have the conditions of a model."""
    return not any(_count_without(store, name) for name in STATES if name in conditions)


def _count_without(store: Store, name: str) -> int:
    """Number of structures of a store without a charge or spin."""
    states = store.manifest.states
    if not states:
        return store.manifest.structures
    return sum(sum(state.structures.values()) for state in states if getattr(state, name) is None)


def require_states(conditions: Sequence[str], store: Store) -> None:
    """Checks that all structures of a store have the conditions of a model.

    Raises:
        RamifyError: some have not; the message states the dataset, the key, the number of structures and the first.
    """
    manifest = store.manifest
    for name in (name for name in STATES if name in conditions):
        if not (count := _count_without(store, name)):
            continue
        value = {"charge": "charge: 0` if all these structures are neutral", "spin": "spin: 1` if all are singlets"}
        raise RamifyError(
            f"model.conditions has `{name}`, but {count} of {manifest.structures} structures of dataset "
            f"'{manifest.dataset}' have no {name}, the first is {_first(store, name)}",
            fix=f"set datasets.{manifest.dataset}.{name}_key to its name in the files, or `{value[name]}, and run "
            f"`ramify prepare RECIPE --force`; or leave `{name}` out of model.conditions",
        )


def _first(store: Store, name: str) -> str:
    """Name of the first structure without a value."""
    for start in range(0, len(store), ROWS_AT_ONCE):
        some = store.take(np.arange(start, min(start + ROWS_AT_ONCE, len(store))))
        if len(rows := np.flatnonzero(np.isnan(getattr(some, name)))):
            return some.name(int(rows[0]))
    return "unknown"
