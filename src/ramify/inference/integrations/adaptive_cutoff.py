"""The edges of a model among the pairs of atoms that a program provides, and the adaptive cutoff of every atom, as in
`ramify.neighbors.edges`, in PyTorch operations that compile to TorchScript.
"""

import torch
from torch import Tensor


def differentiable_cutoff(
    distance: Tensor,
    receiver: Tensor,
    n_atoms: int,
    cutoff: float,
    max_neighbors: int,
    softness: float,
    rounding: float,
) -> Tensor:
    """The adaptive cutoff of each atom; once differentiable in the distances.

    Args:
        distance: (P,) Å, of all pairs within cutoff + rounding + softness.
        receiver: (P,) the central atom.
        n_atoms: N.
        cutoff: Å.
        max_neighbors: per atom.
        softness, rounding: Å, `SOFTNESS` and `ROUNDING` of `ramify.neighbors.edges`, which has the definition.

    Returns:
        (N,) Å.
    """
    d = distance.detach()
    count = torch.bincount(receiver, minlength=n_atoms)
    order = torch.argsort(d)
    order = order[torch.argsort(receiver[order], stable=True)]  # by receiver, then by distance
    crowded = torch.nonzero(count > max_neighbors).squeeze(1)
    first_out = torch.full([n_atoms], float("inf"), dtype=d.dtype, device=d.device)
    first_out[crowded] = d[order[(torch.cumsum(count, 0) - count)[crowded] + max_neighbors]]
    near = torch.nonzero((d - first_out[receiver]).abs() < softness).squeeze(1)
    owner, d_near = receiver[near], d[near]
    sure = receiver[d <= first_out[receiver] - softness]
    surely_inside = torch.bincount(sure, minlength=n_atoms).to(d.dtype)
    low, high = first_out - softness, first_out.clone()
    for _ in range(48):  # bisection from 0.25 Å to 1e-15 Å
        middle = 0.5 * (low + high)
        t = ((middle[owner] - d_near) / softness + 1.0).clamp(0.0, 1.0)
        step = t * t * t * (t * (6.0 * t - 15.0) + 10.0)
        too_few = surely_inside.index_add(0, owner, step) < max_neighbors + 0.5
        low, high = torch.where(too_few, middle, low), torch.where(too_few, high, middle)
    free = 0.5 * (low + high)
    t = ((free[owner] - d_near) / softness + 1.0).clamp(0.0, 1.0)
    slope = (t * (1.0 - t)) ** 2
    total = torch.zeros_like(free).index_add(0, owner, slope)
    beyond = (free - cutoff).clamp(-rounding, rounding)
    rounded = cutoff + 0.5 * beyond - (rounding**2 + beyond * beyond) / (4 * rounding)
    atom_cutoff = torch.where(free < cutoff - rounding, free, rounded)
    atom_cutoff = torch.where(free >= cutoff + rounding, torch.full_like(free, cutoff), atom_cutoff)
    gain = slope / total[owner] * (0.5 - beyond / (2 * rounding))[owner]
    moved = gain * (distance[near] - d_near)  # zero, with the derivative of the adaptive cutoff
    return atom_cutoff.index_add(0, owner, moved)


def edges_among_pairs(
    distance: Tensor,
    receiver: Tensor,
    n_atoms: int,
    cutoff: float,
    max_neighbors: int,
    softness: float,
    rounding: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The edges among pairs in any order; see `differentiable_cutoff` for the arguments.

    Args:
        max_neighbors: per atom; 0 for any number, which needs no pairs beyond the cutoff.

    Returns:
        (E,) pairs that are edges, sorted by receiver; (N,) Å, the cutoff of each atom; (n,) slots of a table of
        neighbours (`ramify.model.graph.Graph`).
    """
    atom_cutoff = torch.full([n_atoms], cutoff, dtype=distance.dtype, device=distance.device)
    if max_neighbors > 0:
        atom_cutoff = differentiable_cutoff(distance, receiver, n_atoms, cutoff, max_neighbors, softness, rounding)
    inside = torch.nonzero(distance < atom_cutoff[receiver]).squeeze(1)
    inside = inside[torch.argsort(receiver[inside], stable=True)]
    most = int(torch.bincount(receiver[inside], minlength=1).max())
    return inside, atom_cutoff, torch.arange(most, device=receiver.device)
