"""Mean structures, atoms and edges of a step by dataset, measured on the stores or given in a file.

A plan needs means only: the manifest of a store has the numbers of structures and atoms, and edges are computed for a
sample of its training split. For a dataset that is not prepared yet, a file of sizes may give them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ramify.batches.sampling import sampling_weights
from ramify.errors import RamifyError, nearest
from ramify.model.build import LabelSpread
from ramify.neighbors.edges import find_edges
from ramify.recipe import RECIPES, Recipe
from ramify.recipe.overrides import read_yaml
from ramify.recipe.validation_errors import mistakes
from ramify.store.manifest import check_matches
from ramify.store.store import Store

SAMPLE = 256
"""Number of structures whose edges are computed: it gives the mean number of neighbours to about 1 %, for molecules and
for crystals, in well under a second."""

SIZES = RECIPES / "sizes"
"""Files of sizes that are included in the package, by the name of their recipe."""


class StatedSize(BaseModel):
    """The entry of one dataset in a file of sizes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    structures: int = Field(ge=1)
    """In the training split; only the ratios between datasets matter."""
    atoms: float = Field(gt=0)
    """Mean per structure."""
    neighbors: float = Field(ge=0)
    """Mean per atom, within the recipe's cutoff and at most its `max_neighbors`."""
    forces: bool = True
    """Whether there are force labels."""


@dataclass(frozen=True, slots=True)
class DatasetSize:
    """The training split of one dataset.

    Attributes:
        structures: number of structures.
        atoms, edges: means per structure, edges with the cutoff and `max_neighbors` of the recipe.
        spread: of its labels, or ones where sizes are given: plans do not depend on the values.
        source: origin of the numbers.
    """

    structures: int
    atoms: float
    edges: float
    spread: LabelSpread
    source: str


@dataclass(frozen=True, slots=True)
class StepShare:
    """Mean structures, atoms and edges of a branch in one step, over all ranks."""

    structures: float
    atoms: float
    edges: float


def dataset_sizes(recipe: Recipe, stated: Mapping[str, StatedSize]) -> dict[str, DatasetSize]:
    """The size of every dataset of a recipe: as stated, else from its store.

    Raises:
        RamifyError: a dataset is neither stated nor prepared, or its store has other options.
    """
    missing, sizes = [], {}
    for name, options in recipe.datasets.items():
        path = Path(recipe.stores) / name
        if name in stated:
            s = stated[name]
            spread = LabelSpread(1.0, 1.0 if s.forces else None, s.structures)
            sizes[name] = DatasetSize(s.structures, s.atoms, s.atoms * s.neighbors, spread, "stated")
        elif path.is_dir():
            store = Store.open(path)
            check_matches(store, options)
            sizes[name] = measure(store, recipe)
        else:
            missing.append(name)
    if missing:
        known = sorted(p.stem for p in SIZES.glob("*.yaml"))
        raise RamifyError(
            f"a plan needs the sizes of the datasets, but {', '.join(missing)} {_have(missing)} no store "
            f"in {recipe.stores}",
            fix="run `ramify prepare` with this recipe, or state them: --sizes FILE, a YAML file with "
            "`NAME: {structures: ..., atoms: ..., neighbors: ...}` for each (means per structure and per atom), or "
            f"--sizes {', '.join(known)} for sizes that are included",
        )
    return sizes


def measure(store: Store, recipe: Recipe) -> DatasetSize:
    """The size of a prepared dataset; edges from `SAMPLE` evenly spaced structures of its training split."""
    rows, encoder = store.range("train"), recipe.model.encoder
    if not len(rows):
        raise RamifyError(f"{store.path}: no structures in the train split", fix="prepare it with another split")
    chosen = np.unique(np.linspace(rows.start, rows.stop - 1, SAMPLE).round().astype(np.int64))
    sample = store.take(chosen)
    neighbors = len(find_edges(sample, encoder.cutoff, encoder.max_neighbors)) / len(sample.numbers)
    manifest = store.manifest
    atoms = manifest.splits["train"].atoms / len(rows)
    spread = LabelSpread.of_manifest(manifest)
    return DatasetSize(len(rows), atoms, atoms * neighbors, spread, f"store, edges of {len(chosen):,}")


def read_sizes(path: str | Path, recipe: Recipe) -> dict[str, StatedSize]:
    """Reads a file of sizes: YAML with the keys of `StatedSize` by dataset; or the name of an included one.

    Raises:
        RamifyError: the file does not exist or is not YAML, a dataset or key is unknown, or a value is out of range.
    """
    file = Path(path)
    packaged = SIZES / f"{path}.yaml"
    if not file.is_file():
        if not packaged.is_file():
            known = ", ".join(sorted(p.stem for p in SIZES.glob("*.yaml")))
            raise RamifyError(f"no sizes at {path}", fix=f"give a YAML file or one of: {known}")
        file = packaged
    try:
        content = read_yaml(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RamifyError(f"{file} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise RamifyError(f"{file} holds {type(content).__name__}, sizes are a mapping from datasets to keys")
    return {str(name): _stated(file, str(name), entry, recipe) for name, entry in content.items()}


def step_shares(recipe: Recipe, sizes: Mapping[str, DatasetSize]) -> dict[str, StepShare]:
    """Mean structures, atoms and edges of each branch in a step of `train.batch` structures."""
    options = recipe.train
    weights = sampling_weights({n: s.structures for n, s in sizes.items()}, options.sampling, options.temperature)
    total = sum(weights.values())
    shares = {}
    for branch, datasets in recipe.datasets_of_branches().items():
        structures = {name: options.batch * weights[name] / total for name in datasets}
        shares[branch] = StepShare(
            structures=sum(structures.values()),
            atoms=sum(n * sizes[name].atoms for name, n in structures.items()),
            edges=sum(n * sizes[name].edges for name, n in structures.items()),
        )
    return shares


def _stated(file: Path, name: str, entry: Any, recipe: Recipe) -> StatedSize:
    if name not in recipe.datasets:
        raise RamifyError(
            f"{file}: no dataset is called '{name}'{nearest(name, recipe.datasets)}; "
            f"datasets: {', '.join(recipe.datasets)}"
        )
    try:
        return StatedSize.model_validate(entry)
    except ValidationError as error:
        raise RamifyError("\n  ".join([f"{file}:", *mistakes(error, StatedSize, f"{name}.")])) from None


def _have(names: list[str]) -> str:
    return "has" if len(names) == 1 else "have"
