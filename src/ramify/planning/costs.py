"""The cost of a placement on each rank: memory, communication volume, operations, and the time of a step.

Pure arithmetic on a `ModelProfile`, a `StepShare` per branch and a `Placement`.

Memory of a rank with n parameters of i bytes each (4, or 8 with `precision: fp64`; bf16 keeps weights in float32):
    weights n i + gradients n i + two moments of AdamW 2 n i   = 16 bytes per parameter in float32, 32 in float64
    (Muon keeps one moment of its matrices)
    + averaged weights n i, if `optimizer.ema` is above 0      = 20 and 40
    + the fixed memory of a step and its activations, see `ramify.planning.model_profile`; with limits of atoms or
      edges, the activations of one micro-batch
With `shard: encoder`, the encoder's part of the first two lines is divided by the number of ranks that share a copy of
it, and its full weights and gradients are added during the passes.

Communication volume of a step: the gradient of the encoder over all ranks and that of each hosted branch over its
hosts, in the precision of the weights; none where a group is one rank. With `shard: encoder`, the weights of the
encoder are all-gathered and its gradient is reduce-scattered, each tensor padded to shards of one size; with several
copies of the encoder, the gradient shard of a rank is then summed over the copies. A step also sums a few control
values (norm of the gradient, losses, flags), which a run counts separately, as `control`.

Time of a step, with g ranks, b bytes, latency α and bandwidth β; an all-reduce by halving and doubling (Thakur,
Rabenseifner & Gropp, IJHPCA 19, 49 (2005)):
    all-reduce  2 log2(g) α + 2 (g - 1)/g b/β
    step        max(forward, gather) + max(backward, all-reduces)
An all-gather or reduce-scatter of b bytes takes half as long as an all-reduce. The backward pass, two thirds of the
operations, overlaps with the sums of gradients; the slowest rank determines the time. A rank with less than one
structure per step on average processes a whole structure in the steps in which it has any.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ramify.errors import RamifyError
from ramify.model.parts import ENCODER, part_of_branch
from ramify.planning.model_profile import ModelProfile
from ramify.planning.placement import Placement
from ramify.planning.workload import StepShare
from ramify.recipe import MachineOptions, ParallelOptions, Recipe

FORWARD = 1.0 / 3.0
"""Fraction of the operations of a step in the forward pass: one product forward, two backward."""


@dataclass(frozen=True, slots=True)
class RankCost:
    """The cost of one rank per step.

    Attributes:
        branches: hosted branches.
        parameters: number of parameters of the encoder and these branches.
        structures, atoms, edges: means per step.
        operations: floating-point operations of matrix products.
        weights, gradients, optimizer, averages: bytes that persist between steps.
        working: fixed bytes of a step, including the full encoder where it is sharded.
        activations: bytes of the largest micro-batch.
        traffic: bytes passed to collectives, by part.
        seconds: predicted time of computation and collectives.
    """

    branches: tuple[str, ...]
    parameters: int
    structures: float
    atoms: float
    edges: float
    operations: float
    weights: float
    gradients: float
    optimizer: float
    averages: float
    working: float
    activations: float
    traffic: dict[str, int]
    seconds: float

    @property
    def states(self) -> float:
        """Bytes that persist between steps."""
        return self.weights + self.gradients + self.optimizer + self.averages

    @property
    def memory(self) -> float:
        """Peak bytes of a step."""
        return self.states + self.working + self.activations


def branch_work(model: ModelProfile, shares: Mapping[str, StepShare]) -> dict[str, float]:
    """Operations of a step by branch, including the encoder; placements distribute them."""
    return {name: model.steps[name].operations(s.atoms, s.edges) for name, s in shares.items()}


def rank_costs(
    recipe: Recipe, model: ModelProfile, shares: Mapping[str, StepShare], placement: Placement
) -> list[RankCost]:
    """The cost of every rank under a placement, with `parallel.shard` and micro-batch limits of the recipe."""
    assigned: list[list[tuple[str, float]]] = [[] for _ in range(placement.ranks)]
    for name, hosts in placement.hosts.items():
        for rank, fraction in zip(hosts, placement.shares[name], strict=True):
            assigned[rank].append((name, fraction))
    costs = {key: _rank_cost(recipe, model, shares, placement, dict(key)) for key in set(map(tuple, assigned))}
    return [costs[tuple(key)] for key in assigned]


def step_seconds(costs: list[RankCost]) -> float:
    """Predicted time of a step: that of the slowest rank."""
    return max(cost.seconds for cost in costs)


def all_reduce_seconds(bytes_: float, ranks: int, machine: MachineOptions) -> float:
    """Predicted time of an all-reduce of `bytes_` over `ranks`; see the module's docstring."""
    if ranks == 1:
        return 0.0
    return 2 * math.log2(ranks) * machine.latency * 1e-6 + 2 * (ranks - 1) / ranks * bytes_ / (machine.bandwidth * 1e9)


