"""The adaptive cutoff of every atom, as in `ramify.neighbors.edges`, in PyTorch operations.

For programs that provide pairs of atoms and run without Python: the function compiles to TorchScript.
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
