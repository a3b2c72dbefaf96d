"""A plan as text and as plain data: the paper's three cases, warnings, and one row for equal ranks."""

from typing import Any

from ramify.planning.costs import RankCost, branch_work, states_per_parameter
from ramify.planning.model_profile import ModelProfile
from ramify.planning.plan import USABLE, Option, Plan

MUCH = 4.0
"""Ratio above which P_s ≫ N_h P_h, and inverse of that below which P_s ≪ N_h P_h. The paper defines no value."""


def regime(model: ModelProfile) -> tuple[int, str]:
    """The case of a model among the paper's three (section 4.3), and its description."""
    encoder, heads, count = model.encoder, sum(model.branches.values()), len(model.branches)
    ratio = encoder / heads
    case = 1 if ratio >= MUCH else 2 if ratio <= 1 / MUCH else 3
    return case, (
        f"P_s = {encoder / 1e6:.2f} M parameters in the encoder, N_h P_h = {count} x {heads / count / 1e6:.2f} M = "
        f"{heads / 1e6:.2f} M in the branches, ratio {ratio:.2f}. The paper's cases: 1, P_s ≫ N_h P_h, shard the "
        f"encoder; 2, P_s ≪ N_h P_h, distribute the branches; 3, P_s ~ N_h P_h, both. This is case {case}"
    )


def warnings(plan: Plan) -> list[str]:
    """Warnings for users before the start of a run."""
    found = []
    idle = sum(rank.structures < 1 for rank in plan.chosen.ranks)
    if idle:
        found.append(
            f"{idle} of {len(plan.chosen.ranks)} ranks have less than one structure per step: train.batch is "
            f"{plan.recipe.train.batch}, over all ranks together"
        )
    if stated := [name for name, size in plan.sizes.items() if size.source == "stated"]:
        found.append(f"the sizes of {', '.join(stated)} are stated, not measured")
    if not plan.chosen.fits:
        kind = plan.chosen.placement.kind.removeprefix("auto:")
        found.append(
            f"{kind} needs {plan.chosen.memory / 1e9:.2f} GB on one rank, more than "
            f"{100 * USABLE:.0f} % of {plan.recipe.parallel.memory:g} GB"
        )
    return found


def as_data(plan: Plan) -> dict[str, Any]:
    """A plan as plain data, in bytes and seconds; equal ranks in one row."""
    placement, itemsize = plan.chosen.placement, plan.model.itemsize
    case, text = regime(plan.model)
    return {
        "ranks": placement.ranks,
        "memory_gb": plan.recipe.parallel.memory,
        "batch": plan.recipe.train.batch,
        "placement": {
            "kind": placement.kind,
            "reason": placement.reason,
            "hosts": {name: list(on) for name, on in placement.hosts.items()},
            "shares": {name: list(parts) for name, parts in placement.shares.items()},
        },
        "shard": plan.recipe.parallel.shard,
        "regime": {"case": case, "text": text},
        "model": {
            "encoder_parameters": plan.model.encoder,
            "branch_parameters": plan.model.branches,
            "bytes_per_parameter": round(states_per_parameter(plan.recipe, plan.model), 2),
            "gradient_bytes_per_parameter": itemsize,
        },
        "datasets": {
            name: {"structures": s.structures, "atoms": s.atoms, "edges": s.edges, "source": s.source}
            for name, s in plan.sizes.items()
        },
        "branches": {
            name: {"structures": s.structures, "atoms": s.atoms, "edges": s.edges} for name, s in plan.shares.items()
        },
        "rows": [{"ranks": members, **_rank_data(cost)} for members, cost in groups(plan.chosen)],
        "imbalance": plan.imbalance,
        "seconds": plan.chosen.seconds,
        "fits": plan.chosen.fits,
        "considered": [
            {
                "kind": option.placement.kind,
                "seconds": option.seconds,
                "memory": option.memory,
                "traffic": option.traffic,
                "imbalance": option.placement.imbalance(branch_work(plan.model, plan.shares)),
                "fits": option.fits,
            }
            for option in plan.considered
        ],
        "machine": plan.recipe.parallel.machine.model_dump(),
        "warnings": warnings(plan),
        "remedies": plan.remedies,
    }


def groups(option: Option) -> list[tuple[list[int], RankCost]]:
    """Groups of ranks with equal costs, and their cost."""
    found: list[tuple[list[int], RankCost]] = []
    for rank, cost in enumerate(option.ranks):
        same = next((members for members, other in found if other is cost or other == cost), None)
        if same is None:
            found.append(([rank], cost))
        else:
            same.append(rank)
    return found


def _rank_data(cost: RankCost) -> dict[str, Any]:
    return {
        "branches": list(cost.branches),
        "parameters": cost.parameters,
        "structures": cost.structures,
        "atoms": cost.atoms,
        "edges": cost.edges,
        "operations": cost.operations,
        "bytes": {
            "weights": cost.weights,
            "gradients": cost.gradients,
            "optimizer": cost.optimizer,
            "averages": cost.averages,
            "working": cost.working,
            "activations": cost.activations,
        },
        "traffic": cost.traffic,
        "seconds": cost.seconds,
    }
