"""How much memory a prediction takes, how much there is, and what a batch may therefore hold."""

from functools import cache

import torch

from ramify import system
from ramify.inference.batching import MemoryBudget
from ramify.model.branch import ForceKind
from ramify.model.build import LabelSpread, build_branch, build_encoder
from ramify.model.multibranch import MultiBranch
from ramify.model.profile import Cost, prediction_memory
from ramify.recipe import ModelOptions

MARGIN = 2.0
"""Memory of a process over that of the tensors that are alive: glibc's allocator takes 1.2 to 1.7 times as much
(measured for EGNN of 1 to 3 layers with direct and conservative forces; 1.0 where it gives back all that is freed)."""

UNEVENNESS = 1.5
"""Most neighbours of an atom over the mean."""

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


@cache
def prediction_cost(options: ModelOptions, forces: ForceKind | None) -> Cost:
    """Bytes of a prediction in float32, measured on tensors without content (`ramify.model.profile`).

    Raises:
        RamifyError: the encoder reads values of tensors, so that nothing can be known before it runs.
    """
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        encoder = build_encoder(options.encoder)
        branch = build_branch(options, encoder, [LabelSpread(1.0, None if forces is None else 1.0, 1)])
        model = MultiBranch(encoder, {"branch": branch}, options.encoder.cutoff).float()
    return prediction_memory(model, "branch", stress=forces == "conservative")


def memory_needed(
    options: ModelOptions, forces: ForceKind | None, atoms: int, edges: int, neighbors: float | None = None
) -> float:
    """Bytes that predicting `atoms` atoms with `edges` edges takes at its peak, in float32; twice that in float64.

    Args:
        options: of the model.
        forces: of the branch.
        atoms, edges: of the batch.
        neighbors: the most that an atom of it has, which tables of neighbours are as wide as; None: `max_neighbors`, or
            without such a limit `UNEVENNESS` times the mean.
    """
    if neighbors is None:
        neighbors = options.encoder.max_neighbors or UNEVENNESS * edges / max(1, atoms)
    cost = prediction_cost(options, forces)
    return MARGIN * (cost.fixed + cost.of(atoms, edges, atoms * neighbors))


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
    fixed = memory_needed(options, forces, 0, 0)
    fitting = max(0.0, GPU_PART * free - fixed) / (memory_needed(options, forces, 1, 1, 1) - fixed)
    edges = max(1, int(fitting if device.type == "cuda" else min(fitting, CPU_EDGES)))
    return MemoryBudget(atoms=max(1, int(ATOMS_PER_EDGE * edges)), edges=edges, memory=free)


def readable(size: float) -> str:
    """Bytes for people, e.g. `3.2 GB`."""
    return f"{size / 1e9:.2g} GB" if size >= 1e8 else f"{size / 1e6:.2g} MB"
