"""Functions for tensors that may be sharded over ranks (`DTensor`); they return unsharded tensors unchanged."""

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether this rank holds only a shard."""
    return isinstance(tensor, DTensor)


def to_local(tensor: Tensor) -> Tensor:
    """This rank's shard of a tensor; shares its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor, detached; a collective call, in the same order on all ranks."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def distribute_like(pattern: Tensor, tensor: Tensor) -> Tensor:
    """A copy of a full tensor, which every rank has, sharded like `pattern` on its device; scalars stay full."""
    tensor = tensor.detach().to(pattern.device)
    if isinstance(pattern, DTensor) and tensor.ndim:
        tensor = distribute_tensor(tensor, pattern.device_mesh, pattern.placements, src_data_rank=None)
    return tensor.clone()
