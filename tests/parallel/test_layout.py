"""Sums over the world and over the hosts of a branch, and their traffic."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ramify.parallel.layout import Layout
from ramify.parallel.world import World
from ramify.planning.placement import Placement, place
from tests.processes.worlds import run_world

WORK = {"a": 5.0, "b": 3.0, "c": 1.0}
PLACEMENTS: dict[str, Placement] = {
    "replicated": place("replicated", WORK, 4),
    "rectangle": Placement("explicit", 4, {"a": (0, 3), "b": (1, 2)}, dict.fromkeys("ab", (0.5, 0.5)), ""),
    "uneven groups": place("per-branch", WORK, 4),
    "overlapping": place({"a": [0, 1, 2], "b": [2, 3], "c": [0, 1, 2]}, WORK, 4),
}


@dataclass(frozen=True)
class Seen:
    """Results of one rank with one placement."""

    hosted: tuple[str, ...]
    owned: list[str]
    shared: dict[str, bool]
    world_sum: list[float]
    branch_sums: dict[str, list[float]]
    gathered: list[Any]
    traffic: dict[str, int]
    mesh: tuple[tuple[str, ...] | None, list[Any]] | None


def look(rank: int, placements: dict[str, Placement]) -> dict[str, Seen]:
    found = {}
    for name, placement in placements.items():
        layout = Layout.spread(placement, World(rank=rank, size=4))
        assert (layout.rank, layout.size, layout.is_rank_zero) == (rank, 4, rank == 0)
        own = torch.tensor([10.0**rank, 1.0], dtype=torch.float64)
        world, branches = own.clone(), {branch: own.clone() for branch in layout.hosted}
        layout.sum_over_world(world)
        for branch, tensor in branches.items():
            if work := layout.start_sum(tensor, f"branches.{branch}"):
                work.wait()
        layout.barrier()
        shared = {branch: layout.is_shared(f"branches.{branch}") for branch in layout.hosted}
        mesh = None if layout.mesh is None else (layout.mesh.mesh_dim_names, layout.mesh.mesh.tolist())
        found[name] = Seen(
            hosted=layout.hosted,
            owned=[branch for branch in placement.hosts if layout.owns(branch)],
            shared=shared,
            world_sum=world.tolist(),
            branch_sums={branch: tensor.tolist() for branch, tensor in branches.items()},
            gathered=layout.gather({"rank": rank, "text": "x" * rank}),
            traffic=dict(layout.traffic),
            mesh=mesh,
        )
    return found


@pytest.fixture(scope="module")
def seen() -> list[dict[str, Seen]]:
    """By rank and placement."""
    return run_world(4, look, PLACEMENTS)


@pytest.mark.parametrize("name", PLACEMENTS)
def test_sums(seen: list[dict[str, Seen]], name: str) -> None:
    """Each rank adds its own power of ten, so that a sum shows which ranks took part."""
    placement = PLACEMENTS[name]
    for rank in range(4):
        here = seen[rank][name]
        assert here.hosted == placement.hosted(rank)
        assert here.world_sum == [1111.0, 4.0]
        for branch in here.hosted:
            hosts = placement.hosts[branch]
            assert here.branch_sums[branch] == [sum(10.0**host for host in hosts), len(hosts)]
            assert here.shared[branch] == (len(hosts) > 1)
        assert here.gathered == [{"rank": r, "text": "x" * r} for r in range(4)]


@pytest.mark.parametrize("name", PLACEMENTS)
def test_every_branch_has_one_owner(seen: list[dict[str, Seen]], name: str) -> None:
    owned = [branch for rank in range(4) for branch in seen[rank][name].owned]
    assert sorted(owned) == sorted(PLACEMENTS[name].hosts)


@pytest.mark.parametrize("name", PLACEMENTS)
def test_traffic_counts_what_is_handed_over(seen: list[dict[str, Seen]], name: str) -> None:
    """16 bytes for each sum with other ranks, 4 for the barrier; none for a branch on this rank only."""
    for rank in range(4):
        here = seen[rank][name]
        expected = {f"branches.{branch}": 16 for branch in here.hosted if here.shared[branch]}
        assert {k: v for k, v in here.traffic.items() if k != "gathered"} == expected | {"control": 16 + 4}
        assert here.traffic["gathered"] > 20


def test_rectangles_are_meshes(seen: list[dict[str, Seen]]) -> None:
    for rank in range(4):
        assert seen[rank]["replicated"].mesh == (("replica",), [0, 1, 2, 3])
        assert seen[rank]["rectangle"].mesh == (("branch", "replica"), [[0, 3], [1, 2]])
        assert seen[rank]["uneven groups"].mesh is None
        assert seen[rank]["overlapping"].mesh is None


def test_alone_there_is_no_group() -> None:
    layout = Layout.alone(["a", "b"])
    assert (layout.rank, layout.size, layout.hosted, layout.is_rank_zero) == (0, 1, ("a", "b"), True)
    tensor = torch.ones(3)
    layout.sum_over_world(tensor)
    assert layout.start_sum(tensor, "branches.a") is None
    layout.barrier()
    assert layout.gather("x") == ["x"]
    assert tensor.tolist() == [1.0] * 3
    assert not layout.traffic
    assert not dist.is_initialized()


def test_a_placement_for_another_number_of_ranks() -> None:
    with pytest.raises(AssertionError, match="a placement over 4 ranks cannot hold 2"):
        run_world(2, _too_many)


def _too_many(rank: int) -> None:
    Layout.spread(PLACEMENTS["replicated"], World(rank=rank, size=2))
