"""Planned parameters, operations, memory and traffic of a rank against those of real models."""

import json
from dataclasses import asdict
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from ramify.batches.batch import Batch, BatchPart
from ramify.errors import RamifyError
from ramify.model.build import LabelSpread, build_model
from ramify.model.kernels.counting import counting
from ramify.model.multibranch import MultiBranch
from ramify.neighbors.edges import find_edges
from ramify.planning.costs import (
    RankCost,
    all_reduce_seconds,
    branch_work,
    rank_costs,
    states_per_parameter,
    step_seconds,
)
from ramify.planning.model_profile import ModelProfile, profile_model
from ramify.planning.placement import per_branch, replicated
from ramify.planning.workload import StepShare
from ramify.recipe import MachineOptions, Recipe, parse_recipe
from ramify.structures import Structures
from ramify.train.optimization.optimizer import AveragedWeights, build_optimizer
from tests.small import ENTRIES

WITH_FORCES, WITHOUT = LabelSpread(1.0, 1.0, 10), LabelSpread(1.0, None, 10)


def recipe(kind: str = "direct", width: int = 48, **keys: Any) -> Recipe:
    """Two branches on a model whose parts all have different shapes."""
    content = {
        "datasets": {name: ENTRIES[name] for name in ("qm7x", "mptrj")},
        "model": {
            "encoder": {
                "kind": "egnn",
                "layers": 2,
                "width": width,
                "vector_channels": 6,
                "radial": 7,
                "max_neighbors": None,
            },
            "energy_head": {"layers": 2, "width": 40},
            "force_head": {"layers": 3, "width": 24, "kind": kind},
        },
    }
    return parse_recipe(content | keys, "costs")


def spreads(*found: LabelSpread) -> dict[str, LabelSpread]:
    """Of the two datasets."""
    return dict(zip(("qm7x", "mptrj"), found, strict=True))


def batch(branch: str, structures: int, atoms: int, dtype: torch.dtype = torch.float32) -> Batch:
    """Boxes of randomly placed atoms."""
    rng = np.random.default_rng(0)
    n = structures * atoms
    boxes = Structures(
        n_atoms=np.full(structures, atoms),
        numbers=rng.integers(1, 9, n).astype(np.uint8),
        positions=rng.uniform(0, 7, (n, 3)).astype(np.float32),
        cell=np.zeros((structures, 3, 3), np.float32),
        pbc=np.zeros((structures, 3), bool),
        energy=np.zeros(structures),
        forces=np.zeros((n, 3), np.float32),
        stress=np.full((structures, 3, 3), np.nan, np.float32),
        charge=np.full(structures, np.nan),
        spin=np.full(structures, np.nan),
        split=np.zeros(structures, np.uint8),
        group=np.zeros(structures, np.int64),
        origin=np.zeros(structures, np.int64),
        row=np.arange(structures),
        group_names=("g",),
        origin_names=("o",),
    )
    return Batch.make([BatchPart(branch, branch, boxes, find_edges(boxes, 5.0), np.zeros(119))], dtype)


