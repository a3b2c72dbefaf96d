"""The few numbers of a step that all ranks must agree on, added up in one small vector and read once."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ramify.parallel.layout import Layout
from ramify.train.objective import Loss


@dataclass(frozen=True, slots=True)
class Outcome:
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


class Ledger:
    """What this rank adds to the outcome of one step, on the device until `close`.

    Args:
        counts: structures of the step by dataset, on all ranks; every dataset of the run is named.
        layout: of this rank.
    """

    def __init__(self, counts: Mapping[str, int], layout: Layout) -> None:
        self._counts, self._layout = counts, layout
        self._entries = torch.zeros(3 + 3 * len(counts), dtype=torch.float64, device=layout.device)

    def add(self, loss: Loss) -> None:
        """The loss of one more turn."""
        self._entries[0] += loss.total.detach()
        for place, name in enumerate(self._counts, start=1):
            if name in loss.datasets:
                self._entries[3 * place : 3 * place + 3] += loss.datasets[name]

    def close(self, squared_norm: Tensor, stop: bool) -> Outcome:
        """Adds up over all ranks.

        Args:
            squared_norm: of the gradients that this rank answers for.
            stop: whether this rank was asked to stop.
        """
        self._entries[1] = squared_norm
        if stop:
            self._entries[2] = 1.0
        self._layout.sum_over_world(self._entries)
        (loss, squared, stopping), *triples = self._entries.reshape(-1, 3).tolist()  # the only time the device is asked
        datasets = {n: tuple(triple) for (n, count), triple in zip(self._counts.items(), triples, strict=True) if count}
        return Outcome(loss, datasets, math.sqrt(squared) if squared >= 0 else math.nan, int(stopping))