def message_seconds(
    machine: MachineOptions, model: ModelProfile, placement: Placement, hosted: Iterable[str], shards: int
) -> tuple[float, float]:
    """Predicted time of the collectives of a rank that hosts these branches: those before the forward pass, and those
    that can overlap with the backward pass."""
    shard = model.encoder_shard_size(shards) * model.itemsize
    gather = all_reduce_seconds(shards * shard, shards, machine) / 2
    sums = gather + all_reduce_seconds(shard, placement.ranks // shards, machine)  # a scatter takes as long as a gather
    for name in hosted:
        sums += all_reduce_seconds(model.branches[name] * model.itemsize, len(placement.hosts[name]), machine)
    return gather, sums


def encoder_shards(options: ParallelOptions, ranks: int) -> int:
    """Number of ranks that share one copy of the encoder; 1 where it is not sharded.

    Raises:
        RamifyError: `parallel.shard_ranks` does not divide the number of ranks.
    """
    if options.shard == "none" or ranks == 1:
        return 1
    shards = options.shard_ranks or ranks
    if ranks % shards:
        raise RamifyError(
            f"parallel.shard_ranks: {shards} does not divide the number of ranks, {ranks}",
            fix="choose one of its divisors, or null to shard the encoder over all ranks",
        )
    return shards


def states_per_parameter(recipe: Recipe, model: ModelProfile) -> float:
    """Persistent bytes of a parameter, in the mean over the model: weight, gradient, moments, averaged weight."""
    parameters = model.encoder + sum(model.branches.values())
    kept = 2 + (2 * parameters - _lacking_moments(recipe, model, model.branches)) / parameters
    return model.itemsize * (kept + (1 if recipe.optimizer.ema else 0))


def _lacking_moments(recipe: Recipe, model: ModelProfile, branches: Iterable[str]) -> int:
    """Numbers that the optimizer of the encoder and these branches keeps less than AdamW, two for each parameter."""
    parts = (ENCODER, *map(part_of_branch, branches)) if recipe.optimizer.kind == "muon" else ()
    return sum(model.hidden.get(part, 0) for part in parts)


def _rank_cost(
    recipe: Recipe,
    model: ModelProfile,
    shares: Mapping[str, StepShare],
    placement: Placement,
    assigned: Mapping[str, float],
) -> RankCost:
    """The cost of a rank with these fractions of the branches that it hosts."""
    shards = encoder_shards(recipe.parallel, placement.ranks)
    own = sum(model.branches[name] for name in assigned)
    kept = own + model.encoder_shard_size(shards)
    operations = sum(f * model.steps[b].operations(shares[b].atoms, shares[b].edges) for b, f in assigned.items())
    structures = sum(f * shares[b].structures for b, f in assigned.items())
    busy = max(1.0, 1.0 / structures)  # see the module's docstring
    full_copy = 2 * model.encoder * model.itemsize if shards > 1 else 0
    return RankCost(
        branches=tuple(assigned),
        parameters=model.encoder + own,
        structures=structures,
        atoms=sum(f * shares[b].atoms for b, f in assigned.items()),
        edges=sum(f * shares[b].edges for b, f in assigned.items()),
        operations=operations,
        weights=kept * model.itemsize,
        gradients=kept * model.itemsize,
        optimizer=(2 * kept - _lacking_moments(recipe, model, assigned)) * model.itemsize,
        averages=kept * model.itemsize if recipe.optimizer.ema else 0,
        working=max(model.steps[b].bytes_step for b in assigned) + full_copy,
        activations=busy * _activations(recipe, model, shares, assigned),
        traffic=_traffic(model, placement, assigned, shards),
        seconds=_seconds(recipe.parallel.machine, busy * operations, model, placement, assigned, shards),
    )


def _traffic(model: ModelProfile, placement: Placement, assigned: Mapping[str, float], shards: int) -> dict[str, int]:
    if placement.ranks == 1:
        return {}
    shard = model.encoder_shard_size(shards)
    numbers = 0 if shards == 1 else 2 * shards * shard  # all-gather and reduce-scatter
    if shards < placement.ranks:
        numbers += shard
    traffic = {ENCODER: numbers * model.itemsize}
    for name in assigned:
        if len(placement.hosts[name]) > 1:
            traffic[part_of_branch(name)] = model.branches[name] * model.itemsize
    return traffic


def _activations(
    recipe: Recipe, model: ModelProfile, shares: Mapping[str, StepShare], assigned: Mapping[str, float]
) -> float:
    """Bytes of the largest micro-batch: of all structures of the rank, or of as many as the limits allow."""
    atoms = sum(f * shares[b].atoms for b, f in assigned.items())
    edges = sum(f * shares[b].edges for b, f in assigned.items())
    total = sum(f * model.steps[b].bytes(shares[b].atoms, shares[b].edges) for b, f in assigned.items())
    limits = ((recipe.parallel.micro_batch_atoms, atoms), (recipe.parallel.micro_batch_edges, edges))
    return total * min([1.0, *(limit / amount for limit, amount in limits if limit is not None and amount > 0)])


def _seconds(
    machine: MachineOptions,
    operations: float,
    model: ModelProfile,
    placement: Placement,
    assigned: Mapping[str, float],
    shards: int,
) -> float:
    work = operations / (machine.tflops * 1e12)
    gather, sums = message_seconds(machine, model, placement, assigned, shards)
    return max(FORWARD * work, gather) + max((1.0 - FORWARD) * work, sums)
