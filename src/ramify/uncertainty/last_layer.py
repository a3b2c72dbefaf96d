"""Variances of the predictions of a branch from the inputs of its last layers (last-layer prediction rigidity).

The energy of a structure is linear in the weights of the last layer: E = w·f with f the sum over atoms of the layer's
inputs (`EnergyHead.last_features`). With these weights as the only uncertain ones, a loss of energies per atom, and the
features f/n of the training structures, the variance of E/n is

    σ² = α² (f/n)ᵀ (C + ς² I)⁻¹ (f/n),    C = Σ (f/n)(f/n)ᵀ over the training structures,

equation 24 of Bigi, Chong, Ceriotti and Grasselli (arXiv:2403.02251). α and ς are fitted to validation errors
(`ramify.uncertainty.calibrate`). A force component has the same form with the derivative of f in place of f/n.

A head of direct forces is linear in its last layer as well: F_x = Σ w_ch v_xc h, with vectors v of the encoder and
inputs h of the layer. Its features v ⊗ h are too many for a covariance, which is taken as the Kronecker product of
those of v and h (the approximation of Ritter, Botev and Barber, ICLR 2018).

All functions return standard deviations for α = 1.
"""

import torch
from torch import Tensor

from ramify.batches.batch import Batch
from ramify.model.branch import Branch, ForceHead
from ramify.model.graph import build_graph
from ramify.model.multibranch import MultiBranch


def energy_features(branch: Branch, scalars: Tensor, batch: Batch) -> Tensor:
    """(S, D) float64, f/n of every structure of a batch, from the scalars (N, F) of its atoms."""
    of_atoms = branch.energy.last_features(scalars.detach()).double()
    sums = of_atoms.new_zeros(len(batch.n_atoms), of_atoms.shape[1]).index_add(0, batch.structure, of_atoms)
    return sums / batch.n_atoms.double()[:, None]


def force_features(head: ForceHead, scalars: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """(N, H) and (N, 3, C) float64, h and v of every atom."""
    return head.last_features(scalars.detach()).double(), vectors.detach().double()


def whitening(covariance: Tensor, ridge: float) -> Tensor:
    """(D, D) W with W Wᵀ = (C + ς² I)⁻¹, for C (D, D) and ς² = `ridge`."""
    values, axes = torch.linalg.eigh(covariance)
    return axes / (values.clamp(min=0) + ridge).sqrt()


def energy_std(features: Tensor, white: Tensor) -> Tensor:
    """(S,) of energies per atom, from features (S, D)."""
    return torch.linalg.vector_norm(features @ white, dim=1)


def direct_force_std(hidden: Tensor, vectors: Tensor, white_hidden: Tensor, white_vectors: Tensor) -> Tensor:
    """(N, 3) of direct forces, from h (N, H) and v (N, 3, C)."""
    of_vectors = torch.linalg.vector_norm(vectors @ white_vectors, dim=2)
    return of_vectors * torch.linalg.vector_norm(hidden @ white_hidden, dim=1)[:, None]


def conservative_force_std(network: MultiBranch, branch: str, batch: Batch, directions: Tensor) -> Tensor:
    """(N, 3) float64 of conservative forces: the norm over k of the derivatives of f·u_k with respect to positions.

    With all D columns of W as directions u, this is exact. With K directions W q, of K orthonormal vectors q and
    multiplied by sqrt(D/K), it is an unbiased estimate of the variance with a relative error of about sqrt(2/K).

    Args:
        network: the model.
        branch: name of the branch, of which all structures are.
        batch: S structures with N atoms.
        directions: (D, K). One backward pass is needed for each.
    """
    head = network.branch(branch).energy
    with torch.enable_grad():
        positions = batch.positions.detach().requires_grad_()
        scalars, _ = network.encoder(build_graph(batch, network.cutoff, positions))
        sums = (head.last_features(scalars) @ directions.to(scalars.dtype)).sum(0)
        squares = torch.zeros_like(positions, dtype=torch.float64)
        for k in range(len(sums)):
            keep = k + 1 < len(sums)
            (found,) = torch.autograd.grad(sums[k], positions, retain_graph=keep, allow_unused=True)
            if found is not None:  # None: no atom has a neighbour
                squares += found.double().square()
    return squares.sqrt()
