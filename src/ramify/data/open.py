"""Opens what a recipe trains on: the stores of its datasets, and readers of their splits."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ramify.data.loader import SplitReader
from ramify.data.prepare import check_matches
from ramify.data.store import Store
from ramify.errors import RamifyError
from ramify.recipe import Recipe


def open_stores(recipe: Recipe) -> dict[str, Store]:
    """The store of every dataset, in the recipe's order.

    Raises:
        RamifyError: a store is missing, damaged, without training structures, or was prepared with other options.
    """
    stores = {}
    for name, options in recipe.datasets.items():
        path = Path(recipe.stores) / name
        if not path.is_dir():
            raise RamifyError(
                f"dataset '{name}' has no store at {path}", fix="run `ramify prepare` with this recipe first"
            )
        store = Store.open(path)
        check_matches(store, options)
        for split in ("train", "val"):
            if not len(store.range(split)):
                raise RamifyError(
                    f"dataset '{name}' has no structures in its {split} split ({path})",
                    fix=f"raise datasets.{name}.split, or give the dataset more groups",
                )
        scale = recipe.finetune.scales.get(name)
        stores[name] = store if scale is None else store.on_scale(scale)
    return stores


def check_same_data(before: Mapping[str, Any], stores: Mapping[str, Store]) -> None:
    """Refuses stores with other structures or references than a model was trained with.

    Args:
        before: the manifests (as plain data) of the stores it was trained with.
        stores: those of today.

    Raises:
        RamifyError: naming the dataset and what differs.
    """
    for name, store in stores.items():
        now = store.manifest.model_dump(mode="json")
        if differing := [key for key in ("columns", "references", "splits") if before[name][key] != now[key]]:
            raise RamifyError(
                f"the store of dataset '{name}' is not the one this run was trained on ({', '.join(differing)} differ)",
                fix="prepare it again from the same files and options, or start a new run",
            )


def open_split(
    recipe: Recipe,
    stores: Mapping[str, Store],
    split: str,
    progress: Callable[[str, int], None] = lambda dataset, structures: None,
    *,
    edge_cache: float | None = None,
) -> dict[str, SplitReader]:
    """One reader per dataset for a split; `progress(dataset, structures)` hears of edges being found.

    `edge_cache` (GB) takes the place of the recipe's `train.edge_cache`: 0 where every structure is read only once.
    """
    encoder, branch_of = recipe.model.encoder, recipe.branch_of_datasets()
    first_branch = next(iter(recipe.datasets_of_branches()))
    readers = {}
    for name, store in stores.items():

        def report(structures: int, dataset: str = name) -> None:
            progress(dataset, structures)

        readers[name] = SplitReader(
            name,
            store,
            split,
            branch_of.get(name, first_branch),  # a dataset the model was not trained on belongs to no branch
            cutoff=encoder.cutoff,
            max_neighbors=encoder.max_neighbors,
            edge_cache=recipe.train.edge_cache if edge_cache is None else edge_cache,
            progress=report,
        )
    return readers
