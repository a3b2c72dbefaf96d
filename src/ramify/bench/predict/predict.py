"""`ramify bench predict`: step times on other machines and at other sizes, predicted by the cost model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ramify.bench.case import SHARDED
from ramify.bench.figures import draw_prediction
from ramify.bench.predict.check import check
from ramify.bench.predict.machines import Machine, find_machine, measured_machine
from ramify.bench.predict.speed import Load, step_seconds
from ramify.errors import RamifyError
from ramify.files import read_json, write_json
from ramify.model.parts import branch_of_part
from ramify.planning.costs import branch_work, encoder_shards, rank_costs
from ramify.planning.model_profile import ModelProfile, profile_model
from ramify.planning.placement import Placement, place
from ramify.planning.workload import DatasetSize, step_shares
from ramify.recipe import MachineOptions, Recipe

PLACEMENTS = ("replicated", "per-branch-even", "per-branch", "balanced", "replicated+shard", "per-branch+shard")
"""Placements predicted for every size; the first is MTL-base of the paper, the second MTL-par."""

RANKS = (5, 10, 20, 40, 80, 160, 320, 640, 1280, 1920)
"""Numbers of ranks in the figure of the paper, from one rank per dataset to the largest run on Aurora."""

BRANCHES = (1, 2, 5, 8, 16, 32, 64)

GROWTH_RANKS = 320
"""Number of ranks on which branches are added: a multiple of 64, near the limit of strong scaling in the paper."""

WINS = 0.01
"""Relative reduction of the predicted time from which on a placement counts as faster."""


@dataclass(frozen=True)
class ScalingPrediction:
    """Inputs of a prediction.

    Attributes:
        recipe, sizes: recipe, and sizes of the datasets.
        machine: speed and network of the machine.
        batch: structures per rank in weak scaling.
        total: structures per step in strong scaling.
        ranks: numbers of ranks.
        branches: numbers of equal branches.
    """

    recipe: Recipe
    sizes: Mapping[str, DatasetSize]
    machine: Machine
    batch: int
    total: int
    ranks: Sequence[int] = RANKS
    branches: Sequence[int] = BRANCHES

    def predict(self) -> dict[str, Any]:
        """Weak and strong scaling, scaling with the number of branches, and the sizes from which on per-branch is
        faster."""
        model = profile_model(self.recipe, {name: size.spread for name, size in self.sizes.items()})
        scaling = [
            {
                "mode": mode,
                "ranks": ranks,
                "batch": batch,
                "seconds": self._seconds(self.recipe, self.sizes, model, ranks, batch),
            }
            for ranks in self.ranks
            for mode, batch in (("weak", self.batch * ranks), ("strong", self.total))
        ]
        growth = self._branches()
        return {
            "machine": self.machine.to_data(),
            "batch": self.batch,
            "total": self.total,
            "scaling": scaling,
            "branches": growth,
            "wins": {
                "weak": first_win([row for row in scaling if row["mode"] == "weak"], "ranks"),
                "strong": first_win([row for row in scaling if row["mode"] == "strong"], "ranks"),
                "branches": first_win(growth, "branches"),
            },
        }

    def _branches(self) -> list[dict[str, Any]]:
        """Strong scaling with the number of equal branches, with the mean size of the datasets."""
        ranks, found = GROWTH_RANKS, []
        for count in self.branches:
            recipe, sizes = _mean_datasets(self.recipe, self.sizes, count)
            model = profile_model(recipe, {name: size.spread for name, size in sizes.items()})
            seconds = self._seconds(recipe, sizes, model, ranks, self.total)
            parameters = {"encoder_parameters": model.encoder, "branch_parameters": sum(model.branches.values())}
            found.append({"branches": count, "ranks": ranks, "batch": self.total, "seconds": seconds, **parameters})
        return found

    def _seconds(
        self, recipe: Recipe, sizes: Mapping[str, DatasetSize], model: ModelProfile, ranks: int, batch: int
    ) -> dict[str, float]:
        """Predicted seconds by placement."""
        changed = recipe.model_copy(update={"train": recipe.train.model_copy(update={"batch": batch})})
        shares = step_shares(changed, sizes)
        found = {}
        for wanted in PLACEMENTS:
            kind: Any = wanted.removesuffix(SHARDED)
            placement = place(kind, branch_work(model, shares), ranks)
            shard = "encoder" if wanted.endswith(SHARDED) else "none"
            options = changed.parallel.model_copy(update={"shard": shard, "shard_ranks": None})
            one = changed.model_copy(update={"parallel": options})
            loads = {_load(cost, placement, one, model) for cost in rank_costs(one, model, shares, placement)}
            found[wanted] = step_seconds(loads, self.machine.speed, self.machine.network)
        return found


def first_win(rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, Any]:
    """The smallest `key` from which on `per-branch` (in equal groups, and in groups by work) is faster than
    `replicated` by more than `WINS`; None if there is none."""
    wins: dict[str, Any] = {}
    for placement in ("per-branch-even", "per-branch"):
        wins[placement] = None
        for row in sorted(rows, key=lambda row: -row[key]):
            seconds = row["seconds"]
            if seconds[placement] > (1 - WINS) * seconds["replicated"]:
                break
            wins[placement] = row[key]
    return wins


def _load(cost: Any, placement: Placement, recipe: Recipe, model: ModelProfile) -> Load:
    """The load of a planned rank. A rank with less than one structure per step has one whole structure in some steps,
    and the others wait for it; a rank has at most as many branches with structures as it has structures."""
    busy = max(1.0, 1.0 / cost.structures)
    cuts = encoder_shards(recipe.parallel, placement.ranks)
    messages = []
    for what, size in cost.traffic.items():
        branch = branch_of_part(what)
        if branch is None:
            messages.append((size / 2 if cuts > 1 else size, placement.ranks))
        else:
            messages.append((size, len(placement.hosts[branch])))
    with_structures = min(len(cost.branches), max(1.0, cost.structures))
    return Load(busy * cost.operations, with_structures, cost.weights / model.itemsize, tuple(messages))


def _mean_datasets(
    recipe: Recipe, sizes: Mapping[str, DatasetSize], count: int
) -> tuple[Recipe, dict[str, DatasetSize]]:
    """The recipe with `count` datasets of the mean size of its own datasets."""
    known = list(sizes.values())
    if not known:
        raise RamifyError("nothing to predict: no dataset has a size")
    mean = DatasetSize(
        structures=round(sum(size.structures for size in known) / len(known)),
        atoms=sum(size.atoms for size in known) / len(known),
        edges=sum(size.edges for size in known) / len(known),
        spread=known[0].spread,
        source="mean",
    )
    first = next(iter(recipe.datasets.values()))
    names = [f"branch{number:02d}" for number in range(count)]
    train = recipe.train.model_copy(update={"sampling": "equal"})
    objective = recipe.objective.model_copy(update={"weights": {}})
    update = {
        "datasets": dict.fromkeys(names, first),
        "branches": "per-dataset",
        "train": train,
        "objective": objective,
    }
    return recipe.model_copy(update=update), dict.fromkeys(names, mean)


def run_prediction(
    recipe: Recipe,
    sizes: Mapping[str, DatasetSize],
    out: Path,
    measured: Path | None,
    machine: str,
    network: str | None,
    batch: int,
    total: int,
) -> dict[str, Any]:
    """Writes `predict.json`, `predict.svg` and `predict.png` into `out`; returns the content of the first.

    Args:
        recipe, sizes: recipe, and sizes of its datasets.
        out: the folder.
        measured: `scale.json` of a calibrated sweep, to fit and check the cost model.
        machine: `here` for the measured machine, or the name of another one.
        network: GB/s and microseconds instead of those of the machine.
        batch, total: structures per rank (weak) and per step (strong).

    Raises:
        RamifyError: measurements are missing, or the machine is unknown.
    """
    content = read_json(measured) if measured else None
    stated = _network(network) if network else None
    if machine == "here":
        if content is None:
            raise RamifyError("--machine here is predicted from measurements", fix="give --measured scale.json")
        chosen = measured_machine(content, stated)
    else:
        chosen = find_machine(machine)
        if stated is not None:
            chosen = replace(chosen, network=stated)
    found = {
        "check": check(content) if content else None,
        **ScalingPrediction(recipe, sizes, chosen, batch, total).predict(),
    }
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "predict.json", found)
    draw_prediction(found, out)
    return found


def _network(text: str) -> MachineOptions:
    try:
        bandwidth, latency = (float(part) for part in text.split(","))
        return MachineOptions(bandwidth=bandwidth, latency=latency)
    except ValueError:
        raise RamifyError(f"--network {text}: accepted are GB/s and microseconds, e.g. 12.5,10") from None
