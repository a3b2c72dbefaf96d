"""Opening of the stores of a recipe, and of readers of their splits."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ramify.batches.conditions import require_states
from ramify.batches.loader import SplitReader
from ramify.errors import RamifyError
from ramify.recipe import ModelOptions, Recipe
from ramify.store.files import FORMS, form_of
from ramify.store.manifest import Manifest, check_matches
from ramify.store.store import Store


def open_stores(recipe: Recipe) -> dict[str, Store]:
    """Opens the stores of all datasets, in the order of the recipe; stores that must be loaded are loaded on first use.

    Raises:
        RamifyError: a store is missing, damaged, without training structures, was prepared with other options, or has
            structures without the conditions of the model.
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
        require_states(recipe.model.conditions, store)
        stores[name] = _on_its_scale(recipe, name, store)
    return stores


def place_stores(recipe: Recipe, stores: Mapping[str, Store], ranks: Mapping[str, Sequence[int]]) -> dict[str, Store]:
    """Moves the structures of stores to the storage that the recipe selects for training.

    All ranks that share a dataset must call this with their stores in the same order.

    Args:
        recipe: recipe of the run.
        stores: stores of the datasets that this rank trains on.
        ranks: ranks that share each store.

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
    """Applies the references and scales of the pretrained branch that the dataset continues, if any."""
    scale = recipe.finetune.scales.get(dataset)
    return store if scale is None else store.on_scale(scale)


def close_shared_stores() -> None:
    """Closes stores shared by ranks; a collective operation at the end of a run."""
    if "ramify.store.shared.distributed" in sys.modules:
        sys.modules["ramify.store.shared.distributed"].close_all()


def end_sharing_ranks(why: str) -> None:
    """Terminates all ranks if this rank, which has failed, shares stores with them; prints `why` first."""
    if "ramify.store.shared.distributed" in sys.modules:
        sys.modules["ramify.store.shared.distributed"].end_others(why)


def _check_form(dataset: str, path: Path, wanted: str) -> None:
    """Raises an error if a store does not have the form set in the recipe."""
    found = form_of(path)
    if wanted in FORMS and found != wanted:
        raise RamifyError(
            f"data.store: {wanted}, but the store of dataset '{dataset}' has the form `{found}` ({path})",
            fix=f"run `ramify convert {path} --to {wanted}`, or set data.store: auto",
        )


def check_same_data(before: Mapping[str, Manifest], stores: Mapping[str, Store]) -> None:
    """Raises an error if the structures or references of stores differ from those a model was trained with.

    Args:
        before: manifests of the stores used for training.
        stores: current stores.

    Raises:
        RamifyError: a store differs; the message states the dataset and the differences.
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
) -> dict[str, SplitReader]:
    """Opens one reader per dataset for a split; `progress(dataset, structures)` is called as edges are computed."""
    branches, cache = recipe.datasets_of_branches(), recipe.train.edge_cache
    finds = recipe.train.neighbor_search == "loader"
    return open_readers(recipe.model, branches, stores, split, progress, edge_cache=cache, finds_edges=finds)


def open_readers(
    model: ModelOptions,
    branches: Mapping[str, Sequence[str]],
    stores: Mapping[str, Store],
    split: str,
    progress: Callable[[str, int], None] = lambda dataset, structures: None,
    *,
    edge_cache: float,
    finds_edges: bool = True,
) -> dict[str, SplitReader]:
    """Opens one reader per store for a split, for a model and the datasets of each branch; see `open_split`.

    `edge_cache`: GB, see `train.edge_cache`; 0 if every structure is read only once. `finds_edges`: see `SplitReader`.
    """
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
            cutoff=model.encoder.cutoff,
            max_neighbors=model.encoder.max_neighbors,
            edge_cache=edge_cache,
            model=model,
            finds_edges=finds_edges,
            progress=report,
        )
    return readers
