"""Parameter groups, gradient clipping, and averaged weights."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from ramify.model.multibranch import hidden_matrices
from ramify.parallel.sharded_tensors import is_sharded, to_local
from ramify.recipe import OptimizerOptions
from ramify.train.optimization.optimizers import OPTIMIZERS


def build_optimizer(
    model: nn.Module, options: OptimizerOptions, rate_factor: Callable[[str], float] = lambda name: 1.0
) -> torch.optim.Optimizer:
    """The optimizer of a recipe over all trainable parameters of `model`.

    Weight decay applies to linear maps only (no biases, norms, embeddings). The learning rate of a parameter `name` is
    multiplied by `rate_factor(name)`, see `set_rate`.
    """
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    matrices = hidden_matrices(model)
    groups: dict[tuple[float, float, bool, bool], list[nn.Parameter]] = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            decay = options.weight_decay if p.ndim >= 2 and id(p) not in embeddings else 0.0
            hidden = name in matrices
            # PyTorch cannot update sharded and unsharded parameters in one group
            groups.setdefault((decay, rate_factor(name), is_sharded(p), hidden), []).append(p)
    chosen = [
        {"params": members, "weight_decay": decay, "part": part, "hidden": hidden}
        for (decay, part, _, hidden), members in groups.items()
    ]
    return OPTIMIZERS[options.kind](chosen, options)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of the next step; each parameter group multiplies it by its factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["part"]


def guard(optimizer: torch.optim.Optimizer, norm: Tensor, limit: float | None) -> None:
    """Makes the next step clip its gradients, or skip the update where they are not finite.

    The fused update decides both on the device, with the attributes by which `torch.amp.GradScaler` passes a divisor
    and a skip flag: the host does not need the norm.

    Args:
        optimizer: fused.
        norm: () of the whole gradient.
        limit: largest norm, as of `torch.nn.utils.clip_grad_norm_`; None for no clipping.
    """
    scale = None if limit is None else ((norm + 1e-6) / limit).clamp(min=1.0).float()
    attributes = {"grad_scale": scale, "found_inf": (~torch.isfinite(norm)).float()}
    for name, value in attributes.items():
        setattr(optimizer, name, value)


class AveragedWeights:
    """Exponential moving average of all parameters.

    The decay starts low, min(decay, (1 + t) / (10 + t)) after t updates, so that early averages follow the weights
    (the rule of tf.train.ExponentialMovingAverage). With decay 0 the averages are the weights themselves and need no
    memory.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._parameters = list(model.parameters())
        self._averages = [p.detach().clone() for p in self._parameters] if decay else None
        self._since: dict[int, list[int]] = {0: list(range(len(self._parameters)))}

    @property
    def averages(self) -> list[Tensor]:
        """Of every parameter, in the order of the model."""
        return [p.detach() for p in self._parameters] if self._averages is None else self._averages

    def start_at(self, parameters: Iterable[nn.Parameter], update: int) -> None:
        """Counts the updates t of these parameters from update number `update`."""
        chosen = {id(p) for p in parameters}
        moved = [k for k, p in enumerate(self._parameters) if id(p) in chosen]
        self._since = {since: [k for k in ks if k not in set(moved)] for since, ks in self._since.items()}
        self._since.setdefault(update, []).extend(moved)

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """Moves the averages towards the weights after update number `updates` (from 0)."""
        if self._averages is None:
            return
        for since, members in self._since.items():
            t = updates - since
            decay = min(self.decay, (1 + t) / (10 + t))
            weights = [to_local(self._parameters[k].detach()) for k in members]
            if weights:
                torch._foreach_lerp_([to_local(self._averages[k]) for k in members], weights, 1.0 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges weights and averages in place; a second call restores them."""
        if self._averages is None:
            return
        for parameter, average in zip(self._parameters, self._averages, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)
