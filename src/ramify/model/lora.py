"""Low-rank updates of linear layers (LoRA, Hu et al., arXiv:2106.09685): W + U D, where only U and D are trained.

U is initialised with zeros, so that new updates do not change predictions. The layer multiplies by the sum W + U D, and
merged models store the same sum: merging changes nothing, not even by rounding.
"""

import hashlib
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

UP, DOWN = "low_rank_up", "low_rank_down"
"""Names of the parameters U (width_out, rank) and D (rank, width_in) of a layer."""


class LoRALinear(nn.Linear):
    """A linear layer with frozen weight and bias, plus a low-rank update.

    Args:
        linear: the layer; its weight and bias are reused and frozen.
        rank: of the update, at most that of the weight.
        seed: of D, which is initialised with normal numbers of variance 1 / width_in.
    """

    def __init__(self, linear: nn.Linear, rank: int, seed: int) -> None:
        nn.Module.__init__(self)  # not `nn.Linear.__init__`, which would create a new weight
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.requires_grad_(False)
        rank = min(rank, linear.out_features, linear.in_features)
        generator = torch.Generator().manual_seed(seed)
        down = torch.randn(rank, linear.in_features, generator=generator) / math.sqrt(linear.in_features)
        self.register_parameter(DOWN, nn.Parameter(down.to(linear.weight)))
        self.register_parameter(UP, nn.Parameter(linear.weight.new_zeros(linear.out_features, rank)))

    def forward(self, values: Tensor) -> Tensor:
        """(..., width_in) -> (..., width_out)."""
        return nn.functional.linear(values, weight_of(self), self.bias)


def weight_of(layer: nn.Linear) -> Tensor:
    """The effective weight of a linear layer, (width_out, width_in), with its update if it has one."""
    if isinstance(layer, LoRALinear):
        return _sum(layer.weight, layer.get_parameter(UP), layer.get_parameter(DOWN))
    return layer.weight


def add_lora(module: nn.Module, rank: int, seed: int) -> None:
    """Replaces every linear layer below `module` by one with an update; freezes all other parameters."""
    module.requires_grad_(False)
    for path, child in list(module.named_modules()):
        if isinstance(child, nn.Linear):
            parent, _, name = path.rpartition(".")
            own_seed = hashlib.blake2b(f"{seed}/{path}".encode(), digest_size=7).digest()
            setattr(module.get_submodule(parent), name, LoRALinear(child, rank, int.from_bytes(own_seed, "little")))


def is_lora_weight(name: str) -> bool:
    """Whether the tensor `name` is a factor of an update."""
    return name.rpartition(".")[2] in (UP, DOWN)


def merge_lora(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the same network without updates, which are added to the weights."""
    found = {name: tensor for name, tensor in weights.items() if not is_lora_weight(name)}
    for name, up in weights.items():
        layer, _, last = name.rpartition(".")
        if last == UP:
            found[f"{layer}.weight"] = _sum(weights[f"{layer}.weight"], up, weights[f"{layer}.{DOWN}"])
    return found


def _sum(weight: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """W + U D; never in bfloat16, where rounding would remove small updates."""
    with torch.autocast(weight.device.type, enabled=False):
        return torch.addmm(weight, up, down)
