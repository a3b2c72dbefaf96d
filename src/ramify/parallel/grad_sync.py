"""Gradients summed over the ranks that share a part of the model, overlapped with the backward pass.

DistributedDataParallel is not used: encoder and branches are shared by different ranks, a rank may have no structures
in a step, and a branch without structures in a step must have no gradient at all.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ramify.model.multibranch import MultiBranch
from ramify.model.parts import ENCODER, part_of_branch, parts_of
from ramify.parallel.layout import Layout
from ramify.parallel.sharded_tensors import to_local

BUCKET_BYTES = 25 * 2**20
"""Size of the gradients sent in one message: DistributedDataParallel's `bucket_cap_mb`, a compromise between the
latency of many messages and the wait for the last one."""


class Pending(Protocol):
    """A sum in progress."""

    def wait(self) -> object:
        """Returns when the sum is complete."""
        ...


class Bucket:
    """Parameters of one part whose gradients are sent together.

    Args:
        part: name of the part.
        parameters: the tensors that the backward pass differentiates.

    Attributes:
        part, parameters: as given.
        missing: number of parameters that have no gradient of the last backward pass yet.
    """

    def __init__(self, part: str, parameters: Sequence[nn.Parameter]) -> None:
        self.part, self.parameters = part, tuple(parameters)
        self.missing = len(self.parameters)

    def gradients(self) -> list[Tensor]:
        """The gradients of the parameters; zeros where there is none."""
        return [_gradient(p) for p in self.parameters]

    def send(self, layout: Layout) -> Pending | None:
        """Begins the sum of the gradients, in one flat tensor of which the gradients are views from now on."""
        flat = torch.cat([gradient.reshape(-1) for gradient in self.gradients()])
        for view, p in zip(flat.split([p.numel() for p in self.parameters]), self.parameters, strict=True):
            p.grad = view.view_as(p)
        return layout.start_sum(flat, self.part)


@dataclass(frozen=True, slots=True)
class SyncedPart:
    """The encoder, or one branch on this rank.

    Attributes:
        name: `encoder` or `branches.NAME`.
        parameters: all of them, as the optimizer updates them.
        is_counted_here: whether this rank's parameters of the part count in the norm over all ranks.
        buckets: in the order in which they are sent; none where no other rank has the part.
    """

    name: str
    parameters: tuple[nn.Parameter, ...]
    is_counted_here: bool
    buckets: Sequence[Bucket]


class GradientSync:
    """Synchronises the gradients of the parameters on this rank.

    All ranks send buckets in one order: branches in the order of the recipe, then the encoder from its last parameters
    to its first, roughly the order of the backward pass. A bucket that is complete early waits for those before it, so
    that no two groups of ranks deadlock.

    Args:
        model: encoder and the branches hosted here.
        layout: of this rank.
        encoder: the shards of the encoder on this rank; None where it has the full encoder.
    """

    def __init__(self, model: MultiBranch, layout: Layout, encoder: SyncedPart | None = None) -> None:
        self._layout = layout
        branches = [
            _part(part_of_branch(name), model.branch(name), layout, is_counted_here=layout.owns(name))
            for name in layout.hosted
        ]
        encoder = encoder or _part(ENCODER, model.encoder, layout, is_counted_here=layout.is_rank_zero)
        self._parts = [*branches, encoder]
        self._buckets = [bucket for part in self._parts for bucket in part.buckets]
        self._all = [part.parameters for part in self._parts] + [bucket.parameters for bucket in self._buckets]
        self._active = self._parts
        self._queue: list[Bucket] = []
        self._pending: list[Pending] = []
        for bucket in self._buckets:
            for parameter in bucket.parameters:
                parameter.register_post_accumulate_grad_hook(lambda _, bucket=bucket: self._accumulated(bucket))

    def clear(self, branches: Collection[str]) -> None:
        """Begins a step in which these branches of this rank have structures, on this rank or on another one."""
        names = set(parts_of(branches))
        self._active = [part for part in self._parts if part.name in names]
        for parameters in self._all:
            for parameter in parameters:
                parameter.grad = None

    @contextmanager
    def summed(self, branches: Collection[str]) -> Iterator[None]:
        """Context of the last backward pass of a step: sends complete buckets, and at the end waits for all sums.

        Afterwards every parameter of a part with structures in the step has the gradient of the whole step, and the
        parameters of other parts have none.

        Args:
            branches: the branches of this pass; none where this rank has no structures.
        """
        active = {part.name for part in self._active}
        reached = set(parts_of(branches)) if branches else set()
        self._queue = [bucket for bucket in self._buckets if bucket.part in active]
        for bucket in self._queue:
            bucket.missing = len(bucket.parameters) if bucket.part in reached else 0
        try:
            self._send_complete()
            yield
            for bucket in self._queue:  # some parameters were not reached by the pass
                bucket.missing = 0
            self._send_complete()
            with self._layout.watchdog.waiting():
                for pending in self._pending:
                    pending.wait()
        finally:
            self._queue, self._pending = [], []
        for part in self._active:
            for parameter in part.parameters:
                parameter.grad = _gradient(parameter)

    def squared_norm(self) -> Tensor:
        """(), float64: of the gradients counted on this rank. The sum over all ranks counts each part once."""
        counted = [to_local(_gradient(p)) for part in self._active if part.is_counted_here for p in part.parameters]
        if not counted:
            return torch.zeros((), dtype=torch.float64, device=self._layout.device)
        return torch.stack(torch._foreach_norm(counted)).double().square().sum()

    def _accumulated(self, bucket: Bucket) -> None:
        """Called when one more parameter of `bucket` has its gradient of this backward pass."""
        bucket.missing -= 1
        self._send_complete()

    def _send_complete(self) -> None:
        """Sends complete buckets from the front of the queue."""
        while self._queue and self._queue[0].missing == 0:
            pending = self._queue.pop(0).send(self._layout)
            if pending is not None:
                self._pending.append(pending)


def _gradient(parameter: nn.Parameter) -> Tensor:
    """The gradient of a parameter; zeros where there is none."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _part(name: str, module: nn.Module, layout: Layout, *, is_counted_here: bool) -> SyncedPart:
    """A part that is not sharded."""
    parameters = tuple(p for p in module.parameters() if p.requires_grad)
    return SyncedPart(
        name, parameters, is_counted_here, [*_buckets(name, parameters)] if layout.is_shared(name) else []
    )


def _buckets(part: str, parameters: Sequence[nn.Parameter]) -> Iterator[Bucket]:
    """The parameters of a part in reverse order, in buckets of about `BUCKET_BYTES`."""
    collected: list[nn.Parameter] = []
    size = 0
    for parameter in reversed(parameters):
        size += parameter.numel() * parameter.element_size()
        collected.append(parameter)
        if size >= BUCKET_BYTES:
            yield Bucket(part, collected)
            collected, size = [], 0
    if collected:
        yield Bucket(part, collected)
