"""A run with a sharded encoder takes the steps of one process; the memory of each rank is that of the plan."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard, distribute_tensor

from ramify.errors import RamifyError
from ramify.model.build import LabelSpread
from ramify.parallel.sharded_tensors import distribute_like, full_tensor, is_sharded, to_local
from ramify.parallel.world import World
from ramify.planning.costs import RankCost, rank_costs
from ramify.planning.model_profile import profile_model
from ramify.planning.placement import Placement
from ramify.planning.workload import StepShare
from ramify.recipe import Recipe
from ramify.run.stop import Stop
from ramify.train.loop import Trainer
from ramify.train.reporting import Callbacks
from ramify.train.start import resume_run, start_run
from ramify.train.state import MOMENTS
from tests.parallel.conftest import MakeFive
from tests.parallel.placements.test_parity import APART, MICRO_BATCHES, STEPS, UNEVEN, Outcome, expected, steps_of
from tests.processes.worlds import run_world
from tests.small import assert_near, metrics

__all__ = ["expected"]

CUT = {"parallel__shard": "encoder"}
WORLDS: dict[int, list[tuple[str, dict[str, Any]]]] = {
    2: [
        ("conservative", {"parallel__placement": UNEVEN, **MICRO_BATCHES}),
        ("direct", {"parallel__placement": "replicated"}),
    ],
    3: [
        ("conservative", {"parallel__placement": "per-branch"}),
        ("direct", {"parallel__placement": "per-branch", **MICRO_BATCHES}),
    ],
    4: [
        ("conservative", {"parallel__placement": APART, "parallel__shard_ranks": 2}),  # two copies of the encoder
        ("direct", {"parallel__placement": "replicated"}),  # more ranks than a step has structures of most branches
    ],
}


class Told(Stop):
    """Stops a run when a test sets `told`."""

    told = ""

    @property
    def reason(self) -> str:
        return self.told


def whole_state(trainer: Trainer) -> dict[str, NDArray[np.float64]]:
    """Full weights and averages of the parts on this rank; a collective call."""
    state = {}
    for (name, parameter), average in zip(trainer.model.named_parameters(), trainer.averages.averages, strict=True):
        state[name] = full_tensor(parameter).numpy().copy()
        state[f"averaged {name}"] = full_tensor(average).numpy().copy()
    return state


def resident(trainer: Trainer) -> int:
    """Bytes of all that stays on this rank from step to step, each piece of memory counted once."""
    kept: list[Tensor] = list(trainer.averages.averages)
    for parameter in trainer.model.parameters():
        assert parameter.grad is not None
        kept += [parameter.detach(), parameter.grad, *trainer.optimizer.state[parameter].values()]
    assert trainer.shards.part is not None
    kept += [p.detach() for bucket in trainer.shards.part.buckets for p in bucket.parameters]  # given back by now
    storages = {to_local(tensor).untyped_storage() for tensor in kept}
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def train_each(
    rank: int, world: int, recipes: list[Recipe], folder: Path
) -> list[tuple[dict[str, Any], dict[str, int], int]]:
    """Trains one run after the other on this rank; of each the state, the traffic, and the bytes that stay."""
    found = []
    for number, recipe in enumerate(recipes):
        trainer = start_run(recipe, folder / f"{world}-{number}", Callbacks(), world=World(rank=rank, size=world))
        assert all(is_sharded(p) for p in trainer.model.encoder.parameters())
        trainer.fit()
        found.append((whole_state(trainer), dict(trainer.layout.traffic), resident(trainer)))
    return found


def assert_close(found: dict[str, NDArray[Any]], same: dict[str, NDArray[Any]]) -> None:
    """To 1e-12 of the largest number of each tensor."""
    assert found
    for name, array in found.items():
        np.testing.assert_allclose(array, same[name], rtol=0, atol=1e-12 * np.abs(same[name]).max(), err_msg=name)


def planned(recipe: Recipe, ranks: int, hosts: dict[str, list[int]]) -> list[RankCost]:
    """The cost of every rank, but for activations and times, which depend on the sizes of the datasets."""
    spreads = {name: LabelSpread(1.0, None if name == "bare" else 1.0, 10) for name in recipe.datasets}
    shares = {name: StepShare(1.0, 5.0, 20.0) for name in recipe.datasets}
    on = {name: tuple(members) for name, members in hosts.items()}
    parts = {name: (1 / len(members),) * len(members) for name, members in hosts.items()}
    return rank_costs(recipe, profile_model(recipe, spreads), shares, Placement("explicit", ranks, on, parts, ""))


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
def test_as_one_process(five: MakeFive, expected: dict[str, Outcome], tmp_path: Path, world: int) -> None:
    """Weights, averages, logged losses and norms; evaluations in between, in which ranks see different numbers of
    batches; branches absent from steps; ranks without structures; clipping."""
    recipes = [steps_of(five, kind, CUT | changes) for kind, changes in WORLDS[world]]
    results = run_world(world, train_each, world, recipes, tmp_path, limit=220)
    for number, (kind, _) in enumerate(WORLDS[world]):
        state, log = expected[kind].ranks[0].state, expected[kind].log
        seen = set()
        for rank in range(world):
            found = results[rank][number][0]
            assert_close(found, state)
            seen |= found.keys()
        assert seen == state.keys()
        lines = metrics(tmp_path / f"{world}-{number}")
        assert len(lines) == len(log) == STEPS + 2
        for line, same in zip(lines, log, strict=True):
            assert_near(line, same, rel=1e-11, abs=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize(("world", "copies", "hosts"), [(2, 1, UNEVEN), (4, 2, APART)])
def test_memory_and_traffic_as_planned(
    five: MakeFive, tmp_path: Path, world: int, copies: int, hosts: dict[str, list[int]]
) -> None:
    """Persistent bytes of each rank, to 5 %, are those of a shard of the encoder; bytes passed to collectives in 5
    steps are exact."""
    cuts = world // copies
    size: dict[str, Any] = {
        "model__encoder__width": 64,
        "model__encoder__layers": 2,
        "train__max_steps": 5,
        "train__batch": 16,
    }
    size |= {"train__evaluate_every": 9.0, "train__checkpoint_every": 9.0, "parallel__placement": hosts}
    recipe = five(**size, **CUT, parallel__shard_ranks=cuts)
    plan, uncut = planned(recipe, world, hosts), planned(five(**size), world, hosts)
    results = run_world(world, train_each, world, [recipe], tmp_path)
    for rank, ((_, traffic, stays),) in enumerate(results):
        assert stays == pytest.approx(plan[rank].states, rel=0.05)
        encoder = uncut[rank].traffic["encoder"]  # each weight's gradient once
        assert stays == pytest.approx(uncut[rank].states - 5 * encoder * (1 - 1 / cuts), rel=0.05)
        planned_traffic = {what: 5 * bytes_ for what, bytes_ in plan[rank].traffic.items()}
        assert {what: bytes_ for what, bytes_ in traffic.items() if what in planned_traffic} == planned_traffic
        assert set(traffic) - set(planned_traffic) == {"control", "gathered"}


def go_on(rank: int, world: int, recipe: Recipe, path: Path, until: int) -> tuple[dict[str, Any], list[str]]:
    """Starts or resumes the run and stops it after `until` steps; returns the state, and the names of tensors that were
    not restored to the bit."""
    stop, ranks = Told(), World(rank=rank, size=world)
    callbacks = Callbacks(step=lambda step, _: setattr(stop, "told", "a test" if step == until - 1 else ""))
    unequal: list[str] = []
    if until < 8:
        trainer = start_run(recipe, path, callbacks, world=ranks, stop=stop)
    else:
        trainer = resume_run(path, callbacks, world=ranks, stop=stop, recipe=recipe)
        checkpoint = trainer.run.checkpoint("latest")
        weights, training = checkpoint.weights(), checkpoint.training()
        for (name, p), average in zip(trainer.model.named_parameters(), trainer.averages.averages, strict=True):
            state = trainer.optimizer.state[p]
            pairs = [(p, training[name]), (average, weights[name])]
            pairs += [(state[m], training[f"{name}/{m}"]) for m in MOMENTS if m in state]
            unequal += [name for tensor, kept in pairs if not torch.equal(full_tensor(tensor), kept)]
    trainer.fit()
    trainer.run.unlock()
    assert trainer.progress.step == until
    return whole_state(trainer), unequal


@pytest.mark.slow
def test_goes_on_with_other_pieces(five: MakeFive, expected: dict[str, Outcome], tmp_path: Path) -> None:
    """Three ranks with a shard each, one with all, two copies of two shards, two shards: checkpoints do not depend on
    the sharding, and the run ends like an uninterrupted one of one process."""
    stages: list[tuple[int, int, dict[str, Any]]] = [
        (7, 3, {**CUT, "parallel__placement": "per-branch"}),
        (11, 1, {}),
        (15, 4, {**CUT, "parallel__placement": APART, "parallel__shard_ranks": 2}),
        (STEPS, 2, {**CUT, "parallel__placement": "replicated"}),
    ]
    for until, world, changes in stages:
        recipe = steps_of(five, "conservative", changes)
        results = run_world(world, go_on, world, recipe, tmp_path / "run", until)
        assert all(not unequal for _, unequal in results)
    for state, _ in results:
        assert_close(state, expected["conservative"].ranks[0].state)


def cut_and_put_together(rank: int) -> list[tuple[list[int], bool, bool, bool]]:
    """For tensors of 1 to 5 rows: number of local rows; whether gathering restores the tensor, whether the shard is a
    copy, and whether a change of the local part changes the tensor."""
    mesh = DeviceMesh("cpu", torch.arange(dist.get_world_size()), mesh_dim_names=("shard",))
    found = []
    for rows in range(1, 6):
        full = torch.arange(2.0 * rows).view(rows, 2)
        tensor = distribute_like(distribute_tensor(torch.zeros(rows, 2), mesh, [Shard(0)]), full)
        same, before = torch.equal(full_tensor(tensor), full), full.clone()
        to_local(tensor).add_(1.0)
        found.append(
            (list(to_local(tensor).shape), same, torch.equal(full, before), torch.equal(full_tensor(tensor), full + 1))
        )
    return found


def test_pieces() -> None:
    results = run_world(3, cut_and_put_together)
    rows = [[shape[0] for shape, *_ in found] for found in results]
    assert rows == [[1, 1, 1, 2, 2], [0, 1, 1, 2, 2], [0, 0, 1, 0, 1]]
    assert all(all(truths) for found in results for _, *truths in found)
    number = torch.tensor(3.0)
    assert to_local(number) is number
    assert full_tensor(number).equal(number)
    assert not is_sharded(number)
    assert distribute_like(torch.zeros(4), number).equal(number)


def test_a_number_of_ranks_that_does_not_divide(five: MakeFive, tmp_path: Path) -> None:
    recipe = five(**CUT, parallel__placement="replicated", parallel__shard_ranks=2)
    with pytest.raises(AssertionError, match=r"parallel\.shard_ranks: 2 does not divide the number of ranks, 3"):
        run_world(3, train_each, 3, [recipe], tmp_path)
    with pytest.raises(RamifyError, match="shard_ranks: nothing is sharded"):
        five(parallel__shard_ranks=2)
