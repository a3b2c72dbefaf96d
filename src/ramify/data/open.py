"""Opens what a recipe trains on: the stores of its datasets, and readers of their splits."""

from collections.abc import Callable, Mapping
from pathlib import Path

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
            raise RamifyError(f"dataset '{name}' has no store at {path}", fix="run `ramify prepare` with this recipe first")
        store = Store.open(path)
        check_matches(store, options)
        for split in ("train", "val"):
            if not len(store.range(split)):
                raise RamifyError(
                    f"dataset '{name}' has no structures in its {split} split ({path})",
                    fix=f"raise datasets.{name}.split, or give the dataset more groups",
                )
        stores[name] = store
    return stores


def open_split(
    recipe: Recipe,
    stores: Mapping[str, Store],
    split: str,
    progress: Callable[[str, int], None] = lambda dataset, structures: None,
) -> dict[str, SplitReader]:
    """One reader per dataset for a split; `progress(dataset, structures)` hears of edges being found."""
    encoder, branch_of = recipe.model.encoder, recipe.branch_of_datasets()
    readers = {}
    for name, store in stores.items():

        def report(structures: int, dataset: str = name) -> None:
            progress(dataset, structures)

        readers[name] = SplitReader(
            name,
            store,
            split,
            branch_of[name],
            cutoff=encoder.cutoff,
            max_neighbors=encoder.max_neighbors,
            edge_cache=recipe.train.edge_cache,
            progress=report,
        )
    return readers
