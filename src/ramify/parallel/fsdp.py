"""Sharding of the encoder over ranks: weights, gradients and optimizer state, with PyTorch's FSDP2 (`fully_shard`).

Between steps a rank keeps a shard of each tensor of the encoder (a `DTensor`, sharded along its first dimension); the
optimizer and the averaged weights use these shards. For the passes of a step, and for an evaluation, the full weights
are all-gathered once and kept until the passes are finished; the gradient of each layer is reduce-scattered to the
shards as soon as the last backward pass has computed it. So a step communicates each weight and each gradient once,
for any number of micro-batches: the volume equals that of an all-reduce of the full gradient, which is a reduce-scatter
and an all-gather.

FSDP2 can also gather and scatter automatically, in hooks of every forward and backward pass. They are switched off:
conservative forces differentiate within the forward pass, and after it the hooks would free weights that the second
differentiation needs; ranks have different numbers of micro-batches, some have none, and their hooks would deadlock;
and all ranks must begin all collectives in one order, those of branches too (`ramify.parallel.grad_sync`).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from ramify.model.multibranch import MultiBranch
from ramify.model.parts import ENCODER
from ramify.parallel.grad_sync import Bucket, SyncedPart
from ramify.parallel.layout import Layout, new_mesh
from ramify.planning.costs import encoder_shards
from ramify.recipe import ParallelOptions


class FSDPUnit(Bucket):
    """A layer of the encoder, or all its parameters outside layers: one all-gather, one reduce-scatter of gradients.

    Args:
        module: sharded, with its full weights gathered at this moment.
        shards: this rank's shard of each parameter of this unit, by name within `module`.
        mesh: (shard,) or (replica, shard).

    Attributes:
        module: as given.
        shards: as given, without the names.
        bytes: of the shards of all ranks that share one copy; all shards have one size, the last ones are padded.
    """

    def __init__(self, module: FSDPModule, shards: Mapping[str, nn.Parameter], mesh: DeviceMesh) -> None:
        assert isinstance(module, nn.Module)
        super().__init__(ENCODER, [module.get_parameter(name) for name in shards])
        self.module, self.shards, self._mesh = module, tuple(shards.values()), mesh
        ranks = mesh.size(-1)
        self._sizes = [math.ceil(len(p) / ranks) * p[0].numel() for p in self.parameters]
        self.bytes = ranks * sum(self._sizes) * self.parameters[0].element_size()

    def send(self, layout: Layout) -> "_ReduceScatter":
        """Begins the reduce-scatter of the gradients: each rank receives the sums for its shards."""
        ranks = self._mesh.size(-1)
        rows = [
            nn.functional.pad(gradient.reshape(-1), (0, ranks * size - gradient.numel())).view(ranks, size)
            for gradient, size in zip(self.gradients(), self._sizes, strict=True)
        ]
        for parameter in self.parameters:
            parameter.grad = None
        layout.traffic[ENCODER] += self.bytes
        return _ReduceScatter(self, torch.cat(rows, dim=1), self._mesh, layout)

    def set_gradients(self, flat: Tensor) -> None:
        """Sets the gradients of the shards from `flat`, which holds them one after the other with padding."""
        for shard, padded in zip(self.shards, flat.split(self._sizes), strict=True):
            assert isinstance(shard, DTensor)
            local = shard.to_local()
            shard.grad = DTensor.from_local(
                padded[: local.numel()].view(local.shape),
                shard.device_mesh,
                shard.placements,
                run_check=False,
                shape=shard.shape,
                stride=shard.stride(),
            )


class _ReduceScatter:
    """A sum in progress: over the ranks that share a copy of the encoder, then over the copies."""

    def __init__(self, unit: FSDPUnit, rows: Tensor, mesh: DeviceMesh, layout: Layout) -> None:
        self._unit, self._rows, self._mesh, self._layout = unit, rows, mesh, layout  # keeps `rows` alive until `wait`
        self._sum = rows.new_empty(rows.shape[1])
        group = mesh.get_group(mesh.ndim - 1)
        self._work = dist.reduce_scatter_single(self._sum, rows.view(-1), group=group, async_op=True)

    def wait(self) -> None:
        """Stores the sums as the gradients of the unit's shards."""
        self._work.wait()
        if self._mesh.ndim == 2:
            self._layout.traffic[ENCODER] += self._sum.numel() * self._sum.element_size()
            dist.all_reduce(self._sum, group=self._mesh.get_group(0))
        self._unit.set_gradients(self._sum)


