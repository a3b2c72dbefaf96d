"""Small models and batches for tests of the physics."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from ramify.batches.batch import Batch, BatchPart
from ramify.model.branch import Branch, ForceKind
from ramify.model.encoders.egnn import EGNN
from ramify.model.multibranch import MultiBranch
from ramify.neighbors.edges import find_edges
from ramify.structures import Structures

CUTOFF, MAX_NEIGHBORS = 5.0, 12
NO_REFERENCES = np.zeros(119)

COMPILED = ("test_compiled_passes_are_the_plain_ones", "test_cost_is_known_without_running")
"""Slow tests of the suite for encoders, which is shipped without our marks."""

QUICK = ("test_forces_are_minus_the_gradient", "test_energy_is_smooth")
"""Tests of the suite that run for all layers of PyTorch Geometric; the others are slow, there are nine layers."""


@pytest.hookimpl(tryfirst=True)  # before tests are deselected by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the slow tests of inherited suites."""
    for item in items:
        slow = item.name.startswith(COMPILED) and item.path.name == "test_encoders.py"
        of_suite = item.path.name == "test_pyg.py" and getattr(item, "cls", None) is not None
        if slow or (of_suite and not item.name.startswith(QUICK)):
            item.add_marker("slow")


def batch_of(images: list[Atoms], dtype: torch.dtype, max_neighbors: int | None = MAX_NEIGHBORS) -> Batch:
    """All images in one segment of the branch `b`."""
    structures = Structures.from_ase(images)
    part = BatchPart("d", "b", structures, find_edges(structures, CUTOFF, max_neighbors), NO_REFERENCES)
    return Batch.make([part], dtype)


@pytest.fixture
def make_model() -> Callable[..., MultiBranch]:
    """A function (forces, dtype, message_layers, width) -> model with random weights of ordinary size."""

    def make(
        forces: ForceKind | None, dtype: torch.dtype = torch.float64, message_layers: int = 2, width: int = 24
    ) -> MultiBranch:
        torch.manual_seed(0)
        options = EGNN.Options(
            layers=3,
            width=width,
            vector_channels=6,
            radial=6,
            cutoff=CUTOFF,
            max_neighbors=10,
            message_layers=message_layers,
        )
        encoder = EGNN(options)
        branch = Branch(
            width, 6, energy_head=(2, 16), force_head=(2, 16), forces=forces, energy_scale=0.7, forces_scale=1.3
        )
        model = MultiBranch(encoder, {"b": branch}, CUTOFF)
        with torch.no_grad():
            for head in (branch.energy, branch.force):
                if head is not None:
                    torch.nn.init.normal_(head.layers[-1].weight, std=0.25)  # fresh heads predict zero
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(1.8)  # fresh weights hardly couple atoms: forces would be near zero
        return model.to(dtype).eval()

    return make


@pytest.fixture
def images() -> list[Atoms]:
    """Molecules and rattled crystals, sparse and dense, one with more neighbours than `MAX_NEIGHBORS`."""
    rng = np.random.default_rng(0)
    crystals = [bulk("Cu", cubic=True), bulk("NaCl", "rocksalt", a=5.6), bulk("Si"), bulk("Po", "sc", a=3.3)]
    for atoms in crystals:
        atoms.rattle(0.1, rng=rng)
        atoms.set_cell(atoms.cell.array + rng.normal(0, 0.05, (3, 3)), scale_atoms=True)
    return [molecule("CH3CH2OH"), molecule("C6H6"), molecule("H2O"), Atoms("He"), *crystals]
