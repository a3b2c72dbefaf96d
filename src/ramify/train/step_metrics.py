"""The few numbers of a step that all ranks must agree on, added up in one small vector.

They travel to the host while the device goes on with the next step, so nobody waits for them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ramify.parallel.layout import Layout
from ramify.train.objective import Loss


@dataclass(frozen=True, slots=True)
class StepResult:
    """A step as all ranks see it, the same to the bit on each.

    Attributes:
        loss: of the whole step.
        datasets: by dataset with structures in the step: its loss before weighting, its mean absolute errors of
            energies (eV/atom) and of force components (eV/Å); NaN where the step has no such labels.
        norm: of the whole gradient, each part counted once, before clipping.
        stopping: ranks that were asked to stop.
    """

    loss: float
    datasets: dict[str, tuple[float, ...]]
    norm: float
    stopping: int


class StepMetrics:
    """What this rank adds to the outcome of one step, on the device until `close`.

    Args:
        counts: structures of the step by dataset, on all ranks; every dataset of the run is named.
        layout: of this rank.
    """

    def __init__(self, counts: Mapping[str, int], layout: Layout) -> None:
        self._counts, self._layout = counts, layout
        self._entries = torch.zeros(3 + 3 * len(counts), dtype=torch.float64, device=layout.device)
        self._own = None if layout.device.type == "cpu" else torch.Event(layout.device)

    def add(self, loss: Loss) -> None:
        """The loss of one more turn."""
        self._entries[0] += loss.total.detach()
        for place, name in enumerate(self._counts, start=1):
            if name in loss.datasets:
                self._entries[3 * place : 3 * place + 3] += loss.datasets[name]

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
        self._entries[1] = squared_norm
        if stop:
            self._entries[2] = 1.0
        self._layout.sum_over_world(self._entries)
        return PendingMetrics(step, self._counts, self._entries, self._own, self._layout)


class PendingMetrics:
    """A ledger that is closed, on its way to the host.

    Attributes:
        step: from 0.
        norm: (), float64, on the device: `StepResult.norm`, for what is decided there.
    """

    def __init__(
        self, step: int, counts: Mapping[str, int], entries: Tensor, own: torch.Event | None, layout: Layout
    ) -> None:
        self.step, self.norm = step, entries[1].sqrt()
        self._own, self._layout = own, layout
        self._counts, self._host, self._arrived = counts, entries, None
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
        (loss, squared, stopping), *triples = self._host.reshape(-1, 3).tolist()
        datasets = {n: tuple(triple) for (n, count), triple in zip(self._counts.items(), triples, strict=True) if count}
        return StepResult(loss, datasets, math.sqrt(squared) if squared >= 0 else math.nan, int(stopping))
