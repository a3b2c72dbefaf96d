"""`Layout`: the branches that each rank hosts, and the collectives over the ranks of a branch.

There is one training loop. A single process also has a layout; its sums change nothing and it creates no process group.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.distributed_c10d import _set_pg_timeout

from ramify.model.parts import branch_of_part
from ramify.parallel.startup.rendezvous import NO_LIMIT
from ramify.parallel.world import World
from ramify.planning.placement import Placement


@dataclass(frozen=True, eq=False, kw_only=True)
class Layout(World):
    """A world and the placement of the branches on its ranks.

    Attributes:
        placement: of all branches on all ranks.
        groups: by hosted branch, the process group of its hosts; None where this rank is the only one.
        mesh: (branch, replica) or (replica,), where the ranks form such a mesh; None otherwise.
    """

    placement: Placement
    groups: Mapping[str, dist.ProcessGroup | None] = field(default_factory=dict)
    mesh: DeviceMesh | None = None

    @classmethod
    def alone(cls, branches: Sequence[str], device: torch.device | str = "cpu") -> "Layout":
        """The layout of a single process, which hosts all branches; without launcher and process group."""
        return cls(placement=Placement.alone(branches), device=torch.device(device), groups=dict.fromkeys(branches))

    @classmethod
    def spread(cls, placement: Placement, world: World) -> "Layout":
        """The layout of this rank in a world (`ramify.parallel.startup.rendezvous`). All ranks must call it.

        Raises:
            ValueError: the placement is for another number of ranks.
        """
        if placement.ranks != world.size:
            raise ValueError(f"a placement over {placement.ranks} ranks cannot hold {world.size}")
        if world.size == 1:
            mesh, groups = None, dict.fromkeys(placement.hosts)
        else:
            with world.watchdog.waiting():
                mesh = _mesh(placement, world.device)
                groups = _groups(placement, mesh, world.rank)
        return cls(
            rank=world.rank,
            size=world.size,
            device=world.device,
            watchdog=world.watchdog,
            traffic=world.traffic,
            placement=placement,
            groups=groups,
            mesh=mesh,
        )

    @property
    def hosted(self) -> tuple[str, ...]:
        """The branches on this rank, in the recipe's order."""
        return self.placement.hosted(self.rank)

    def owner(self, branch: str) -> int:
        """The rank that writes and counts `branch` where only one rank may: its first host."""
        return self.placement.hosts[branch][0]

    def owns(self, branch: str) -> bool:
        """Whether this rank is the owner of `branch`."""
        return self.owner(branch) == self.rank

    def start_sum(self, tensor: Tensor, what: str) -> dist.Work | None:
        """Begins the sum of `tensor`: over the hosts of a branch if `what` is `branches.NAME`, else over the world.

        All ranks of a group must begin its sums in the same order. After waiting for the result, the tensor
        holds the sum, bit-identical on all of them; None where this rank is the only one of the group.
        """
        group = self._group(what)
        if group is None:
            return None
        self.traffic[what] += tensor.numel() * tensor.element_size()
        return dist.all_reduce(tensor, group=group, async_op=True)

    def is_shared(self, what: str) -> bool:
        """Whether the sums of `what` include other ranks (see `start_sum`)."""
        return self._group(what) is not None

    def _group(self, what: str) -> dist.ProcessGroup | None:
        if (branch := branch_of_part(what)) is not None:
            return self.groups[branch]
        return dist.group.WORLD if self.size > 1 else None


def new_mesh(device: torch.device, ranks: Tensor, names: tuple[str, ...]) -> DeviceMesh:
    """A mesh of ranks whose collectives have no timeout of their own: the watchdog ends those that hang."""
    mesh = DeviceMesh(device.type, ranks, mesh_dim_names=names)
    for group in mesh.get_all_groups():
        _set_pg_timeout(NO_LIMIT, group)  # PyTorch has no public name for this, and a mesh takes no timeout
    return mesh


def _mesh(placement: Placement, device: torch.device) -> DeviceMesh | None:
    """(branch, replica) where every rank hosts one branch and all branches have the same number of ranks, (replica,)
    where every rank hosts all branches."""
    hosts = list(placement.hosts.values())
    everyone = tuple(range(placement.ranks))
    if all(ranks == everyone for ranks in hosts):
        return new_mesh(device, torch.tensor(everyone), ("replica",))
    if len({len(ranks) for ranks in hosts}) == 1 and sorted(sum(hosts, ())) == list(everyone):
        return new_mesh(device, torch.tensor(hosts), ("branch", "replica"))
    return None


def _groups(placement: Placement, mesh: DeviceMesh | None, rank: int) -> dict[str, dist.ProcessGroup | None]:
    """The group of every branch on this rank. Branches with the same hosts share one; the world group is reused."""
    everyone = tuple(range(placement.ranks))
    made: dict[tuple[int, ...], dist.ProcessGroup | None] = {everyone: dist.group.WORLD if len(everyone) > 1 else None}
    for branch, ranks in placement.hosts.items():
        if ranks in made:
            continue
        if len(ranks) == 1:
            made[ranks] = None
        elif mesh is not None:
            made[ranks] = mesh.get_group("replica") if rank in ranks else None
        else:  # every rank must create every group, including those without it
            made[ranks] = dist.new_group(list(ranks), NO_LIMIT, group_desc=f"hosts of {branch}")
    return {branch: made[placement.hosts[branch]] for branch in placement.hosted(rank)}
