"""Batches on their way to an accelerator, while it computes on earlier ones."""

import threading
from typing import Protocol

import torch

from ramify.batches.batch import Batch


class Transfer(Protocol):
    """The way of batches from the threads that make them to the one that trains."""

    def send(self, batch: Batch) -> Batch:
        """Called by the thread that made the batch."""

    def receive(self, batch: Batch) -> Batch:
        """Called by the thread that uses it; what it then does on the device comes after the batch has arrived."""


def transfer_to(device: torch.device | None) -> Transfer:
    """The way to `device`: for CUDA through page-locked memory and a stream beside that of the computation."""
    return _CudaTransfer(device) if device is not None and device.type == "cuda" else _NoTransfer()


class _NoTransfer:
    """Stays where it was made; other devices are reached by the step itself."""

    def send(self, batch: Batch) -> Batch:
        return batch

    def receive(self, batch: Batch) -> Batch:
        return batch


class _CudaTransfer:
    """Copies run on a stream of each sending thread's own; the device knows when they are through, nobody waits."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._local = device, threading.local()
        self._arrived: dict[int, torch.cuda.Event] = {}  # by the identity of the batch that is on its way

    def send(self, batch: Batch) -> Batch:
        if not hasattr(self._local, "stream"):
            self._local.stream = torch.cuda.Stream(self._device)
        pinned = batch.pinned()
        with torch.cuda.stream(self._local.stream):
            sent = pinned.to(self._device, non_blocking=True)
            self._arrived[id(sent)] = self._local.stream.record_event()
        return sent

    def receive(self, batch: Batch) -> Batch:
        current = torch.cuda.current_stream(self._device)
        current.wait_event(self._arrived.pop(id(batch)))
        for tensor in batch.tensors().values():
            tensor.record_stream(current)  # its memory was taken on the other stream: not to be given away too early
        return batch
