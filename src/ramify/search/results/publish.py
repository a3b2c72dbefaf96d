"""What a search leaves: best.yaml, search.html, and hyper-parameters for TensorBoard."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from torch.utils.tensorboard.summary import hparams

from ramify.files import write_whole
from ramify.recipe import load_recipe
from ramify.run.trackers.tensorboard import EventFile
from ramify.search.rungs import best_trials
from ramify.search.settings import SearchFolder, Settings
from ramify.search.space import Space
from ramify.search.trials import METRIC, Trial

BEST = "best.yaml"
BOARD = "tensorboard"


def write_best(folder: SearchFolder, settings: Settings, trials: Sequence[Trial]) -> Path | None:
    """Writes the recipe of the best trial, which `ramify train` takes; None before the first result."""
    best = best_trials(trials, settings.objectives)
    if not best:
        return None
    trial = best[0]
    assert trial.metric is not None
    recipe = load_recipe(folder.recipe(trial.number))
    at = f"step {trial.results[-1].step} of {trial.steps}"
    about = f"# Trial {trial.number}: validation metric {trial.metric:.6g} at {at}.\n"
    write_whole(folder.path / BEST, about + recipe.to_yaml())
    return folder.path / BEST


def write_board(folder: SearchFolder, space: Space, trials: Sequence[Trial]) -> None:
    """Writes the keys of the space and the metric at each rung for TensorBoard's HPARAMS, one folder a trial; the
    files of earlier calls are replaced. Learning curves are in the `tensorboard` folders of the runs."""
    board = folder.path / BOARD
    shutil.rmtree(board, ignore_errors=True)
    for trial in trials:
        if trial.metric is None:
            continue
        values = space.values(trial.params)
        shown = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in values.items()}
        with EventFile(_made(board / str(trial.number))) as events:
            for summary in hparams(shown, {METRIC: trial.metric}):
                events.write(summary, 0)
            for result in trial.results:
                events.write(Summary(value=[Summary.Value(tag=METRIC, simple_value=result.metric)]), result.step)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder
