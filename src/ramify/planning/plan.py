"""The plan of a run over ranks: the placement, its reason, and the cost of every rank; used by `placement: auto`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ramify.errors import RamifyError
from ramify.model.build import LabelSpread
from ramify.planning.costs import RankCost, branch_work, rank_costs, step_seconds
from ramify.planning.model_profile import ModelProfile, profile_model
from ramify.planning.placement import Kind, Placement, place
from ramify.planning.workload import DatasetSize, StepShare, measure, step_shares
from ramify.recipe import Recipe
from ramify.store.store import Store

KINDS: tuple[Kind, ...] = ("replicated", "per-branch", "balanced")
"""Candidates of `auto`; equal groups are never faster than groups by work."""

USABLE = 0.9
"""Fraction of the memory of a rank that a plan may fill: the rest is for libraries, fragmentation, and steps with
structures larger than the mean."""

SAME = 0.01
"""Relative difference below which predicted times count as equal; the placement with fewer parameters is chosen."""


@dataclass(frozen=True)
class Option:
    """One placement with its costs.

    Attributes:
        placement: the placement.
        ranks: the cost of every rank.
        fits: whether the rank with most memory is within the limit; True without a limit.
    """

    placement: Placement
    ranks: list[RankCost]
    fits: bool

    @property
    def seconds(self) -> float:
        """Predicted time of a step."""
        return step_seconds(self.ranks)

    @property
    def memory(self) -> float:
        """Bytes of the rank with most memory."""
        return max(rank.memory for rank in self.ranks)

    @property
    def traffic(self) -> int:
        """Largest number of bytes that a rank passes to collectives per step."""
        return max(sum(rank.traffic.values()) for rank in self.ranks)


@dataclass(frozen=True)
class Plan:
    """The plan of a run over a number of ranks.

    Attributes:
        recipe: of the run, with `parallel.memory`.
        sizes: of its datasets.
        model: its cost.
        shares: mean structures, atoms and edges of a step by branch.
        chosen: the placement to use; its kind begins with `auto:` where auto chose it.
        considered: all placements that were compared.
        remedies: if the chosen placement does not fit, overrides with which one fits, and the memory that they need.
    """

    recipe: Recipe
    sizes: dict[str, DatasetSize]
    model: ModelProfile
    shares: dict[str, StepShare]
    chosen: Option
    considered: list[Option]
    remedies: list[str]

    @property
    def imbalance(self) -> float:
        """Relative excess of the operations of the busiest rank over the mean."""
        return self.chosen.placement.imbalance(branch_work(self.model, self.shares))


def placement_profile(recipe: Recipe, stores: Mapping[str, Store], ranks: int) -> ModelProfile | None:
    """The profile that `choose_placement` needs; it takes a second or two, which one rank can spend for all. None where
    the recipe determines the placement."""
    if _is_given(recipe, ranks):
        return None
    return profile_model(recipe, {n: LabelSpread.of_manifest(s.manifest) for n, s in stores.items()})


def choose_placement(
    recipe: Recipe, stores: Mapping[str, Store], ranks: int, model: ModelProfile | None = None
) -> Placement:
    """The placement of a run, a function of recipe, stores and number of ranks: the same on every rank.

    Args:
        recipe, stores: of the run.
        ranks: number of ranks.
        model: result of `placement_profile`, if known.

    Raises:
        RamifyError: the recipe's placement is not possible on so many ranks, or with `auto` none fits into
            `parallel.memory`.
    """
    wanted = recipe.parallel.placement
    if _is_given(recipe, ranks):
        branches = dict.fromkeys(recipe.datasets_of_branches(), 1.0)
        return place(wanted if isinstance(wanted, Mapping) else "replicated", branches, ranks)
    plan = make_plan(recipe, {name: measure(store, recipe) for name, store in stores.items()}, ranks, model)
    if wanted == "auto" and not plan.chosen.fits:
        raise RamifyError(
            f"no placement on {ranks} ranks fits into parallel.memory: {recipe.parallel.memory:g} GB; the smallest, "
            f"{plan.chosen.placement.kind}, needs {plan.chosen.memory / 1e9:.2f} GB",
            fix="; or ".join(plan.remedies) or "use ranks with more memory",
        )
    return plan.chosen.placement


def _is_given(recipe: Recipe, ranks: int) -> bool:
    """Whether the recipe determines the placement on this number of ranks without costs."""
    return recipe.parallel.placement == "replicated" or (ranks == 1 and recipe.parallel.memory is None)


def make_plan(recipe: Recipe, sizes: Mapping[str, DatasetSize], ranks: int, model: ModelProfile | None = None) -> Plan:
    """Plans a run over `ranks`. A placement that does not fit into `parallel.memory` is planned too, and marked.

    Args:
        recipe, sizes: of the run.
        ranks: number of ranks.
        model: its cost, if known.
    """
    model = model or profile_model(recipe, {name: size.spread for name, size in sizes.items()})
    shares = step_shares(recipe, sizes)
    wanted = recipe.parallel.placement
    considered = [_option(recipe, model, shares, kind, ranks) for kind in KINDS]
    if wanted == "auto":
        chosen = _fastest(considered)
    else:
        chosen = _option(recipe, model, shares, wanted, ranks)
        considered = [chosen, *(option for option in considered if option.placement.kind != chosen.placement.kind)]
    remedies = [] if chosen.fits else _remedies(recipe, model, shares, ranks)
    return Plan(recipe, dict(sizes), model, shares, chosen, considered, remedies)


def _option(recipe: Recipe, model: ModelProfile, shares: Mapping[str, StepShare], kind: Any, ranks: int) -> Option:
    placement = place(kind, branch_work(model, shares), ranks)
    costs = rank_costs(recipe, model, shares, placement)
    limit = math.inf if recipe.parallel.memory is None else USABLE * recipe.parallel.memory * 1e9
    return Option(placement, costs, max(cost.memory for cost in costs) <= limit)


def _fastest(options: list[Option]) -> Option:
    """The fastest option that fits, among equally fast ones that with fewest parameters; if none fits, the smallest."""
    fitting = [option for option in options if option.fits]
    if not fitting:
        best = min(options, key=lambda option: option.memory)
        why = "nothing fits; this needs least memory"
    else:
        fastest = min(option.seconds for option in fitting)
        equal = [option for option in fitting if option.seconds <= (1 + SAME) * fastest]
        best = min(equal, key=lambda option: max(rank.parameters for rank in option.ranks))
        others = [
            f"{o.placement.kind} {o.seconds / best.seconds:.3g} times" + ("" if o.fits else ", does not fit")
            for o in options
            if o is not best
        ]
        # relative times only: the rates of the machine are assumptions
        why = f"predicted time of a step relative to this: {'; '.join(others)}"
        if len(equal) > 1:
            why += "; fewest parameters per rank among the fastest"
    placement = best.placement
    found = replace(placement, kind=f"auto:{placement.kind}", reason=f"{placement.reason}; {why}")
    return replace(best, placement=found)


def _remedies(recipe: Recipe, model: ModelProfile, shares: Mapping[str, StepShare], ranks: int) -> list[str]:
    """Overrides with which the run fits: another placement, a sharded encoder, smaller micro-batches, more ranks."""
    assert recipe.parallel.memory is not None
    limit = USABLE * recipe.parallel.memory * 1e9
    found = []
    for shard in ("none", "encoder"):
        for kind in KINDS:
            changed = _with(recipe, shard=shard)
            option = _option(changed, model, shares, kind, ranks)
            overrides = [f"parallel.placement={kind}"] + (["parallel.shard=encoder"] if shard == "encoder" else [])
            if not option.fits:
                fullest = max(option.ranks, key=lambda rank: rank.memory)
                room = limit - fullest.states - fullest.working
                budget = math.floor(fullest.edges * room / fullest.activations)
                option = _option(_with(changed, micro_batch_edges=max(1, budget)), model, shares, kind, ranks)
                overrides.append(f"parallel.micro_batch_edges={budget}")
                largest = max(share.edges / share.structures for share in shares.values())
                if room <= 0 or budget < largest or not option.fits:
                    continue
            found.append(f"{' '.join(overrides)} ({option.memory / 1e9:.2f} GB)")
    more = next((n for k in range(1, 12) if _any_fits(recipe, model, shares, n := ranks * 2**k)), None)
    if more is not None:
        found.append(f"{more} ranks instead of {ranks}")
    return found


def _any_fits(recipe: Recipe, model: ModelProfile, shares: Mapping[str, StepShare], ranks: int) -> bool:
    return ranks <= 8192 and any(_option(recipe, model, shares, kind, ranks).fits for kind in KINDS)


def _with(recipe: Recipe, **changes: Any) -> Recipe:
    """A copy of the recipe with changed keys of `parallel`."""
    return recipe.model_copy(update={"parallel": recipe.parallel.model_copy(update=changes)})
