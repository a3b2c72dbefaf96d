"""The few numbers of a step that all ranks must agree on, added up in one small vector.

They travel to the host while the device goes on with the next step, so nobody waits for them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ramify.parallel.layout import Layout
from ramify.train.optimization.objective import Loss

OF_STEP = ("loss", "squared_norm", "stopping")
"""What comes before the numbers of datasets."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """A step as all ranks see it, the same to the bit on each.

    Attributes:
        loss: of the whole step.
        datasets: by dataset with structures in the step: its loss before weighting and its mean absolute errors
            (`Objective.names`); NaN where the step has no such labels.
        norm: of the whole gradient, each part counted once, before clipping.
        stopping: ranks that were asked to stop.
    """

    loss: float
    datasets: dict[str, dict[str, float]]
    norm: float
    stopping: int


class StepMetrics:
    """What this rank adds to the outcome of one step, on the device until `close`.

    Args:
        counts: structures of the step by dataset, on all ranks; every dataset of the run is named.
        names: of what is added up for each of them, see `Objective.names`.
        layout: of this rank.
    """

    def __init__(self, counts: Mapping[str, int], names: Sequence[str], layout: Layout) -> None:
        self._counts, self._names, self._layout = counts, tuple(names), layout
        size = len(OF_STEP) + len(names) * len(counts)
        self._entries = torch.zeros(size, dtype=torch.float64, device=layout.device)
        self._own = None if layout.device.type == "cpu" else torch.Event(layout.device)

    def add(self, loss: Loss) -> None:
        """The loss of one more turn."""
        self._entries[OF_STEP.index("loss")] += loss.total.detach()
        of_datasets = self._entries[len(OF_STEP) :].view(len(self._counts), len(self._names))
        for row, name in zip(of_datasets, self._counts, strict=True):
            if name in loss.datasets:
                row += torch.stack([loss.datasets[name][key] for key in self._names])

    def differentiated(self) -> None:
        """This rank's own part of the gradients is told to the device; all that follows waits for other ranks, too."""
        if self._own is not None:
            self._own.record()

    def close(self, step: int, squared_norm: Tensor, *, stop: bool) -> "PendingMetrics":
        """Adds up over all ranks.

        Args:
            step: from 0.
            squared_norm: of the gradients that this rank answers for.
            stop: whether this rank was asked to stop.
        """
        self._entries[OF_STEP.index("squared_norm")] = squared_norm
        if stop:
            self._entries[OF_STEP.index("stopping")] = 1.0
        self._layout.sum_over_world(self._entries)
        return PendingMetrics(step, self._counts, self._names, self._entries, self._own, self._layout)


class PendingMetrics:
    """A ledger that is closed, on its way to the host.

    Attributes:
        step: from 0.
        norm: (), float64, on the device: `StepResult.norm`, for what is decided there.
    """

    def __init__(
        self,
        step: int,
        counts: Mapping[str, int],
        names: Sequence[str],
        entries: Tensor,
        own: torch.Event | None,
        layout: Layout,
    ) -> None:
        self.step, self.norm = step, entries[OF_STEP.index("squared_norm")].sqrt()
        self._own, self._layout = own, layout
        self._counts, self._names, self._host, self._arrived = counts, tuple(names), entries, None
        if entries.device.type != "cpu":
            # from memory that is not page-locked the copy would make the host wait
            self._host = torch.empty_like(entries, device="cpu", pin_memory=True)
            self._host.copy_(entries, non_blocking=True)
            self._arrived = torch.Event(entries.device)
            self._arrived.record()

    def read(self) -> StepResult:
        """Waits for the step to be over on the device, not for what it was told after that."""
        if self._arrived is not None:
            with self._layout.watchdog.waiting(lambda: self._own is not None and not self._own.query()):
                self._arrived.synchronize()
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
