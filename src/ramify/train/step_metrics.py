"""The metrics of a step that all ranks share, summed in one small vector.

They are copied to the host while the device computes the next step, so that the device never waits for the host.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ramify.parallel.layout import Layout
from ramify.train.optimization.objective import Loss

OF_STEP = ("loss", "squared_norm", "stopping")
"""The entries before those of the datasets."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """The metrics of a step over all ranks, bit-identical on each.

    Attributes:
        loss: of the whole step.
        datasets: by dataset with structures in the step, its loss before weighting and its mean absolute errors
            (`Objective.names`); NaN where the step has no such labels.
        norm: of the whole gradient, each part counted once, before clipping.
        stopping: number of ranks that were requested to stop.
    """

    loss: float
    datasets: dict[str, dict[str, float]]
    norm: float
    stopping: int


class StepMetrics:
    """The contribution of this rank to the metrics of a step, on the device until `reduce`.

    Args:
        counts: number of structures of the step by dataset, over all ranks; contains every dataset of the run.
        names: of the values of each dataset, see `Objective.names`.
        layout: of this rank.
    """

    def __init__(self, counts: Mapping[str, int], names: Sequence[str], layout: Layout) -> None:
        self._counts, self._names, self._layout = counts, tuple(names), layout
        size = len(OF_STEP) + len(names) * len(counts)
        self._entries = torch.zeros(size, dtype=torch.float64, device=layout.device)
        self._backward_end = None if layout.device.type == "cpu" else torch.Event(layout.device)

    def add(self, loss: Loss) -> None:
        """Adds the loss of a micro-batch."""
        self._entries[OF_STEP.index("loss")] += loss.total.detach()
        of_datasets = self._entries[len(OF_STEP) :].view(len(self._counts), len(self._names))
        for row, name in zip(of_datasets, self._counts, strict=True):
            if name in loss.datasets:
                row += torch.stack([loss.datasets[name][key] for key in self._names])

    def mark_backward_end(self) -> None:
        """Records an event after the passes of this rank; later work on the device may wait for other ranks."""
        if self._backward_end is not None:
            self._backward_end.record()

    def reduce(self, step: int, squared_norm: Tensor, *, stop: bool) -> "PendingMetrics":
        """Sums the metrics over all ranks.

        Args:
            step: from 0.
            squared_norm: of the gradients that are counted on this rank.
            stop: whether this rank was requested to stop.
        """
        self._entries[OF_STEP.index("squared_norm")] = squared_norm
        if stop:
            self._entries[OF_STEP.index("stopping")] = 1.0
        self._layout.sum_over_world(self._entries)
        return PendingMetrics(step, self._counts, self._names, self._entries, self._backward_end, self._layout)


class PendingMetrics:
    """Summed metrics that are being copied to the host.

    Attributes:
        step: from 0.
        norm: (), float64, on the device: `StepResult.norm`, for gradient clipping.
    """

    def __init__(
        self,
        step: int,
        counts: Mapping[str, int],
        names: Sequence[str],
        entries: Tensor,
        backward_end: torch.Event | None,
        layout: Layout,
    ) -> None:
        self.step, self.norm = step, entries[OF_STEP.index("squared_norm")].sqrt()
        self._backward_end, self._layout = backward_end, layout
        self._counts, self._names, self._host, self._copied = counts, tuple(names), entries, None
        if entries.device.type != "cpu":
            # a copy into memory that is not page-locked would block the host
            self._host = torch.empty_like(entries, device="cpu", pin_memory=True)
            self._host.copy_(entries, non_blocking=True)
            self._copied = torch.Event(entries.device)
            self._copied.record()

    def read(self) -> StepResult:
        """Waits until the device has completed the step, but not for work that was queued after it."""
        if self._copied is not None:
            with self._layout.watchdog.waiting(self._backward_is_running):
                self._copied.synchronize()
        values = self._host.tolist()
        step, rest = dict(zip(OF_STEP, values, strict=False)), iter(values[len(OF_STEP) :])
        found = {dataset: {name: next(rest) for name in self._names} for dataset in self._counts}
        squared = step["squared_norm"]
        return StepResult(
            loss=step["loss"],
            datasets={dataset: found[dataset] for dataset, count in self._counts.items() if count},
            norm=math.sqrt(squared) if squared >= 0 else math.nan,
            stopping=int(step["stopping"]),
        )

    def _backward_is_running(self) -> bool:
        return self._backward_end is not None and not self._backward_end.query()