def backward(model: MultiBranch, one: Batch, *, bf16: bool = False) -> None:
    """Forward and backward pass of a step."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        found = model.train()(one)
    (found.energy.sum() + torch.nan_to_num(found.forces).sum()).backward()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["direct", "conservative"])
def test_parameters_are_the_models(kind: str) -> None:
    """One branch has forces, the other none."""
    found = spreads(WITH_FORCES, WITHOUT)
    model, cost = build_model(recipe(kind), found), profile_model(recipe(kind), found)
    assert cost.encoder == sum(p.numel() for p in model.encoder.parameters())
    assert cost.branches == {n: sum(p.numel() for p in b.parameters()) for n, b in model.branches.items()}
    assert cost.encoder + sum(cost.branches.values()) == sum(p.numel() for p in model.parameters())
    assert ModelProfile.of_data(json.loads(json.dumps(asdict(cost)))) == cost


@pytest.mark.parametrize("kind", ["direct", "conservative"])
def test_operations_are_those_of_a_real_step(kind: str) -> None:
    """Counted while a real batch goes through the real model."""
    model, one = build_model(recipe(kind), spreads(WITH_FORCES, WITH_FORCES)), batch("mptrj", 4, 20)
    step = profile_model(recipe(kind), spreads(WITH_FORCES, WITH_FORCES)).steps["mptrj"]
    with FlopCounterMode(display=False) as counter, counting():
        backward(model, one)
    assert step.operations(len(one.numbers), len(one.receiver)) == pytest.approx(counter.get_total_flops(), rel=1e-6)


def test_operations_follow_the_stated_equation() -> None:
    """Forward pass, direct forces: the equation in the docstring of `ramify.planning.model_profile`."""
    model, one = build_model(recipe(), spreads(WITH_FORCES, WITH_FORCES)), batch("qm7x", 4, 20)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), counting():
        model(one)
    F, C, R, L = 48, 6, 7, 2
    atom = L * (2 * F**2 + 9 * C**2 + (2 * F + C) * F + F * (F + C))
    atom += F * 40 + 40**2 + 40 + F + F * 24 + 2 * 24**2 + 24 * C + 3 * C
    edge = L * (2 * R * F + F**2) + (L - 1) * 2 * C * F + F * C + (L - 1) * 2 * F * C
    assert counter.get_total_flops() == 2 * (atom * len(one.numbers) + edge * len(one.receiver))
    step = small().steps["qm7x"]
    assert 2.5 < step.operations(len(one.numbers), len(one.receiver)) / counter.get_total_flops() < 3


@pytest.mark.parametrize(
    ("kind", "precision", "checkpointing"),
    [
        ("direct", "fp32", "none"),
        ("conservative", "fp64", "none"),
        ("direct", "bf16", "none"),
        ("direct", "fp32", "layers"),
    ],
)
def test_activations_are_what_the_allocator_sees(kind: str, precision: str, checkpointing: str) -> None:
    """Memory that PyTorch's allocator holds at most during forward and backward pass, from its own records: how it
    grows from one batch to a larger one, and all of it."""
    chosen = recipe(kind, width=128, train={"precision": precision, "checkpointing": checkpointing})
    found = spreads(WITH_FORCES, WITH_FORCES)
    model, step = build_model(chosen, found), profile_model(chosen, found).steps["qm7x"]
    dtype = torch.float64 if precision == "fp64" else torch.float32
    sizes, peaks = [], []
    for structures in (12, 36):  # several blocks of `ramify.model.kernels.messages`
        one = batch("qm7x", structures, 20, dtype)
        backward(model, one, bf16=precision == "bf16")  # gradients are there from now on
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            backward(model, one, bf16=precision == "bf16")
        events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
        held = np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())])
        peaks.append(int(held.max()))
        sizes.append((len(one.numbers), len(one.receiver)))
    growth = step.bytes(sizes[1][0] - sizes[0][0], sizes[1][1] - sizes[0][1])
    assert growth == pytest.approx(peaks[1] - peaks[0], rel=0.1)
    assert step.bytes_step + step.bytes(*sizes[1]) == pytest.approx(peaks[1], rel=0.05)


@pytest.mark.parametrize(
    ("precision", "ema", "kind"),
    [("fp32", 0.9, "adamw"), ("fp64", 0.0, "adamw"), ("bf16", 0.9, "adamw"), ("fp32", 0.9, "muon")],
)
def test_states_are_the_bytes_of_real_tensors(precision: str, ema: float, kind: str) -> None:
    """Weights, gradients, moments after a step, averaged weights; with AdamW 16 or 20 bytes per parameter, or twice."""
    chosen = recipe(train={"precision": precision}, optimizer={"ema": ema, "kind": kind})
    found = spreads(WITH_FORCES, WITH_FORCES)
    model = build_model(chosen, found)
    dtype = torch.float64 if precision == "fp64" else torch.float32
    optimizer = build_optimizer(model, chosen.optimizer)
    for name in found:
        backward(model, batch(name, 2, 5, dtype))
    optimizer.step()
    model_profile = profile_model(chosen, found)
    (rank,) = rank_costs(chosen, model_profile, shares(), replicated(list(found), 1))
    moments = [t for s in optimizer.state.values() for k, t in s.items() if k != "step"]
    assert rank.weights == sum(p.nbytes for p in model.parameters())
    assert rank.gradients == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    assert rank.optimizer == sum(t.nbytes for t in moments)
    assert rank.averages == sum(t.nbytes for t in AveragedWeights(model, ema).averages if ema)
    each = {0.0: 16, 0.9: 20}[ema] * (2 if precision == "fp64" else 1)
    if kind == "muon":
        assert rank.states < each * rank.parameters
    else:
        assert rank.states == each * rank.parameters
    assert states_per_parameter(chosen, model_profile) == pytest.approx(rank.states / rank.parameters)


def shares(structures: float = 6.0) -> dict[str, StepShare]:
    """Of the two branches, per step: the second has twice the atoms, and more edges for each."""
    return {
        "qm7x": StepShare(structures, 10 * structures, 90 * structures),
        "mptrj": StepShare(structures, 20 * structures, 600 * structures),
    }


@cache
def small() -> ModelProfile:
    """Of `recipe()`."""
    return profile_model(recipe(), spreads(WITH_FORCES, WITH_FORCES))


def costs(chosen: Recipe, ranks: int, kind: str, structures: float = 6.0) -> list[RankCost]:
    """Of every rank under a placement."""
    model = small()
    work = branch_work(model, shares(structures))
    placement = replicated(list(work), ranks) if kind == "replicated" else per_branch(work, ranks)
    return rank_costs(chosen, model, shares(structures), placement)


def test_traffic_and_shares() -> None:
    """P_s over the world and P_h over the branch's ranks, 4 bytes each; nothing where a group is one rank."""
    chosen, model = recipe(), small()
    encoder, branch = 4 * model.encoder, 4 * model.branches["qm7x"]
    assert costs(chosen, 1, "replicated")[0].traffic == {}
    assert costs(chosen, 2, "per-branch")[0].traffic == {"encoder": encoder}
    apart = costs(chosen, 6, "per-branch")
    assert [rank.branches for rank in apart] == [("mptrj",)] * 5 + [("qm7x",)]
    assert apart[0].traffic == {"encoder": encoder, "branches.mptrj": branch}
    assert apart[5].traffic == {"encoder": encoder}
    assert apart[0].structures == pytest.approx(6 / 5)
    assert apart[0].edges == pytest.approx(720)
    together = costs(chosen, 6, "replicated")
    assert together[3].traffic == {"encoder": encoder, "branches.qm7x": branch, "branches.mptrj": branch}
    assert together[3].edges == pytest.approx(690)
    assert together[3].parameters == model.encoder + 2 * model.branches["qm7x"]
    for ranks in (apart, together):
        assert sum(rank.operations for rank in ranks) == pytest.approx(sum(branch_work(model, shares()).values()))
        assert sum(rank.structures for rank in ranks) == pytest.approx(12)


