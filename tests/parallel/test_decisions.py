"""All ranks take the same decision to stop or to change the run, whichever rank causes it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from ramify.batches.batch import Batch
from ramify.checkpoint.checkpoint import open_checkpoint
from ramify.errors import RamifyError
from ramify.model.multibranch import BatchPredictions
from ramify.parallel.world import World
from ramify.recipe import Recipe
from ramify.run.stop import Stop
from ramify.store.store import LabelCounts
from ramify.train.loop import Trainer
from ramify.train.optimization.objective import Loss, Objective
from ramify.train.reporting import Callbacks
from ramify.train.start import start_run
from tests.processes.worlds import run_world
from tests.small import metrics

from .conftest import MakeFive

APART: dict[str, Any] = {"parallel__placement": "per-branch", "train__batch": 40, "train__log_every": 1}
EPOCH = 172 / 40
STOPPED, BROKEN, PLATEAU = "stopped", "broken", "plateau"


@dataclass(frozen=True)
class End:
    """How a run ended on one rank."""

    step: int
    stopped_by: str
    error: str
    everywhere: bool
    factor: float
    best: float


class Broken:
    """An objective that is not a number from its third batch on."""

    def __init__(self, objective: Objective) -> None:
        self._objective, self._calls = objective, 0

    def __call__(self, predictions: BatchPredictions, batch: Batch, labels: Mapping[str, LabelCounts]) -> Loss:
        self._calls += 1
        loss = self._objective(predictions, batch, labels)
        return loss if self._calls < 3 else Loss(loss.total * torch.nan, loss.datasets)


class Called(Stop):
    """Requests a stop from the third time that it is read."""

    looks = 0

    @property
    def reason(self) -> str:
        self.looks += 1
        return "SIGUSR1" if self.looks >= 3 else ""


def spoil(trainer: Trainer, how: str) -> None:
    if how == BROKEN:
        trainer.objective = Broken(trainer.objective)  # type: ignore[assignment]
    elif how == STOPPED:
        trainer.stop = Called()


def run_each(rank: int, world: int, recipes: Mapping[str, Recipe], folder: Path) -> dict[str, End]:
    """Every run, spoilt on the last rank only."""
    ends = {}
    for name, recipe in recipes.items():
        trainer = start_run(recipe, folder / name, Callbacks(), world=World(rank=rank, size=world))
        if rank == world - 1:
            spoil(trainer, name)
        error, everywhere = "", False
        try:
            trainer.fit()
        except RamifyError as raised:
            error, everywhere = str(raised), raised.everywhere
        progress = trainer.progress
        ends[name] = End(
            progress.step, trainer.stopped_by, error, everywhere, trainer.schedule.factor, round(progress.best, 12)
        )
        trainer.run.unlock()
    return ends


@pytest.fixture(scope="module")
def recipes(five: MakeFive) -> dict[str, Recipe]:
    wild = {"schedule__kind": "plateau", "schedule__patience": 0, "optimizer__lr": 0.5, "schedule__warmup_steps": 0}
    return {
        STOPPED: five(**APART),
        BROKEN: five(**APART),
        PLATEAU: five(**APART, **wild, train__patience=2, train__evaluate_every=1 / EPOCH, train__max_steps=30),
    }


@pytest.fixture(scope="module")
def ended(recipes: dict[str, Recipe], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, End]]]:
    folder = tmp_path_factory.mktemp("decisions")
    return folder, run_world(2, run_each, 2, recipes, folder)


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all(ended: tuple[Path, list[dict[str, End]]]) -> None:
    folder, ranks = ended
    for rank in ranks:
        assert (rank[STOPPED].step, rank[STOPPED].stopped_by, rank[STOPPED].error) == (3, "SIGUSR1", "")
    assert open_checkpoint(folder / STOPPED / "checkpoints" / "latest").step == 3
    assert [line["step"] for line in metrics(folder / STOPPED, "train")] == [1, 2, 3]


def test_a_loss_that_breaks_on_one_rank_ends_all(ended: tuple[Path, list[dict[str, End]]]) -> None:
    folder, ranks = ended
    assert ranks[0][BROKEN] == ranks[1][BROKEN]
    end = ranks[0][BROKEN]
    assert end.step == 2
    assert end.everywhere
    assert end.error.startswith("step 3: the loss is nan and its gradient nan; by dataset")
    for name in ("alloys", "waters", "bare", "partly", "clusters"):  # also what the other rank has
        assert f"'{name}': [" in end.error
    assert open_checkpoint(folder / BROKEN / "checkpoints" / "latest").step == 2


def test_patience_and_plateau(
    ended: tuple[Path, list[dict[str, End]]], recipes: dict[str, Recipe], tmp_path: Path
) -> None:
    """They end where one process ends."""
    _, ranks = ended
    alone = run_each(0, 1, {PLATEAU: recipes[PLATEAU]}, tmp_path)[PLATEAU]
    assert ranks[0][PLATEAU] == ranks[1][PLATEAU] == alone
    assert alone.step < 30
    assert alone.factor < 1
