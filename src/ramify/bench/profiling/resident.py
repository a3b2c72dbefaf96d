"""Measured memory of a rank: persistent tensors, and memory of the process."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ramify import system
from ramify.parallel.sharded_tensors import to_local
from ramify.train.loop import Trainer


def resident_bytes(trainer: Trainer) -> dict[str, int]:
    """Bytes of all tensors that persist between steps, by kind; shared memory is counted once."""
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
    """Resets the peak of `peak_bytes`."""
    system.reset_peak_memory()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_bytes(device: torch.device) -> int:
    """Peak memory of this process in bytes: of the accelerator, or on a CPU of main memory."""
    if device.type == "cpu":
        return system.peak_memory()
    return int(getattr(torch, device.type).max_memory_allocated(device))
