"""How much memory a prediction takes, how much there is, and what a batch may therefore hold."""

import torch

from ramify import system
from ramify.inference.batching import MemoryBudget
from ramify.model.heads import ForceKind
from ramify.recipe import ModelOptions

MARGIN = 1.3
"""What is counted below is multiplied by this. Peaks measured over 13 shapes of the EGNN (1 to 4 layers, width 64 to
512, 16 to 64 channels, 0 to 43 neighbours) came to between 0.5 and 0.95 of the product."""

PAIR_BYTES = 100
"""Of one pair of atoms while neighbours are searched: indices, shifts, distances, and their sorted copies."""

SEARCHED_NEIGHBORS = 100
"""Atoms within reach of the search, if matter is dense (diamond has 119 within 5.45 Å)."""

CPU_EDGES = 6_000
"""Edges of a batch on the CPU: larger batches leave the processor's caches and gain nothing."""

GPU_PART = 0.5
"""Part of a GPU's free memory that one batch may take."""

ATOMS_PER_EDGE = 1.0
"""Atoms of a batch, at most, for each edge it may hold: batches of isolated atoms have no edges."""


def memory_needed(options: ModelOptions, forces: ForceKind | None, atoms: int, edges: int) -> float:
    """Bytes that predicting `atoms` atoms with `edges` edges takes at its peak, in float32; twice that in float64.

    Conservative forces keep what every layer computed until the backward pass comes to it. Without them a layer's
    numbers are dropped when the next begins, and the wide ones of edges are there for a block of edges at a time
    (`ramify.model.kernels.messages`): what is left goes with the vector channels of edges and the width of atoms. Its
    factors are fitted to peaks measured over 7 shapes (1 to 4 layers, width 64 to 866, 16 to 64 channels, 18
    neighbours), which came to between 0.3 (one layer) and 0.9 of the product with `MARGIN`.
    """
    encoder, head = options.encoder, options.energy_head
    if forces == "conservative":
        kept, passing = encoder.layers, 8 * encoder.width  # passing: what lives only within one operation
        edge = kept * ((6 + encoder.message_layers) * encoder.width + 18 * encoder.vector_channels) + passing
        atom = kept * (8 * encoder.width + 20 * encoder.vector_channels) + passing
    else:
        edge = 22 * encoder.vector_channels + 60
        atom = 40 * encoder.width + 20 * encoder.vector_channels
    atom += 4 * head.layers * head.width
    return MARGIN * 4 * (edges * edge + atoms * atom)


def search_memory(atoms: int) -> float:
    """Bytes that finding the neighbours of a structure of `atoms` atoms takes, where matter is dense."""
    return float(PAIR_BYTES) * atoms * min(atoms, SEARCHED_NEIGHBORS)


def available_memory(device: torch.device) -> float:
    """Bytes that this process may still take on `device`."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return system.available_memory()


def budget_for(
    options: ModelOptions, forces: ForceKind | None, device: torch.device, memory: float | None
) -> MemoryBudget:
    """What a batch may hold.

    Args:
        options: of the model.
        forces: of the branch.
        device: where it is computed.
        memory: bytes that the computation may take; None for all that is free.
    """
    free = available_memory(device) if memory is None else memory
    fitting = GPU_PART * free / memory_needed(options, forces, 1, 1)
    edges = max(1, int(fitting if device.type == "cuda" else min(fitting, CPU_EDGES)))
    return MemoryBudget(atoms=max(1, int(ATOMS_PER_EDGE * edges)), edges=edges, memory=free)


def readable(size: float) -> str:
    """Bytes for people, e.g. `3.2 GB`."""
    return f"{size / 1e9:.2g} GB" if size >= 1e8 else f"{size / 1e6:.2g} MB"
