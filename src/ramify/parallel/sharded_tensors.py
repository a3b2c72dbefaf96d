"""Tensors that are cut up among ranks (`DTensor`), and what one rank has of them; whole tensors are let through."""

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether this rank has but a piece of it."""
    return isinstance(tensor, DTensor)


def to_local(tensor: Tensor) -> Tensor:
    """What this rank has of a tensor; shares its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """The tensor put together again, without its history; all ranks must ask for the same ones in the same order."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def distribute_like(pattern: Tensor, tensor: Tensor) -> Tensor:
    """A copy of a whole tensor, which every rank has, cut up as `pattern` is and on its device; numbers stay whole."""
    tensor = tensor.detach().to(pattern.device)
    if isinstance(pattern, DTensor) and tensor.ndim:
        tensor = distribute_tensor(tensor, pattern.device_mesh, pattern.placements, src_data_rank=None)
    return tensor.clone()
