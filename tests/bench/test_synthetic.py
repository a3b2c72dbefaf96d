"""Synthetic datasets have their stated sizes."""

from pathlib import Path

import numpy as np
import pytest

from ramify.bench.synthetic import STRUCTURES, make_structures, of_sizes
from ramify.neighbors.edges import find_edges
from ramify.planning.workload import StatedSize, dataset_sizes, measure, read_sizes, step_shares
from ramify.store.store import Store
from tests.bench.conftest import MakeRecipe


@pytest.mark.parametrize(
    ("atoms", "neighbors", "limit"), [(20.0, 15.0, 20), (31.2, 16.5, 20), (10.0, 6.0, None), (14.5, 40.0, None)]
)
def test_atoms_and_neighbors_are_as_asked_for(atoms: float, neighbors: float, limit: int | None) -> None:
    """Also where atoms see their own periodic images, where the mean is no whole number, and near the limit."""
    made = make_structures(StatedSize(structures=10, atoms=atoms, neighbors=neighbors), 5.0, limit, seed=0)
    assert len(made) == STRUCTURES
    assert made.n_atoms.mean() == pytest.approx(atoms, abs=0.1)
    assert len(find_edges(made, 5.0, limit)) / len(made.numbers) == pytest.approx(neighbors, rel=0.05)
    assert np.isfinite(made.forces).all()


def test_a_step_takes_what_the_stated_sizes_say(paper: MakeRecipe, tmp_path: Path) -> None:
    """All synthetic stores have the same number of structures; the sampling of the recipe compensates for it."""
    recipe = paper(16)
    stated = read_sizes("paper", recipe)
    changed, paths = of_sizes(recipe, stated, tmp_path)
    stores = {name: Store.open(path) for name, path in paths.items()}
    found = step_shares(changed, {name: measure(store, changed) for name, store in stores.items()})
    wanted = step_shares(recipe, dataset_sizes(recipe, stated))
    for name, share in wanted.items():
        assert found[name].structures == pytest.approx(share.structures, rel=1e-6)
        assert found[name].edges == pytest.approx(share.edges, rel=0.08)
