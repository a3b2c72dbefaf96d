"""The encoder cut up among ranks: its weights, gradients and optimizer state, with PyTorch's FSDP2 (`fully_shard`).

Between steps a rank keeps a piece of each of the encoder's tensors (a `DTensor`, cut along its first dimension); the
optimizer and the averaged weights live on these pieces. For the passes of a step, and for an evaluation, the whole
weights are gathered once and stay until the passes are over; each layer's gradient is added up and scattered to the
pieces as soon as the last backward pass is through with it. So a step hands over each weight and each gradient once,
however many turns a rank takes: over links that is as much as an all-reduce of the whole gradient, which is a scatter
and a gather, too.

FSDP2 can also gather and scatter by itself, in hooks of every forward and backward pass. They are switched off:
conservative forces differentiate within the forward pass, and when that is over the hooks would give back weights that
the second differentiation needs; ranks take different numbers of turns, some none, and their hooks would wait for each
other in vain; and all ranks must begin all sums in one order, those over branches too (`ramify.parallel.grad_sync`).
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
    """A layer of the encoder, or all that is in no layer: gathered in one message, its gradient scattered in one.

    Args:
        module: sharded, and whole at the moment.
        pieces: by name within `module`, what this rank keeps of each parameter of this unit.
        mesh: (shard,) or (replica, shard).

    Attributes:
        module: as given.
        pieces: as given, without the names.
        bytes: of all pieces of all ranks that share one copy, which have one size: the last ones are filled up.
    """

    def __init__(self, module: FSDPModule, pieces: Mapping[str, nn.Parameter], mesh: DeviceMesh) -> None:
        assert isinstance(module, nn.Module)
        super().__init__(ENCODER, [module.get_parameter(name) for name in pieces])
        self.module, self.pieces, self._mesh = module, tuple(pieces.values()), mesh
        cuts = mesh.size(-1)
        self._sizes = [math.ceil(len(p) / cuts) * p[0].numel() for p in self.parameters]
        self.bytes = cuts * sum(self._sizes) * self.parameters[0].element_size()

    def send(self, layout: Layout) -> "_Scattering":
        """Begins to add up the gradients over all ranks; each gets those of its pieces."""
        cuts = self._mesh.size(-1)
        rows = [
            nn.functional.pad(gradient.reshape(-1), (0, cuts * size - gradient.numel())).view(cuts, size)
            for gradient, size in zip(self.gradients(), self._sizes, strict=True)
        ]
        for parameter in self.parameters:
            parameter.grad = None
        layout.traffic[ENCODER] += self.bytes
        return _Scattering(self, torch.cat(rows, dim=1), self._mesh, layout)

    def take(self, flat: Tensor) -> None:
        """Makes the parts of `flat` the gradients of the pieces."""
        for piece, padded in zip(self.pieces, flat.split(self._sizes), strict=True):
            assert isinstance(piece, DTensor)
            local = piece.to_local()
            piece.grad = DTensor.from_local(
                padded[: local.numel()].view(local.shape),
                piece.device_mesh,
                piece.placements,
                run_check=False,
                shape=piece.shape,
                stride=piece.stride(),
            )


class _Scattering:
    """A sum on its way: over the ranks that share a copy of the encoder, then over the copies."""

    def __init__(self, unit: FSDPUnit, rows: Tensor, mesh: DeviceMesh, layout: Layout) -> None:
        self._unit, self._rows, self._mesh, self._layout = unit, rows, mesh, layout  # rows must live until it is there
        self._sum = rows.new_empty(rows.shape[1])
        group = mesh.get_group(mesh.ndim - 1)
        self._work = dist.reduce_scatter_single(self._sum, rows.view(-1), group=group, async_op=True)

    def wait(self) -> None:
        """Leaves the sums in the gradients of the unit's pieces."""
        self._work.wait()
        if self._mesh.ndim == 2:
            self._layout.traffic[ENCODER] += self._sum.numel() * self._sum.element_size()
            dist.all_reduce(self._sum, group=self._mesh.get_group(0))
        self._unit.take(self._sum)


class ShardedEncoder:
    """What this rank has of the encoder.

    Args:
        units: in the order in which a backward pass comes to them; none where every rank keeps the whole encoder.
        layout: of this rank.
        is_counted_here: whether this rank's copy is the one that counts in the norm of the gradient.

    Attributes:
        part: for `Gradients`; None where this rank has the whole encoder.
    """

    def __init__(self, units: Sequence[FSDPUnit], layout: Layout, *, is_counted_here: bool) -> None:
        self._units, self._layout = tuple(units), layout
        pieces = tuple(piece for unit in units for piece in unit.pieces)
        self.part = SyncedPart(ENCODER, pieces, is_counted_here, self._units) if units else None

    @contextmanager
    def gathered(self, what: str = ENCODER) -> Iterator[None]:
        """Inside, the encoder is whole; all ranks must come here together, whether they have use for it or not.

        Args:
            what: its bytes are counted as (`Layout.traffic`).
        """
        arriving = []
        for unit in reversed(self._units):
            self._layout.traffic[what] += unit.bytes
            arriving.append((unit.module, unit.module.unshard(async_op=True)))
        try:
            yield
        finally:
            for module, handle in arriving:
                assert handle is not None
                handle.wait()  # where no pass has
                module.reshard()


def shard_encoder(model: MultiBranch, layout: Layout, options: ParallelOptions) -> ShardedEncoder:
    """Cuts up the encoder of a finished model as `parallel.shard` says, in place; all ranks must call it.

    Args:
        model: on its device. Its encoder's parameters are replaced: make optimizer and averages afterwards.
        layout: of this rank.
        options: of the recipe.

    Raises:
        RamifyError: `parallel.shard_ranks` does not divide the number of ranks.
    """
    cuts = encoder_shards(options, layout.size)
    if cuts == 1:
        return ShardedEncoder((), layout, is_counted_here=layout.is_rank_zero)
    mesh = _mesh(layout, cuts)
    stacks = [child for child in model.encoder.children() if isinstance(child, nn.ModuleList)]
    layers = [layer for stack in stacks for layer in stack]
    sharded: list[tuple[FSDPModule, dict[str, nn.Parameter]]] = []
    for module in (*layers, model.encoder):
        taken = {piece for _, pieces in sharded for piece in pieces.values()}
        found = fully_shard(module, mesh=mesh, reshard_after_forward=False)
        sharded.append((found, {name: piece for name, piece in module.named_parameters() if piece not in taken}))
        found.set_requires_gradient_sync(False)
        found.set_reshard_after_backward(False)
    for found, _ in sharded:
        found.unshard()
    *units, rest = [FSDPUnit(found, pieces, mesh) for found, pieces in sharded]
    for found, _ in sharded:
        found.reshard()
    is_first_copy = mesh.ndim == 1 or mesh.get_local_rank(0) == 0
    return ShardedEncoder([*reversed(units), rest], layout, is_counted_here=is_first_copy)


def _mesh(layout: Layout, cuts: int) -> DeviceMesh:
    """(shard,), or (replica, shard) where there are several copies of the encoder."""
    ranks = torch.arange(layout.size)
    if cuts == layout.size:
        return new_mesh(layout.device, ranks, ("shard",))
    return new_mesh(layout.device, ranks.view(-1, cuts), ("replica", "shard"))
