"""Errors of a model before and after a fine-tuning, on the new data and on available old data."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ramify.batches.conditions import has_states
from ramify.batches.loader import SplitReader
from ramify.errors import RamifyError
from ramify.evaluate.predict_split import add_in_order, predict_batch, split_batches
from ramify.evaluate.trivial import trivial_errors
from ramify.inference.branches import DatasetInfo
from ramify.inference.model import Model
from ramify.inference.saved import Saved
from ramify.parallel.world import World
from ramify.recipe import Recipe, Scale
from ramify.store.store import Store


@dataclass(frozen=True, slots=True)
class FinetuneRow:
    """Errors of a branch on a dataset.

    Attributes:
        branch, dataset: their names.
        trained: whether the fine-tuning trains the branch on the dataset.
        energy_mae: eV/atom after references; forces_mae: eV/Å per component; None without labels.
        trivial_energy_mae, trivial_forces_mae: the trivial errors.
    """

    branch: str
    dataset: str
    trained: bool
    energy_mae: float | None
    forces_mae: float | None
    trivial_energy_mae: float | None
    trivial_forces_mae: float | None

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def trained_rows(entry: Mapping[str, Any]) -> list[FinetuneRow]:
    """The errors in an evaluation of the run (a `val` line of metrics.jsonl)."""
    labels = ("energy_mae", "forces_mae", "trivial_energy_mae", "trivial_forces_mae")
    return [
        FinetuneRow(found["branch"], name, True, **{label: found[label] for label in labels})
        for name, found in entry["datasets"].items()
    ]


@dataclass(frozen=True, slots=True)
class OldData:
    """Data that the model was trained on and that the run does not train on.

    Attributes:
        readers: readers of the available datasets, by branch and dataset.
        missing: datasets that are not available, or that lack the charge or spin that the run adds as conditions.
    """

    readers: Mapping[tuple[str, str], SplitReader]
    missing: Sequence[str]

    def rows(self, model: Model, ranks: World) -> list[FinetuneRow]:
        """Errors of `model` on the old data; the work is distributed, so all ranks must call it."""
        totals = {}
        for (branch, dataset), reader in self.readers.items():
            with ranks.watchdog.working():
                mine = [
                    (number, predict_batch(model.network, indices, batch, branch, model.device).errors().to_dict())
                    for number, indices, batch in split_batches(reader, model.dtype, rank=ranks.rank, world=ranks.size)
                ]
            totals[branch, dataset] = [part for parts in ranks.gather(mine) for part in parts]
        return [self._row(pair, parts) for pair, parts in totals.items()]

    def _row(self, pair: tuple[str, str], parts: Sequence[Any]) -> FinetuneRow:
        found, trivial = add_in_order(parts), trivial_errors(self.readers[pair])
        return FinetuneRow(
            *pair, False, *(errors.mae(label) for errors in (found, trivial) for label in ("energy", "forces"))
        )


def old_data(saved: Saved, recipe: Recipe, split: str) -> OldData:
    """The available old datasets: in the folder of stores of `recipe` or of the recipe of the model, with the manifest
    of the training.

    Args:
        saved: the model.
        recipe: recipe of the fine-tuning; its datasets are left out.
        split: split of the stores.
    """
    readers, missing = {}, []
    encoder = recipe.model.encoder
    for branch, group in saved.branches.items():
        for name, info in group.items():
            if name in recipe.datasets:
                continue
            store = _find(saved, recipe, info)
            if store is None or not len(store.range(split)) or not has_states(recipe.model.conditions, store):
                missing.append(name)
                continue
            readers[branch, name] = SplitReader(
                name,
                store,
                split,
                branch,
                cutoff=encoder.cutoff,
                max_neighbors=encoder.max_neighbors,
                model=recipe.model,
                edge_cache=0.0,  # each structure is read at most twice, at different times
            )
    return OldData(readers, missing)


def _find(saved: Saved, recipe: Recipe, info: DatasetInfo) -> Store | None:
    stated = saved.recipe.get("finetune", {}).get("scales", {}).get(info.name)
    for folder in (recipe.stores, saved.recipe["stores"]):
        path = Path(folder) / info.name
        try:
            store = Store.open(path)
            if stated is not None:
                store = store.on_scale(Scale.model_validate(stated))
        except RamifyError:
            continue  # not available; reported as missing
        if store.manifest.sha256 == info.manifest_sha256:
            return store
    return None
