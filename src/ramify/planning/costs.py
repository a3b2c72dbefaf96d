"""What a placement costs each rank: memory, bytes handed to collectives, operations, and the time of a step.

Pure arithmetic on a `ModelProfile`, a `StepShare` per branch and a `Placement`.

Memory of a rank with n parameters, each of i bytes (4, or 8 with `precision: fp64`; bf16 keeps weights in float32):
    weights n i + gradients n i + AdamW's two averages 2 n i   = 16 bytes per parameter in float32, 32 in float64
    + averaged weights n i, while `optimizer.ema` is on        = 20 and 40
    + what a step needs whatever its size, and its activations, see `ramify.planning.model_profile`; with a budget of
      atoms or edges those of one micro-batch
With `shard: encoder` the encoder's part of the first two lines is divided among the ranks that share a copy of it, and
its whole weights and gradients come back while they are at work.

Bytes per step: the encoder's gradient over all ranks and each hosted branch's over the ranks that host it, in the
precision of the weights; nothing where a group is one rank. `shard: encoder` gathers the encoder's weights and scatters
its gradient, each tensor filled up to pieces of one size; where there are several copies of the encoder, a rank's piece
of the gradient is then added up over them. Beside these a step sums up a few control numbers (the gradient's norm,
losses, flags), which a run counts apart, as `control`.

Time of a step, with g ranks, b bytes, latency α and bandwidth β; an all-reduce by halving and doubling (Thakur,
Rabenseifner & Gropp, IJHPCA 19, 49 (2005)):
    all-reduce  2 log2(g) α + 2 (g - 1)/g b/β
    step        max(forward, gather) + max(backward, all-reduces)
To gather or to scatter b bytes takes half as long as to all-reduce them. The backward pass, two thirds of the
operations, hides what is summed up meanwhile; the busiest rank sets the pace. A rank that takes less than one structure
per step on average has a whole one to do in the steps in which it takes any.
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
"""Part of a step's operations before the backward pass: one product forward, two backward."""


@dataclass(frozen=True, slots=True)
class RankCost:
    """One rank, per step.

    Attributes:
        branches: that it hosts.
        parameters: of the encoder and these branches.
        structures, atoms, edges: means.
        operations: floating-point operations of matrix products.
        weights, gradients, optimizer, averages: bytes that stay from step to step.
        working: bytes that a step needs whatever its size, with the whole encoder back together where it is cut up.
        activations: bytes of the largest turn.
        traffic: bytes handed to collectives, by what they are.
        seconds: predicted time of its own work and of its collectives.
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
        """Bytes that stay from step to step."""
        return self.weights + self.gradients + self.optimizer + self.averages

    @property
    def memory(self) -> float:
        """Bytes at the fullest moment of a step."""
        return self.states + self.working + self.activations


def branch_work(model: ModelProfile, shares: Mapping[str, StepShare]) -> dict[str, float]:
    """Operations of a step by branch, encoder included: what placements divide."""
    return {name: model.steps[name].operations(s.atoms, s.edges) for name, s in shares.items()}


def rank_costs(
    recipe: Recipe, model: ModelProfile, shares: Mapping[str, StepShare], placement: Placement
) -> list[RankCost]:
    """The cost of every rank under a placement; `parallel.shard` and the budget of micro-batches as in the recipe."""
    taken: list[list[tuple[str, float]]] = [[] for _ in range(placement.ranks)]
    for name, on in placement.hosts.items():
        for rank, part in zip(on, placement.shares[name], strict=True):
            taken[rank].append((name, part))
    alike = {key: _rank_cost(recipe, model, shares, placement, dict(key)) for key in set(map(tuple, taken))}
    return [alike[tuple(key)] for key in taken]


def step_seconds(costs: list[RankCost]) -> float:
    """Predicted time of a step: all wait for the slowest rank."""
    return max(cost.seconds for cost in costs)


def all_reduce_seconds(bytes_: float, ranks: int, machine: MachineOptions) -> float:
    """Predicted time to add up `bytes_` over `ranks`; see the module's docstring."""
    if ranks == 1:
        return 0.0
    return 2 * math.log2(ranks) * machine.latency * 1e-6 + 2 * (ranks - 1) / ranks * bytes_ / (machine.bandwidth * 1e9)


