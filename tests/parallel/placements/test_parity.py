"""One process and several take the same steps with any placement: weights, averages and logged losses."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ramify.parallel.world import World
from ramify.planning.costs import rank_costs
from ramify.planning.model_profile import profile_model
from ramify.planning.placement import Placement
from ramify.planning.workload import dataset_sizes, step_shares
from ramify.recipe import Recipe
from ramify.train.loop import Trainer
from ramify.train.reporting import Callbacks
from ramify.train.start import start_run
from ramify.train.validation import Validation
from tests.parallel.conftest import MakeFive
from tests.processes.worlds import run_world
from tests.small import assert_near, metrics

STEPS = 20
KINDS: dict[str, dict[str, Any]] = {
    "conservative": {"model__force_head__kind": "conservative", "objective__stress": 0.3},
    "direct": {},
    "muon": {"optimizer__kind": "muon"},
}
UNEVEN = {"alloys": [0, 1], "waters": [1], "bare": [0], "partly": [0, 1], "clusters": [1]}
APART = {"alloys": [0, 3], "waters": [1, 2], "bare": [0], "partly": [1, 3], "clusters": [2]}
SIX = {"alloys": [0, 1, 2], "waters": [4], "bare": [3], "partly": [1, 3, 5], "clusters": [2, 4]}
MICRO_BATCHES = {"parallel__micro_batch_atoms": 12, "parallel__micro_batch_edges": 90}
WORLDS: dict[int, list[tuple[str, dict[str, Any]]]] = {
    1: [("conservative", MICRO_BATCHES), ("direct", MICRO_BATCHES)],
    2: [
        ("conservative", {"parallel__placement": "replicated"}),
        ("conservative", {"parallel__placement": "per-branch"}),  # several branches on a rank
        ("direct", {"parallel__placement": UNEVEN}),
        ("conservative", {"parallel__placement": "balanced", **MICRO_BATCHES}),
        ("muon", {"parallel__placement": UNEVEN}),
    ],
    3: [
        ("conservative", {"parallel__placement": "per-branch-even"}),
        ("direct", {"parallel__placement": "replicated"}),
    ],
    4: [
        ("conservative", {"parallel__placement": APART}),
        ("direct", {"parallel__placement": "per-branch"}),
    ],
    6: [
        ("conservative", {"parallel__placement": "per-branch"}),  # groups by work
        ("conservative", {"parallel__placement": "replicated"}),  # some ranks have nothing to do
        ("direct", {"parallel__placement": SIX, **MICRO_BATCHES}),
        ("direct", {"parallel__placement": "per-branch-even"}),
    ],
}


def steps_of(five: MakeFive, kind: str, changes: dict[str, Any]) -> Recipe:
    """20 steps of 7 structures, evaluated twice: datasets are absent from many of them."""
    length = {
        "train__max_steps": STEPS,
        "train__batch": 7,
        "train__log_every": 1,
        "train__evaluate_every": 10 * 7 / 172,
    }
    return five(**length, train__checkpoint_every=99.0, **KINDS[kind], **changes)


@dataclass(frozen=True)
class Trained:
    """Results of one rank after a run.

    Attributes:
        state: weights and averages of the parts on this rank.
        placement: of the branches.
        traffic: bytes passed to collectives.
        present: by branch, number of steps with structures of it.
        fresh: errors on the validation splits before the first step.
    """

    state: dict[str, NDArray[np.float64]]
    placement: Placement
    traffic: dict[str, int]
    present: dict[str, int]
    fresh: Validation


def state_of(trainer: Trainer) -> dict[str, NDArray[np.float64]]:
    """By name, the averages as `averaged NAME`."""
    named = list(trainer.model.named_parameters())
    weights = {name: p.detach().numpy().copy() for name, p in named}
    averages = zip(named, trainer.averages.averages, strict=True)
    return weights | {f"averaged {name}": average.numpy().copy() for (name, _), average in averages}


def train_each(rank: int, world: int, recipes: list[Recipe], folder: Path) -> list[Trained]:
    """Trains one run after the other on this rank."""
    found = []
    for number, recipe in enumerate(recipes):
        ranks = World(rank=rank, size=world)
        trainer = start_run(recipe, folder / f"{world}-{number}", Callbacks(), world=ranks)
        fresh = trainer.validator(trainer.model)
        trainer.fit()
        assert trainer.progress.step == STEPS
        counts = [trainer.sampler.counts(step) for step in range(STEPS)]
        present = {branch: sum(c[branch] > 0 for c in counts) for branch in recipe.datasets}
        found.append(Trained(state_of(trainer), trainer.layout.placement, dict(trainer.layout.traffic), present, fresh))
        trainer.run.unlock()
    return found


@dataclass(frozen=True)
class Outcome:
    """One placement: its recipe, the results of its ranks, and its log."""

    kind: str
    recipe: Recipe
    ranks: list[Trained]
    log: list[dict[str, Any]]


Planned = Callable[[str, Placement], list[dict[str, int]]]


@pytest.fixture(scope="module")
def expected(five: MakeFive, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """By kind of forces, the run of one process that does all at once."""
    folder = tmp_path_factory.mktemp("alone")
    recipes = [steps_of(five, kind, {}) for kind in KINDS]
    trained = train_each(0, 1, recipes, folder)
    return {kind: Outcome(kind, recipes[k], [trained[k]], metrics(folder / f"1-{k}")) for k, kind in enumerate(KINDS)}


@pytest.fixture(scope="module", params=WORLDS)
def outcomes(request: pytest.FixtureRequest, five: MakeFive, tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    """All runs of one number of ranks, trained one after the other by the same processes."""
    world, folder = request.param, tmp_path_factory.mktemp("world")
    recipes = [steps_of(five, kind, changes) for kind, changes in WORLDS[world]]
    if world == 1:
        trained = [train_each(0, 1, recipes, folder)]
    else:
        trained = run_world(world, train_each, world, recipes, folder, limit=220)
    return [
        Outcome(kind, recipes[k], [rank[k] for rank in trained], metrics(folder / f"{world}-{k}"))
        for k, (kind, _) in enumerate(WORLDS[world])
    ]


@pytest.mark.slow
def test_weights_and_averages(outcomes: list[Outcome], expected: dict[str, Outcome]) -> None:
    """To 1e-12 of the largest number of each tensor, on every rank that has it."""
    for outcome in outcomes:
        alone = expected[outcome.kind].ranks[0].state
        assert set().union(*(rank.state for rank in outcome.ranks)) == alone.keys()
        for rank in outcome.ranks:
            for name, array in rank.state.items():
                limit = 1e-12 * np.abs(alone[name]).max()
                np.testing.assert_allclose(array, alone[name], rtol=0, atol=limit, err_msg=name)


@pytest.mark.slow
def test_ranks_agree_to_the_bit(outcomes: list[Outcome]) -> None:
    """Parts on two ranks must stay equal."""
    for outcome in outcomes:
        first: dict[str, NDArray[Any]] = {}
        for rank in outcome.ranks:
            for name, array in rank.state.items():
                np.testing.assert_array_equal(array, first.setdefault(name, array), err_msg=name)


def test_logs(outcomes: list[Outcome], expected: dict[str, Outcome]) -> None:
    """Losses, errors by dataset, norms of the gradient and validation metrics; clipping is active."""
    for outcome in outcomes:
        alone = expected[outcome.kind].log
        assert len(outcome.log) == len(alone) == STEPS + 2
        for line, same in zip(outcome.log, alone, strict=True):
            assert_near(line, same, rel=1e-11, abs=1e-13)  # sums of many parts
        assert max(line.get("grad_norm", 0.0) for line in alone) > outcome.recipe.optimizer.clip


def test_errors_of_equal_weights_are_equal_to_the_bit(outcomes: list[Outcome], expected: dict[str, Outcome]) -> None:
    for outcome in outcomes:
        for rank in outcome.ranks:
            assert rank.fresh == expected[outcome.kind].ranks[0].fresh


@pytest.fixture(scope="module")
def planned(five: MakeFive) -> Planned:
    """By kind of forces, the planned traffic of each rank per step with a placement."""
    sizes = dataset_sizes(five(), {})
    spreads = {name: size.spread for name, size in sizes.items()}
    recipes = {kind: steps_of(five, kind, {}) for kind in KINDS}
    models = {kind: profile_model(recipe, spreads) for kind, recipe in recipes.items()}

    def traffic(kind: str, placement: Placement) -> list[dict[str, int]]:
        costs = rank_costs(recipes[kind], models[kind], step_shares(recipes[kind], sizes), placement)
        return [cost.traffic for cost in costs]

    return traffic


@pytest.mark.slow
def test_traffic_is_what_the_plan_says(outcomes: list[Outcome], planned: Planned) -> None:
    """Per step the encoder, and each branch that a rank shares in the steps in which it has structures; and 18 float64
    of control: loss, norm, flag, and three numbers for each of the five datasets, or four with stress."""
    for outcome in outcomes:
        world = len(outcome.ranks)
        for rank, per_step in zip(outcome.ranks, planned(outcome.kind, outcome.ranks[0].placement), strict=True):
            steps = {"encoder": STEPS} | {f"branches.{branch}": count for branch, count in rank.present.items()}
            expected = {what: bytes_ * steps[what] for what, bytes_ in per_step.items()}
            found = {what: bytes_ for what, bytes_ in rank.traffic.items() if what != "gathered"}
            assert found == expected | (
                {"control": STEPS * (23 if outcome.kind == "conservative" else 18) * 8} if world > 1 else {}
            )
        assert min(outcome.ranks[0].present.values()) < STEPS  # a branch may be absent from a step
