"""Asynchronous transfer of batches to an accelerator, and of results back."""

import threading
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ramify.batches.batch import Batch

Finish = Callable[[Batch], Batch]
"""Completes a batch on its device."""


class Transfer(Protocol):
    """Transfers batches from the threads that make them to the training thread."""

    def send(self, batch: Batch, finish: Finish) -> Batch:
        """Starts the transfer and the work of `finish` after it; called by the thread that made the batch."""

    def receive(self, batch: Batch) -> Batch:
        """Called by the training thread; orders its subsequent work on the device after the transfer."""


def transfer_to(device: torch.device | None) -> Transfer:
    """Creates the transfer to `device` (None: the CPU): for CUDA by page-locked memory and a separate stream."""
    device = device or torch.device("cpu")
    return _CudaTransfer(device) if device.type == "cuda" else _PlainTransfer(device)


def host_array(tensor: torch.Tensor) -> NDArray[np.float64]:
    """The values of a tensor as float64 on the host; waits for the device."""
    return tensor.detach().to("cpu", torch.float64).numpy()


class _PlainTransfer:
    """Copies batches to a device and completes them there, without a stream of its own; on the CPU, copies nothing."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def send(self, batch: Batch, finish: Finish) -> Batch:
        return finish(batch.to(self._device))

    def receive(self, batch: Batch) -> Batch:
        return batch


class _CudaTransfer:
    """Copies and completes batches on one stream per sending thread; the stream of the steps waits for its events, the
    training thread does not wait."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._local = device, threading.local()
        self._arrived: dict[int, torch.cuda.Event] = {}  # by the id of the batch in transfer

    def send(self, batch: Batch, finish: Finish) -> Batch:
        if not hasattr(self._local, "stream"):
            self._local.stream = torch.cuda.Stream(self._device)
        pinned = batch.pinned()
        with torch.cuda.stream(self._local.stream):
            sent = finish(pinned.to(self._device, non_blocking=True))
            self._arrived[id(sent)] = self._local.stream.record_event()
        return sent

    def receive(self, batch: Batch) -> Batch:
        current = torch.cuda.current_stream(self._device)
        current.wait_event(self._arrived.pop(id(batch)))
        for tensor in (*batch.tensors().values(), *batch.further.values()):
            tensor.record_stream(current)  # allocated on the other stream: prevents early reuse of its memory
        return batch
