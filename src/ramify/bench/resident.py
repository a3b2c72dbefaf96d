"""Memory of a rank, measured: what its tensors take from step to step, and what the system counts for the process."""

import ctypes
import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ramify.parallel.sharded_tensors import to_local
from ramify.train.loop import Trainer

STATUS = Path("/proc/self/status")


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


def process_bytes() -> int:
    """What the system counts for this process now (VmRSS), after free memory has been handed back to it.

    0 where the system does not say (it is read from Linux's /proc).
    """
    gc.collect()
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):  # glibc only
            libc.malloc_trim(0)
    return _status("VmRSS")


def forget_peak() -> None:
    """The peak of `peak_bytes` begins anew: Linux's /proc/self/clear_refs, an accelerator's own statistics."""
    refs = Path("/proc/self/clear_refs")
    if refs.exists():
        refs.write_text("5", encoding="ascii")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_bytes(device: torch.device) -> int:
    """The most that this process has held: on an accelerator of its memory, else of the system's (VmHWM)."""
    if device.type == "cpu":
        return _status("VmHWM")
    return int(getattr(torch, device.type).max_memory_allocated(device))


def _status(key: str) -> int:
    if not STATUS.exists():
        return 0
    lines = dict(line.split(":", 1) for line in STATUS.read_text(encoding="ascii").splitlines() if ":" in line)
    return int(lines[key].split()[0]) * 1024
