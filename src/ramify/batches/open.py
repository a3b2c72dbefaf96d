"""Opens what a recipe trains on: the stores of its datasets, and readers of their splits."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ramify.batches.loader import SplitReader
from ramify.errors import RamifyError
from ramify.recipe import EncoderOptions, Recipe
from ramify.store.files import FORMS, form_of
from ramify.store.manifest import Manifest, check_matches
from ramify.store.store import Store


def open_stores(recipe: Recipe) -> dict[str, Store]:
    """The store of every dataset, in the recipe's order; what must be read as a whole is read when it is first needed.

    Raises:
        RamifyError: a store is missing, damaged, without training structures, or was prepared with other options.
    """
    stores = {}
    for name, options in recipe.datasets.items():
        path = Path(recipe.stores) / name
        if not path.is_dir():
            raise RamifyError(
                f"dataset '{name}' has no store at {path}",
                fix="run `ramify prepare` with this recipe first (`ramify evaluate` takes --stores)",
            )
        _check_form(name, path, recipe.data.store)
        store = Store.open(path, preload=recipe.data.preload, later=True)
        check_matches(store, options)
        if not len(store.range("train")):
            raise RamifyError(
                f"dataset '{name}' has no structures in its train split ({path})",
                fix="prepare it again, with structures to train on",
            )
        stores[name] = _on_its_scale(recipe, name, store)
    return stores


def place_stores(recipe: Recipe, stores: Mapping[str, Store], ranks: Mapping[str, Sequence[int]]) -> dict[str, Store]:
    """The stores with their structures where the recipe wants them during a training.

    All ranks that share a dataset must call this with their stores in the same order.

    Args:
        recipe: of the run.
        stores: of the datasets that this rank trains on.
        ranks: which ranks share each.

    Raises:
        RamifyError: damaged files, not enough memory, or no MPI for `data.store: distributed`.
    """
    if recipe.data.store != "distributed":
        for store in stores.values():
            store.load()
        return dict(stores)
    from ramify.store.shared.distributed import open_distributed

    placed = {}
    for name, store in stores.items():
        spread = open_distributed(store.path, ranks=ranks[name], width=recipe.data.width)
        placed[name] = _on_its_scale(recipe, name, spread)
        store.close()
    return placed


def _on_its_scale(recipe: Recipe, dataset: str, store: Store) -> Store:
    """The store, measured by the references and units of the branch that the dataset goes on with, if there is one."""
    scale = recipe.finetune.scales.get(dataset)
    return store if scale is None else store.on_scale(scale)


def close_shared_stores() -> None:
    """Closes stores that ranks share; all ranks together, when the run is over."""
    if "ramify.store.shared.distributed" in sys.modules:
        sys.modules["ramify.store.shared.distributed"].close_all()


def end_sharing_ranks(why: str) -> None:
    """Ends all ranks if this one, which has failed, shares stores with others; `why` is printed before."""
    if "ramify.store.shared.distributed" in sys.modules:
        sys.modules["ramify.store.shared.distributed"].end_others(why)


def _check_form(dataset: str, path: Path, wanted: str) -> None:
    """Refuses a store of another form than the recipe names."""
    found = form_of(path)
    if wanted in FORMS and found != wanted:
        raise RamifyError(
            f"data.store: {wanted}, but the store of dataset '{dataset}' has the form `{found}` ({path})",
            fix=f"run `ramify convert {path} --to {wanted}`, or set data.store: auto",
        )


def check_same_data(before: Mapping[str, Manifest], stores: Mapping[str, Store]) -> None:
    """Refuses stores with other structures or references than a model was trained with.

    Args:
        before: the manifests of the stores it was trained with.
        stores: those of today.

    Raises:
        RamifyError: naming the dataset and what differs.
    """
    for name, store in stores.items():
        keys = ("columns", "references", "splits")
        if differing := [key for key in keys if getattr(before[name], key) != getattr(store.manifest, key)]:
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
    cache = recipe.train.edge_cache if edge_cache is None else edge_cache
    branches = recipe.datasets_of_branches()
    return open_readers(recipe.model.encoder, branches, stores, split, progress, edge_cache=cache)


def open_readers(
    encoder: EncoderOptions,
    branches: Mapping[str, Sequence[str]],
    stores: Mapping[str, Store],
    split: str,
    progress: Callable[[str, int], None] = lambda dataset, structures: None,
    *,
    edge_cache: float,
) -> dict[str, SplitReader]:
    """One reader per store for a split, for an encoder and the datasets that each branch reads; see `open_split`."""
    branch_of = {dataset: branch for branch, group in branches.items() for dataset in group}
    first_branch = next(iter(branches))
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
            edge_cache=edge_cache,
            progress=report,
        )
    return readers
