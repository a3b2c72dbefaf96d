"""A search from its settings to its result: `ramify search`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ramify.errors import RamifyError
from ramify.recipe import Recipe, load_recipe
from ramify.run.launcher import Launcher
from ramify.search.controller import Controller
from ramify.search.journal import Journal
from ramify.search.lengths import LENGTHS, Estimates, Pace, check_rungs
from ramify.search.results.publish import write_best, write_board
from ramify.search.samplers import check_sampler
from ramify.search.settings import SearchFolder, Settings
from ramify.search.space import Space, make_space, read_space
from ramify.search.trials import Trial


@dataclass(frozen=True)
class Search:
    """An open search.

    Attributes:
        folder: of the search.
        settings: of the search.
        recipe: of the search.
        space: over the recipe.
        journal: table of trials.
    """

    folder: SearchFolder
    settings: Settings
    recipe: Recipe
    space: Space
    journal: Journal

    def controller(self, trials: int, ranks: int, launcher: Launcher, **options: Any) -> Controller:
        """A controller; see `Controller` for the options.

        Raises:
            RamifyError: a store is missing, or a rung has no evaluation.
        """
        pace = Pace(self.recipe, self.folder.pace) if self.settings.equal == "time" else None
        estimates = Estimates(self.recipe, ranks, pace)
        check_rungs(estimates, self.recipe, self.settings.rungs, self.settings.reduction)
        options = {"start": launcher.start} | options
        return Controller(
            self.folder, self.settings, self.space, self.journal, estimates, trials, launcher.jobs, **options
        )

    def publish(self) -> list[Trial]:
        """Writes best.yaml, search.html and the files for TensorBoard; returns all trials."""
        from ramify.search.results.page import write_page

        trials = self.journal.trials()
        with self.journal.exclusive():
            write_best(self.folder, self.settings, trials)
            write_board(self.folder, self.space, trials)
            write_page(self.folder, self.settings, self.space, trials)
        return trials


def open_search(out: Path, recipe: str | Path, overrides: Sequence[str], space: str | Path, **options: Any) -> Search:
    """Creates a search, or opens the one in `out` with the same settings.

    Args:
        out: folder of the search.
        recipe: path or name.
        overrides: recipe keys.
        space: path or name.
        options: of `Settings`: sampler, seed, rungs, reduction, objectives, equal, storage.

    Raises:
        RamifyError: the recipe, the space or an option is not valid, or `out` holds another search.
    """
    resolved = load_recipe(recipe, [*overrides, "train.stop_after=null"])
    content = resolved.model_dump(mode="json")
    checked = read_space(space, content)
    settings = Settings(recipe=content, space=checked.content, **options)
    check_sampler(settings.sampler, checked, settings.objectives)
    if settings.equal == "time" and (both := [key.name for key in checked.keys if key.name in LENGTHS]):
        raise RamifyError(
            f"--equal time sets the length of each trial, but the space has {', '.join(both)}",
            fix="remove it from the space, or use --equal passes",
        )
    folder = SearchFolder(out)
    settings = folder.open(settings)
    journal = Journal(out, settings.storage, settings.study, settings.objectives, settings.rungs)
    return Search(folder, settings, resolved, make_space(settings.space, content, str(space)), journal)
