"""Features of structures for the router: the composition, and mean scalar features of the encoder."""

import numpy as np
import torch
from numpy.typing import NDArray

from ramify.batches.conditions import condition_values
from ramify.elements import MAX_NUMBER
from ramify.inference.model import Model
from ramify.inference.passes.inputs import edge_vectors, pass_inputs
from ramify.neighbors.edges import find_edges
from ramify.packing import pieces_of
from ramify.structures import Structures

ATOMS_AT_ONCE = 1500

Floats = NDArray[np.float64]


def features(model: Model, structures: Structures) -> tuple[Floats, Floats]:
    """Composition (S, 120): fraction of each element, then fraction of periodic axes; and the mean over atoms of the
    scalars of the encoder (S, F). Structures must have atoms, and no coincident atoms."""
    parts = pieces_of(structures.n_atoms, ATOMS_AT_ONCE)
    encoded = [_encoded(model, structures.span(part.start, part.stop)) for part in parts]
    width = model.options.encoder.width
    return _composition(structures), np.concatenate(encoded) if encoded else np.zeros((0, width))


def _composition(structures: Structures) -> Floats:
    found = np.zeros((len(structures), MAX_NUMBER + 2))
    np.add.at(found, (structures.structure_of_atom, structures.numbers.astype(np.int64)), 1.0)
    found /= np.maximum(structures.n_atoms, 1)[:, None]
    found[:, -1] = structures.pbc.mean(axis=1)
    return found


def _encoded(model: Model, structures: Structures) -> Floats:
    options = model.options.encoder
    edges = find_edges(structures, options.cutoff, options.max_neighbors)
    # with the condition `dataset`, all structures are encoded as of the first one, so that features are comparable
    dataset = next(iter(model.options.datasets), "-")
    conditions = condition_values(model.options, structures, dataset)
    structure = structures.structure_of_atom
    vector = edge_vectors(structures, edges, structure)
    inputs = pass_inputs(structures, edges, structure, vector, conditions, model.dtype, model.device)
    with torch.no_grad():
        scalars, _ = model.network.encoder(inputs.graph())
        total = scalars.new_zeros(len(structures), scalars.shape[1]).index_add(0, inputs.structure, scalars)
        found: Floats = (total / inputs.n_atoms[:, None]).to("cpu", torch.float64).numpy()
    return found
