"""The plan of a run over ranks: which placement, why, and what it costs every rank; `placement: auto` chooses by it."""

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
"""What `auto` chooses among; equal groups are never faster than groups by work."""

USABLE = 0.9
"""Part of a rank's memory that a plan fills: the rest is for the libraries, fragmentation, and steps whose structures
are larger than the mean."""

SAME = 0.01
"""Predicted times that differ by less are called equal; then the placement that hosts fewer parameters is taken."""


@dataclass(frozen=True)
class Option:
    """One placement with its costs.

    Attributes:
        placement: itself.
        ranks: the cost of every rank.
        fits: whether the fullest rank has room; True without a limit.
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
        """Bytes of the fullest rank."""
        return max(rank.memory for rank in self.ranks)

    @property
    def traffic(self) -> int:
        """Bytes that the busiest rank hands to collectives per step."""
        return max(sum(rank.traffic.values()) for rank in self.ranks)


@dataclass(frozen=True)
class Plan:
    """A run over a number of ranks, planned.

    Attributes:
        recipe: planned for, `parallel.memory` filled in.
        sizes: of its datasets.
        model: its cost.
        shares: by branch, what a step takes.
        chosen: the placement to use; its kind begins with `auto:` where the recipe left the choice.
        considered: all placements that were compared.
        remedies: where the chosen placement does not fit: overrides with which one would, with the memory they need.
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
        """By how much the busiest rank's operations exceed the mean."""
        return self.chosen.placement.imbalance(branch_work(self.model, self.shares))


def placement_profile(recipe: Recipe, stores: Mapping[str, Store], ranks: int) -> ModelProfile | None:
    """What `choose_placement` weighs branches by: a second or two of work that one rank can do for all. None where
    there is nothing to weigh."""
    if _is_given(recipe, ranks):
        return None
    return profile_model(recipe, {n: LabelSpread.of_manifest(s.manifest) for n, s in stores.items()})


def choose_placement(
    recipe: Recipe, stores: Mapping[str, Store], ranks: int, model: ModelProfile | None = None
) -> Placement:
    """The placement of a run. A function of recipe, stores and number of ranks: every rank finds the same.

    Args:
        recipe, stores: of the run.
        ranks: their number.
        model: `placement_profile`, where it is known.

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
            f"{plan.chosen.placement.kind}, takes {plan.chosen.memory / 1e9:.2f} GB",
            fix="; or ".join(plan.remedies) or "use ranks with more memory",
        )
    return plan.chosen.placement


def _is_given(recipe: Recipe, ranks: int) -> bool:
    """Whether the recipe leaves nothing to weigh on so many ranks."""
    return recipe.parallel.placement == "replicated" or (ranks == 1 and recipe.parallel.memory is None)


def make_plan(recipe: Recipe, sizes: Mapping[str, DatasetSize], ranks: int, model: ModelProfile | None = None) -> Plan:
    """Plans a run over `ranks`. What does not fit into `parallel.memory` is planned all the same, and said.

    Args:
        recipe, sizes: of the run.
        ranks: their number.
        model: its cost, where it is known.
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
    """Of those that fit the fastest, of equally fast ones that with fewest parameters; if none fits, the smallest."""
    fitting = [option for option in options if option.fits]
    if not fitting:
        best = min(options, key=lambda option: option.memory)
        why = "nothing fits; this takes least memory"
    else:
        soonest = min(option.seconds for option in fitting)
        equal = [option for option in fitting if option.seconds <= (1 + SAME) * soonest]
        best = min(equal, key=lambda option: max(rank.parameters for rank in option.ranks))
        others = [
            f"{o.placement.kind} {o.seconds / best.seconds:.3g} times" + ("" if o.fits else ", does not fit")
            for o in options
            if o is not best
        ]
        why = f"predicted time of a step against this: {'; '.join(others)}"  # no seconds: the machine is an assumption
        if len(equal) > 1:
            why += "; fewest parameters per rank among the fastest"
    placement = best.placement
    found = replace(placement, kind=f"auto:{placement.kind}", reason=f"{placement.reason}; {why}")
    return replace(best, placement=found)


def _remedies(recipe: Recipe, model: ModelProfile, shares: Mapping[str, StepShare], ranks: int) -> list[str]:
    """Overrides with which the run would fit: another placement, a cut-up encoder, turns of fewer edges, more ranks."""
    assert recipe.parallel.memory is not None
    limit = USABLE * recipe.parallel.memory * 1e9
    found = []
    for shard in ("none", "encoder"):
        for kind in KINDS:
            changed = _with(recipe, shard=shard)
            option = _option(changed, model, shares, kind, ranks)
            words = [f"parallel.placement={kind}"] + (["parallel.shard=encoder"] if shard == "encoder" else [])
            if not option.fits:
                fullest = max(option.ranks, key=lambda rank: rank.memory)
                room = limit - fullest.states - fullest.working
                budget = math.floor(fullest.edges * room / fullest.activations)
                option = _option(_with(changed, micro_batch_edges=max(1, budget)), model, shares, kind, ranks)
                words.append(f"parallel.micro_batch_edges={budget}")
                largest = max(share.edges / share.structures for share in shares.values())
                if room <= 0 or budget < largest or not option.fits:
                    continue
            found.append(f"{' '.join(words)} ({option.memory / 1e9:.2f} GB)")
    more = next((n for k in range(1, 12) if _any_fits(recipe, model, shares, n := ranks * 2**k)), None)
    if more is not None:
        found.append(f"{more} ranks instead of {ranks}")
    return found


def _any_fits(recipe: Recipe, model: ModelProfile, shares: Mapping[str, StepShare], ranks: int) -> bool:
    return ranks <= 8192 and any(_option(recipe, model, shares, kind, ranks).fits for kind in KINDS)


def _with(recipe: Recipe, **changes: Any) -> Recipe:
    """The recipe with other keys of `parallel`."""
    return recipe.model_copy(update={"parallel": recipe.parallel.model_copy(update=changes)})