def test_a_cut_up_encoder() -> None:
    """Every rank stores a shard of equal size; weights and gradients are gathered and scattered; with several copies
    there is one more message of the size of the shard."""
    whole = costs(recipe(), 12, "replicated")[0]
    encoder = build_model(recipe(), spreads(WITH_FORCES, WITH_FORCES)).encoder
    for among, options in ((12, {}), (3, {"shard_ranks": 3})):
        cut = costs(recipe(parallel={"shard": "encoder"} | options), 12, "replicated")[0]
        piece = sum(p.chunk(among)[0].numel() for p in encoder.parameters())
        assert cut.parameters == whole.parameters
        assert cut.states == whole.states - 20 * (small().encoder - piece)
        assert cut.working == pytest.approx(whole.working + 8 * small().encoder)
        assert cut.traffic["encoder"] == 4 * (2 * among * piece + (piece if among < 12 else 0))
    assert costs(recipe(parallel={"shard": "encoder"}), 1, "replicated") == costs(recipe(), 1, "replicated")
    with pytest.raises(RamifyError, match=r"parallel\.shard_ranks: 5 does not divide the number of ranks, 12"):
        costs(recipe(parallel={"shard": "encoder", "shard_ranks": 5}), 12, "replicated")


def test_time_with_a_cut_up_encoder() -> None:
    """By hand, without latency and work: gathered and scattered, 11/12 of it over links each; the branch summed up."""
    machine = {"tflops": 1e9, "bandwidth": 1e-3, "latency": 0.0}
    cut = costs(recipe(parallel={"shard": "encoder", "machine": machine}), 12, "per-branch")[0]
    (branch,) = cut.branches
    hosts = len(per_branch(branch_work(small(), shares()), 12).hosts[branch])
    handed = cut.traffic["encoder"] * 11 / 12 + 2 * (hosts - 1) / hosts * cut.traffic[f"branches.{branch}"]
    assert cut.seconds == pytest.approx(handed / 1e6)