class ShardedEncoder:
    """This rank's shards of the encoder.

    Args:
        units: in the order in which a backward pass reaches them; empty where every rank keeps the full encoder.
        layout: of this rank.
        is_counted_here: whether this rank's copy counts in the norm of the gradient.

    Attributes:
        part: for `GradientSync`; None where this rank has the full encoder.
    """

    def __init__(self, units: Sequence[FSDPUnit], layout: Layout, *, is_counted_here: bool) -> None:
        self._units, self._layout = tuple(units), layout
        shards = tuple(shard for unit in units for shard in unit.shards)
        self.part = SyncedPart(ENCODER, shards, is_counted_here, self._units) if units else None

    @contextmanager
    def gathered(self, what: str = ENCODER) -> Iterator[None]:
        """Inside, this rank holds the full encoder; a collective call, also for ranks that do not need it.

        Args:
            what: the key under which its bytes are counted (`Layout.traffic`).
        """
        handles = []
        for unit in reversed(self._units):
            self._layout.traffic[what] += unit.bytes
            handles.append((unit.module, unit.module.unshard(async_op=True)))
        try:
            yield
        finally:
            for module, handle in handles:
                assert handle is not None
                handle.wait()  # no pass may have waited for it
                module.reshard()


def shard_encoder(model: MultiBranch, layout: Layout, options: ParallelOptions) -> ShardedEncoder:
    """Shards the encoder of a model in place, following `parallel.shard`; all ranks must call it.

    Args:
        model: on its device. The parameters of its encoder are replaced: create optimizer and averages afterwards.
        layout: of this rank.
        options: of the recipe.

    Raises:
        RamifyError: `parallel.shard_ranks` does not divide the number of ranks.
    """
    n_shards = encoder_shards(options, layout.size)
    if n_shards == 1:
        return ShardedEncoder((), layout, is_counted_here=layout.is_rank_zero)
    mesh = _mesh(layout, n_shards)
    stacks = [child for child in model.encoder.children() if isinstance(child, nn.ModuleList)]
    layers = [layer for stack in stacks for layer in stack]
    sharded: list[tuple[FSDPModule, dict[str, nn.Parameter]]] = []
    for module in (*layers, model.encoder):
        taken = {shard for _, shards in sharded for shard in shards.values()}
        found = fully_shard(module, mesh=mesh, reshard_after_forward=False)
        sharded.append((found, {name: shard for name, shard in module.named_parameters() if shard not in taken}))
        found.set_requires_gradient_sync(False)
        found.set_reshard_after_backward(False)
    for found, _ in sharded:
        found.unshard()
    *units, rest = [FSDPUnit(found, shards, mesh) for found, shards in sharded]
    for found, _ in sharded:
        found.reshard()
    is_first_copy = mesh.ndim == 1 or mesh.get_local_rank(0) == 0
    return ShardedEncoder([*reversed(units), rest], layout, is_counted_here=is_first_copy)


def _mesh(layout: Layout, n_shards: int) -> DeviceMesh:
    """(shard,), or (replica, shard) where there are several copies of the encoder."""
    ranks = torch.arange(layout.size)
    if n_shards == layout.size:
        return new_mesh(layout.device, ranks, ("shard",))
    return new_mesh(layout.device, ranks.view(-1, n_shards), ("replica", "shard"))
