"""Memory that a prediction takes, memory that is available, and the resulting limits of a batch."""

from functools import cache

import torch

from ramify import system
from ramify.inference.batching import MemoryBudget
from ramify.model.branch import ForceKind
from ramify.model.build import LabelSpread, build_branch, build_encoder, build_repulsion, condition
from ramify.model.multibranch import MultiBranch
from ramify.model.profile import Cost, prediction_memory
from ramify.recipe import ModelOptions

MARGIN = 2.0
"""Ratio of process memory to the memory of live tensors: 1.2 to 1.7 with the allocator of glibc (measured for EGNN of
1 to 3 layers with direct and conservative forces); 1.0 for an allocator that returns all freed memory."""

UNEVENNESS = 1.5
"""Ratio of the largest to the mean number of neighbours."""

PAIR_BYTES = 100
"""Bytes per pair of atoms in the neighbour search: indices, shifts, distances, and their sorted copies."""

SEARCHED_NEIGHBORS = 100
"""Atoms within the search radius in dense matter (diamond has 119 within 5.45 Å)."""

CPU_EDGES = 6_000
"""Largest number of edges of a batch on the CPU: larger batches exceed the caches and are not faster."""

GPU_PART = 0.5
"""Fraction of the free memory of a GPU that one batch may take."""

ATOMS_PER_EDGE = 1.0
"""Largest number of atoms of a batch per allowed edge: batches of isolated atoms have no edges."""


@cache
def prediction_cost(options: ModelOptions, forces: ForceKind | None) -> Cost:
    """Memory cost of a prediction in float32, measured on meta tensors (`ramify.model.profile`).

    Raises:
        RamifyError: the encoder reads values of tensors, so that its cost is unknown before it runs.
    """
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        encoder = build_encoder(options.encoder)
        condition(encoder, options)
        branch = build_branch(options, encoder, [LabelSpread(1.0, None if forces is None else 1.0, 1)])
        repulsion = build_repulsion(options)
        model = MultiBranch(encoder, {"branch": branch}, options.encoder.cutoff, repulsion).float()
    return prediction_memory(model, "branch", stress=forces == "conservative")


def memory_needed(
    options: ModelOptions, forces: ForceKind | None, atoms: int, edges: int, neighbors: float | None = None
) -> float:
    """Peak memory in bytes for predicting `atoms` atoms with `edges` edges in float32; twice as much in float64.

    Args:
        options: options of the model.
        forces: kind of forces of the branch.
        atoms, edges: numbers in the batch.
        neighbors: largest number of neighbours of an atom, the width of neighbour tables; None: `max_neighbors`, or
            without such a limit `UNEVENNESS` times the mean.
    """
    if neighbors is None:
        neighbors = options.encoder.max_neighbors or UNEVENNESS * edges / max(1, atoms)
    cost = prediction_cost(options, forces)
    return MARGIN * (cost.fixed + cost.of(atoms, edges, atoms * neighbors))


def search_memory(atoms: int) -> float:
    """Bytes needed to find the neighbours of a structure of `atoms` atoms in dense matter."""
    return float(PAIR_BYTES) * atoms * min(atoms, SEARCHED_NEIGHBORS)


def available_memory(device: torch.device) -> float:
    """Bytes available to this process on `device`."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return system.available_memory()


def budget_for(
    options: ModelOptions, forces: ForceKind | None, device: torch.device, memory: float | None
) -> MemoryBudget:
    """The limits of a batch.

    Args:
        options: of the model.
        forces: of the branch.
        device: the device of the computation.
        memory: bytes that the computation may take; None for all free memory.
    """
    free = available_memory(device) if memory is None else memory
    fixed = memory_needed(options, forces, 0, 0)
    most = options.encoder.max_neighbors or SEARCHED_NEIGHBORS
    # per edge: of an atom with one, or, where costs of triplets exceed those of atoms, of an atom with many
    each = max((memory_needed(options, forces, 1, n, n) - fixed) / n for n in (1, most))
    fitting = max(0.0, GPU_PART * free - fixed) / each
    edges = max(1, int(fitting if device.type == "cuda" else min(fitting, CPU_EDGES)))
    return MemoryBudget(atoms=max(1, int(ATOMS_PER_EDGE * edges)), edges=edges, memory=free)


def readable(size: float) -> str:
    """A number of bytes as text, e.g. `3.2 GB`."""
    return f"{size / 1e9:.2g} GB" if size >= 1e8 else f"{size / 1e6:.2g} MB"