def test_turns_bound_the_activations() -> None:
    whole = costs(recipe(), 2, "replicated")[0]
    for budget in (
        {"micro_batch_edges": 207},
        {"micro_batch_atoms": 9},
        {"micro_batch_atoms": 9, "micro_batch_edges": 900},
    ):
        micro_batches = costs(recipe(parallel=budget), 2, "replicated")[0]
        assert (whole.edges, whole.atoms) == (pytest.approx(2070), pytest.approx(90))
        assert micro_batches.activations == pytest.approx(whole.activations / 10)
        assert micro_batches.operations == whole.operations
    roomy = costs(recipe(parallel={"micro_batch_edges": 10**6}), 2, "replicated")[0]
    assert roomy.activations == whole.activations


def test_fewer_structures_than_ranks() -> None:
    """A step cannot be shorter than its largest indivisible piece: one structure."""
    many = costs(recipe(), 48, "replicated")[0]
    assert many.structures == 0.25
    enough = costs(recipe(), 12, "replicated")[0]
    assert enough.structures == 1.0
    assert many.activations == pytest.approx(enough.activations)


def test_time_of_a_step() -> None:
    """By hand: 2 log2(8) latencies of 5 µs and 7/4 of 1 GB through 10 GB/s; hidden behind two thirds of the work."""
    machine = MachineOptions(tflops=2.0, bandwidth=10.0, latency=5.0)
    assert all_reduce_seconds(1e9, 8, machine) == pytest.approx(30e-6 + 0.175)
    assert all_reduce_seconds(1e9, 1, machine) == 0
    chosen = recipe(parallel={"machine": {"tflops": 1e-4, "bandwidth": 1e-2, "latency": 0.0}})
    apart = costs(chosen, 6, "per-branch")
    work, sums = (
        apart[0].operations / 1e8,
        (2 * 5 / 6 * apart[0].traffic["encoder"] + 8 / 5 * apart[0].traffic["branches.mptrj"]) / 1e7,
    )
    assert apart[0].seconds == pytest.approx(work / 3 + max(2 * work / 3, sums))
    assert step_seconds(apart) == max(rank.seconds for rank in apart)
    slow = recipe(parallel={"machine": {"tflops": 1e-4, "bandwidth": 1e-5, "latency": 0.0}})
    assert costs(slow, 6, "per-branch")[0].seconds == pytest.approx(work / 3 + 1000 * sums)
