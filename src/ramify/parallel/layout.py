"""`Layout`: this process among those of a run, and the sums that they take together.

There is one training loop. A process that runs alone has a layout too, whose sums change nothing and which makes no
process group at all.
"""

import pickle
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from ramify.model.parts import branch_of_part, part_of_branch
from ramify.planning.placement import Placement

T = TypeVar("T")
CONTROL = "control"
"""What all else that is summed over the world is counted as: once per step its norm, losses and flags."""
GATHERED = "gathered"
"""What `Layout.gather` is counted as: errors on validation splits, and what is agreed on around checkpoints."""


@dataclass(frozen=True, eq=False)
class Layout:
    """Which rank this is, what it hosts, and with whom it shares it.

    Attributes:
        rank: from 0.
        placement: of all branches on all ranks.
        device: where the model of this rank lives.
        groups: by hosted branch, the ranks that host it; None where this rank is the only one.
        mesh: the ranks as a rectangle (branch, replica) or as a row (replica,), where they are one; None otherwise.
        traffic: bytes handed to collectives by this rank so far, by what they were (`ENCODER`, `branches.NAME`,
            `CONTROL`, `GATHERED`).
        on_waiting: called before this rank waits for all others, as they do at the same place.
    """

    rank: int
    placement: Placement
    device: torch.device
    groups: Mapping[str, dist.ProcessGroup | None]
    mesh: DeviceMesh | None = None
    traffic: Counter[str] = field(default_factory=Counter)
    on_waiting: Callable[[], None] = lambda: None

    @classmethod
    def alone(cls, branches: Sequence[str], device: torch.device | str = "cpu") -> "Layout":
        """One process that hosts all branches; needs no launcher and makes no process group."""
        return cls(0, Placement.alone(branches), torch.device(device), dict.fromkeys(branches))

    @classmethod
    def spread(cls, placement: Placement, device: torch.device) -> "Layout":
        """The layout of this rank, once the processes have met (`ramify.parallel.launch`). All ranks must call it.

        Raises:
            ValueError: the placement is for another number of ranks.
        """
        if placement.ranks != dist.get_world_size():
            raise ValueError(f"a placement over {placement.ranks} ranks cannot hold {dist.get_world_size()}")
        mesh = _mesh(placement, device)
        return cls(dist.get_rank(), placement, device, _groups(placement, mesh), mesh)

    @property
    def world(self) -> int:
        """Number of ranks."""
        return self.placement.ranks

    @property
    def is_rank_zero(self) -> bool:
        """Whether this rank writes the log and speaks to the terminal."""
        return self.rank == 0

    @property
    def hosted(self) -> tuple[str, ...]:
        """The branches on this rank, in the recipe's order."""
        return self.placement.hosted(self.rank)

    def owner(self, branch: str) -> int:
        """The rank that answers for `branch` where only one may: its first host."""
        return self.placement.hosts[branch][0]

    def owns(self, branch: str) -> bool:
        """Whether this rank is the owner of `branch`."""
        return self.owner(branch) == self.rank

    def sum_over_world(self, tensor: Tensor, what: str = CONTROL) -> None:
        """Adds up `tensor` over all ranks, in place, to the same bits on all of them."""
        work = self.start_sum(tensor, what)
        if work is not None:
            self.on_waiting()
            work.wait()

    def sum_over_branch(self, branch: str, tensor: Tensor) -> None:
        """Adds up `tensor` over the hosts of `branch`, in place, to the same bits on all of them."""
        work = self.start_sum(tensor, part_of_branch(branch))
        if work is not None:
            work.wait()

    def start_sum(self, tensor: Tensor, what: str) -> dist.Work | None:
        """Begins to add up `tensor`: over the hosts of a branch if `what` is `branches.NAME`, over the world otherwise.

        All ranks of a group must begin its sums in the same order. The tensor holds the sum once the result has been
        waited for; None: nobody to add up with, it stands already.
        """
        group = self._group(what)
        if group is None:
            return None
        self.traffic[what] += tensor.numel() * tensor.element_size()
        return dist.all_reduce(tensor, group=group, async_op=True)

    def is_shared(self, what: str) -> bool:
        """Whether other ranks take part in the sums of `what` (see `start_sum`)."""
        return self._group(what) is not None

    def _group(self, what: str) -> dist.ProcessGroup | None:
        if (branch := branch_of_part(what)) is not None:
            return self.groups[branch]
        return dist.group.WORLD if self.world > 1 else None

    def gather(self, value: T) -> list[T]:
        """What every rank brought, by rank, on all ranks; for a little plain data."""
        if self.world == 1:
            return [value]
        self.traffic[GATHERED] += len(pickle.dumps(value))
        gathered: list[T] = [value] * self.world
        self.on_waiting()
        dist.all_gather_object(gathered, value)
        return gathered

    def barrier(self) -> None:
        """Returns when all ranks have come here."""
        self.sum_over_world(torch.zeros(1))  # on the CPU: unlike that of an accelerator it waits for the sum itself


def _mesh(placement: Placement, device: torch.device) -> DeviceMesh | None:
    """(branch, replica) where every rank hosts one branch and all branches have as many ranks, (replica,) where every
    rank hosts all."""
    hosts = list(placement.hosts.values())
    everyone = tuple(range(placement.ranks))
    if all(ranks == everyone for ranks in hosts):
        return DeviceMesh(device.type, list(everyone), mesh_dim_names=("replica",))
    if len({len(ranks) for ranks in hosts}) == 1 and sorted(sum(hosts, ())) == list(everyone):
        return DeviceMesh(device.type, [list(ranks) for ranks in hosts], mesh_dim_names=("branch", "replica"))
    return None


def _groups(placement: Placement, mesh: DeviceMesh | None) -> dict[str, dist.ProcessGroup | None]:
    """The group of every branch on this rank. Branches with the same hosts share one; the world is made only once."""
    rank, everyone = dist.get_rank(), tuple(range(placement.ranks))
    made: dict[tuple[int, ...], dist.ProcessGroup | None] = {everyone: dist.group.WORLD if len(everyone) > 1 else None}
    for branch, ranks in placement.hosts.items():
        if ranks in made:
            continue
        if len(ranks) == 1:
            made[ranks] = None
        elif mesh is not None:
            made[ranks] = mesh.get_group("replica") if rank in ranks else None
        else:  # every rank must make every group, also those that it is not in
            made[ranks] = dist.new_group(list(ranks), group_desc=f"hosts of {branch}")
    return {branch: made[placement.hosts[branch]] for branch in placement.hosted(rank)}