def message_seconds(
    machine: MachineOptions, model: ModelProfile, placement: Placement, hosted: Iterable[str], cuts: int
) -> tuple[float, float]:
    """Predicted time of the collectives of a rank that hosts these branches: those before the forward pass, and those
    that the backward pass can hide."""
    piece = model.encoder_shard_size(cuts) * model.itemsize
    gather = all_reduce_seconds(cuts * piece, cuts, machine) / 2
    sums = gather + all_reduce_seconds(piece, placement.ranks // cuts, machine)  # to scatter takes as long as to gather
    for name in hosted:
        sums += all_reduce_seconds(model.branches[name] * model.itemsize, len(placement.hosts[name]), machine)
    return gather, sums


def encoder_shards(options: ParallelOptions, ranks: int) -> int:
    """How many ranks share one copy of the encoder; 1: each has it whole.

    Raises:
        RamifyError: `parallel.shard_ranks` does not divide the number of ranks.
    """
    if options.shard == "none" or ranks == 1:
        return 1
    cuts = options.shard_ranks or ranks
    if ranks % cuts:
        raise RamifyError(
            f"parallel.shard_ranks: {cuts} does not divide the number of ranks, {ranks}",
            fix="choose one of its divisors, or null to cut the encoder up among all ranks",
        )
    return cuts


def states_per_parameter(recipe: Recipe, itemsize: int) -> int:
    """Bytes that a parameter takes from step to step: weight, gradient, two averages of AdamW, averaged weight."""
    return itemsize * (5 if recipe.optimizer.ema else 4)


def _rank_cost(
    recipe: Recipe,
    model: ModelProfile,
    shares: Mapping[str, StepShare],
    placement: Placement,
    taken: Mapping[str, float],
) -> RankCost:
    cuts = encoder_shards(recipe.parallel, placement.ranks)
    own = sum(model.branches[name] for name in taken)
    kept = own + model.encoder_shard_size(cuts)
    operations = sum(part * model.steps[b].operations(shares[b].atoms, shares[b].edges) for b, part in taken.items())
    structures = sum(part * shares[b].structures for b, part in taken.items())
    busy = max(1.0, 1.0 / structures)  # see the module's docstring
    whole_copy = 2 * model.encoder * model.itemsize if cuts > 1 else 0
    return RankCost(
        branches=tuple(taken),
        parameters=model.encoder + own,
        structures=structures,
        atoms=sum(part * shares[b].atoms for b, part in taken.items()),
        edges=sum(part * shares[b].edges for b, part in taken.items()),
        operations=operations,
        weights=kept * model.itemsize,
        gradients=kept * model.itemsize,
        optimizer=2 * kept * model.itemsize,
        averages=kept * model.itemsize if recipe.optimizer.ema else 0,
        working=max(model.steps[b].bytes_step for b in taken) + whole_copy,
        activations=busy * _activations(recipe, model, shares, taken),
        traffic=_traffic(model, placement, taken, cuts),
        seconds=_seconds(recipe.parallel.machine, busy * operations, model, placement, taken, cuts),
    )


def _traffic(model: ModelProfile, placement: Placement, taken: Mapping[str, float], cuts: int) -> dict[str, int]:
    if placement.ranks == 1:
        return {}
    piece = model.encoder_shard_size(cuts)
    handed = 0 if cuts == 1 else 2 * cuts * piece  # gathered, scattered
    if cuts < placement.ranks:
        handed += piece
    traffic = {ENCODER: handed * model.itemsize}
    for name in taken:
        if len(placement.hosts[name]) > 1:
            traffic[part_of_branch(name)] = model.branches[name] * model.itemsize
    return traffic


def _activations(
    recipe: Recipe, model: ModelProfile, shares: Mapping[str, StepShare], taken: Mapping[str, float]
) -> float:
    """Bytes of the largest micro-batch: all of the rank's share, or what the budget lets through at once."""
    atoms = sum(part * shares[b].atoms for b, part in taken.items())
    edges = sum(part * shares[b].edges for b, part in taken.items())
    whole = sum(part * model.steps[b].bytes(shares[b].atoms, shares[b].edges) for b, part in taken.items())
    budgets = ((recipe.parallel.micro_batch_atoms, atoms), (recipe.parallel.micro_batch_edges, edges))
    return whole * min([1.0, *(budget / amount for budget, amount in budgets if budget is not None and amount > 0)])


def _seconds(
    machine: MachineOptions,
    operations: float,
    model: ModelProfile,
    placement: Placement,
    taken: Mapping[str, float],
    cuts: int,
) -> float:
    work = operations / (machine.tflops * 1e12)
    gather, sums = message_seconds(machine, model, placement, taken, cuts)
    return max(FORWARD * work, gather) + max((1.0 - FORWARD) * work, sums)
