"""The optimizers.

To add one, define a function that creates a `torch.optim.Optimizer` from parameter groups, list it in `OPTIMIZERS` and
add its name to the type of `optimizer.kind`. Each group has a `weight_decay` and a flag `hidden` for hidden matrices.
An optimizer must

- scale gradients by 1 / `grad_scale` and skip a step where `found_inf` is 1, both tensors that are set before `step`
  (see `ramify.train.optimization.optimizer.guard`), so that the host does not need their values;
- keep its state in `state[parameter]` under names that `ramify.train.state.MOMENTS` lists.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ramify.recipe import OptimizerOptions

Groups = list[dict[str, Any]]
MakeOptimizer = Callable[[Groups, OptimizerOptions], torch.optim.Optimizer]


def adamw(groups: Groups, options: OptimizerOptions) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter, arXiv:1711.05101), for all parameters."""
    return torch.optim.AdamW(groups, lr=options.lr, betas=options.betas, fused=True)


NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration, chosen for a steep slope at zero (K. Jordan et al., "Muon: An optimizer for
hidden layers in neural networks", https://kellerjordan.github.io/posts/muon/)."""
ITERATIONS = 5
SMALLEST = 1e-7
"""Smallest norm by which a matrix is divided, so that rounding errors are not amplified."""


class Muon(torch.optim.Optimizer):
    """Muon for hidden matrices, AdamW for all else.

    The momentum of a matrix is replaced by (approximately) the nearest orthogonal matrix, so that all its directions
    are learnt at the same rate. Steps are scaled to the size of AdamW's, 0.2 sqrt(larger side) (Liu et al.,
    arXiv:2502.16982), so that one learning rate and one weight decay suit both.

    `torch.optim.Muon` is not used: it iterates in bfloat16 for any precision of the run, so that ranks which sum
    gradients in different orders would diverge, and it cannot skip a step without a synchronisation with the host.

    Args:
        groups: see the module; Muon updates those of `hidden` matrices.
        options: `momentum` is for Muon; `betas` are for AdamW.
    """

    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None

    def __init__(self, groups: Groups, options: OptimizerOptions) -> None:
        hidden, rest = ([g for g in groups if g["hidden"] is wanted] for wanted in (True, False))
        self._momentum = options.momentum
        super().__init__(hidden or rest, {"lr": options.lr})
        self._adamw = adamw(rest, options) if rest else None
        if self._adamw is not None:
            self._adamw.state = self.state  # shared by both
            self.param_groups = [*(self.param_groups if hidden else ()), *self._adamw.param_groups]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step."""
        skipped = None if self.found_inf is None else self.found_inf > 0
        for group in self.param_groups:
            if group["hidden"]:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._step(parameter, group["lr"], group["weight_decay"], skipped)
        if self._adamw is not None:
            for name in ("grad_scale", "found_inf"):
                setattr(self._adamw, name, getattr(self, name))
            self._adamw.step()

    def _step(self, parameter: Tensor, rate: float, weight_decay: float, skipped: Tensor | None) -> None:
        assert parameter.grad is not None
        gradient = parameter.grad if self.grad_scale is None else parameter.grad / self.grad_scale.to(parameter.dtype)
        state = self.state[parameter]
        old = state.get("momentum_buffer", torch.zeros_like(parameter))
        momentum = torch.lerp(old, gradient, 1.0 - self._momentum)
        update = orthogonalised(torch.lerp(gradient, momentum, self._momentum))  # Nesterov's
        step = rate * 0.2 * math.sqrt(max(parameter.shape))
        new = parameter * (1.0 - rate * weight_decay) - step * update
        if skipped is None:
            state["momentum_buffer"] = momentum
            parameter.copy_(new)
        else:
            state["momentum_buffer"] = torch.where(skipped, old, momentum)
            parameter.copy_(torch.where(skipped, parameter, new))


def muon(groups: Groups, options: OptimizerOptions) -> torch.optim.Optimizer:
    """See `Muon`."""
    return Muon(groups, options)


def orthogonalised(matrix: Tensor) -> Tensor:
    """Approximately U Vᵀ of a matrix U S Vᵀ (singular values between 0.7 and 1.2). In bfloat16 on a GPU, where such
    products are fast and precision suffices; in float64 if the matrix is."""
    a, b, c = NEWTON_SCHULZ
    fast = matrix.dtype == torch.float32 and matrix.device.type != "cpu"
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / torch.linalg.vector_norm(x).clamp(min=SMALLEST)
    x = x.bfloat16() if fast else x
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if matrix.shape[0] > matrix.shape[1] else x).to(matrix.dtype)


OPTIMIZERS: dict[str, MakeOptimizer] = {"adamw": adamw, "muon": muon}
