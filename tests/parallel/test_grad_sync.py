"""Sums of gradients on a model of a few weights: against sums by hand, in one order, with ranks that have nothing."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ramify.model.branch import Branch
from ramify.model.encoders.egnn import EGNN
from ramify.model.multibranch import MultiBranch
from ramify.parallel import grad_sync as module
from ramify.parallel.grad_sync import Bucket, GradientSync
from ramify.parallel.layout import Layout
from ramify.parallel.world import World
from ramify.planning.placement import Placement, place
from tests.processes.worlds import run_world

BRANCHES = ("a", "b", "c")
HOSTS = {"a": [0, 1], "b": [0, 2], "c": [2]}
PLACEMENTS = {
    "overlapping": place(HOSTS, dict.fromkeys(BRANCHES, 1.0), 3),
    "replicated": place("replicated", dict.fromkeys(BRANCHES, 1.0), 3),
}
STEPS: list[dict[int, list[list[str]]]] = [
    {0: [["a", "b"]], 1: [["a"]], 2: [["c", "b"]]},
    {0: [["a"], ["b"]], 1: [], 2: [["c"]]},  # two turns, b only in the second; nothing
    {0: [["b"], ["a"], ["a"]], 1: [["a"]], 2: []},  # c on no rank; b not in the last turn
]
"""By rank, the branches that each of its turns has structures of."""


def build(hosted: tuple[str, ...]) -> MultiBranch:
    """The same weights wherever a branch is."""
    torch.manual_seed(0)
    encoder = EGNN(EGNN.Options(layers=2, width=6, vector_channels=2, radial=3, cutoff=3.0, max_neighbors=5))
    shape: dict[str, Any] = {"energy_head": (1, 6), "force_head": (1, 6), "energy_scale": 1.0, "forces_scale": 1.0}
    branches = {name: Branch(6, 2, forces="direct", **shape) for name in hosted}
    return MultiBranch(encoder, branches, 3.0).double()


def loss_of(model: MultiBranch, branches: list[str], key: int) -> torch.Tensor:
    """A loss whose gradients are random numbers of `key`, of the encoder and these branches."""
    total = torch.zeros((), dtype=torch.float64)
    for part, parameters in (
        ("encoder", model.encoder.named_parameters()),
        *((b, model.branch(b).named_parameters()) for b in branches),
    ):
        for name, p in parameters:
            generator = np.random.default_rng(sum(f"{part}{name}{key}".encode()))
            total = total + (p * torch.from_numpy(generator.normal(size=tuple(p.shape)))).sum()
    return total


@dataclass
class Taken:
    """One step on one rank: gradients by parameter (None: none), the messages in order, and how many of them were sent
    before the end of the backward pass."""

    gradients: dict[str, NDArray[np.float64] | None]
    squared_norm: float
    sent: list[str] = field(default_factory=list)
    sent_early: int = 0


def take(rank: int, placements: dict[str, Placement]) -> dict[str, list[Taken]]:
    """All steps under all placements."""
    module.BUCKET_BYTES = 2000  # several buckets
    found = {}
    for name, placement in placements.items():
        layout = Layout.spread(placement, World(rank=rank, size=placement.ranks))
        model = build(layout.hosted)
        gradients = GradientSync(model, layout)
        found[name] = [_step(rank, layout, model, gradients, number) for number in range(len(STEPS))]
    return found


def _step(rank: int, layout: Layout, model: MultiBranch, gradients: GradientSync, number: int) -> Taken:
    sent: list[str] = []
    send = Bucket.send

    def recorded(bucket: Bucket, layout: Layout) -> Any:
        sent.append(f"{bucket.part} {len(bucket.parameters)}")
        return send(bucket, layout)

    Bucket.send = recorded  # type: ignore[method-assign]
    present = {
        branch for micro_batches in STEPS[number].values() for micro_batch in micro_batches for branch in micro_batch
    }
    micro_batches = [t for t in STEPS[number][rank] if set(t) <= set(layout.hosted)]
    gradients.clear(present & set(layout.hosted))
    for micro_batch, branches in enumerate(micro_batches[:-1]):
        loss_of(model, branches, 100 * rank + micro_batch).backward()
    with gradients.summed(micro_batches[-1] if micro_batches else []):
        if micro_batches:
            loss_of(model, micro_batches[-1], 100 * rank + len(micro_batches) - 1).backward()
        early = len(sent)
    Bucket.send = send  # type: ignore[method-assign]
    squared = gradients.squared_norm()
    layout.sum_over_world(squared)
    arrays = {n: None if p.grad is None else p.grad.numpy().copy() for n, p in model.named_parameters()}
    return Taken(arrays, float(squared), sent, early)


def by_hand(number: int) -> dict[str, NDArray[np.float64] | None]:
    """All turns of all ranks on one model with all branches."""
    model = build(BRANCHES)
    for rank, micro_batches in STEPS[number].items():
        for micro_batch, branches in enumerate(micro_batches):
            loss_of(model, branches, 100 * rank + micro_batch).backward()
    return {n: None if p.grad is None else p.grad.numpy() for n, p in model.named_parameters()}


@pytest.fixture(scope="module")
def taken() -> list[dict[str, list[Taken]]]:
    """By rank, placement and step."""
    return run_world(3, take, PLACEMENTS)


@pytest.mark.parametrize("name", PLACEMENTS)
def test_sums_by_hand(taken: list[dict[str, list[Taken]]], name: str) -> None:
    """A branch without structures anywhere has no gradient, one without any here has that of the others."""
    for number in range(len(STEPS)):
        expected = by_hand(number)
        for rank in range(3):
            for parameter, gradient in taken[rank][name][number].gradients.items():
                if expected[parameter] is None:
                    assert gradient is None, parameter
                else:
                    np.testing.assert_allclose(gradient, expected[parameter], rtol=1e-13, atol=1e-13, err_msg=parameter)
    assert any(gradient is None for gradient in by_hand(2).values())


@pytest.mark.parametrize("name", PLACEMENTS)
def test_norm_counts_every_part_once(taken: list[dict[str, list[Taken]]], name: str) -> None:
    for number in range(len(STEPS)):
        expected = sum(float(np.square(g).sum()) for g in by_hand(number).values() if g is not None)
        norms = {taken[rank][name][number].squared_norm for rank in range(3)}
        assert len(norms) == 1  # to the bit
        assert norms.pop() == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("name", PLACEMENTS)
def test_all_ranks_send_in_one_order(taken: list[dict[str, list[Taken]]], name: str) -> None:
    """Two ranks send their common messages in the same order; those of the encoder in several buckets."""
    for number in range(len(STEPS)):
        orders = [taken[rank][name][number].sent for rank in range(3)]
        for one in orders:
            for other in orders:
                common = {part.split()[0] for part in one} & {part.split()[0] for part in other}
                assert [s for s in one if s.split()[0] in common] == [s for s in other if s.split()[0] in common]
        assert sum(s.startswith("encoder") for s in orders[0]) > 2
        assert orders[0][-1].startswith("encoder")


def test_much_is_sent_before_the_pass_is_over(taken: list[dict[str, list[Taken]]]) -> None:
    """Also by a rank that has no structures of a branch that it shares."""
    for rank in range(3):
        for number in range(len(STEPS)):
            step = taken[rank]["replicated"][number]
            assert step.sent_early == len(step.sent)


def test_alone_nothing_is_sent_and_nothing_hooked() -> None:
    model = build(BRANCHES)
    gradients = GradientSync(model, Layout.alone(BRANCHES))
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
    gradients.clear({"a", "b"})
    with gradients.summed(["a"]):
        loss_of(model, ["a"], 0).backward()
    for name, p in model.named_parameters():
        part = name.split(".")[1] if name.startswith("branches") else "encoder"
        if part == "c":
            assert p.grad is None
        else:  # b has structures in the step, but the pass did not come by: zeros
            assert p.grad is not None
            assert bool(p.grad.any()) == (part != "b")
