"""Memory of a rank, measured: what its tensors take from step to step, and what the system counts for the process."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ramify import system
from ramify.parallel.sharded_tensors import to_local
from ramify.train.loop import Trainer


def resident_bytes(trainer: Trainer) -> dict[str, int]:
    """Bytes of all that stays from step to step after a step, by kind; memory that tensors share is counted once."""
    seen: set[int] = set()
    return {kind: _size(tensors, seen) for kind, tensors in _kinds(trainer)}


def _kinds(trainer: Trainer) -> Iterator[tuple[str, list[Tensor]]]:
    parameters = list(trainer.model.parameters())
    yield "weights", [p.detach() for p in parameters]
    yield "gradients", [p.grad for p in parameters if p.grad is not None]
    yield "optimizer", [s for p in parameters for s in trainer.optimizer.state[p].values() if isinstance(s, Tensor)]
    yield "averages", trainer.averages.averages


def _size(tensors: list[Tensor], seen: set[int]) -> int:
    total = 0
    for tensor in tensors:
        storage = to_local(tensor).untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            total += storage.nbytes()
    return total


def forget_peak() -> None:
    """`peak_bytes` counts from now on."""
    system.reset_peak_memory()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_bytes(device: torch.device) -> int:
    """The most bytes that this process has held: of the accelerator's memory, or on a CPU of main memory."""
    if device.type == "cpu":
        return system.peak_memory()
    return int(getattr(torch, device.type).max_memory_allocated(device))
