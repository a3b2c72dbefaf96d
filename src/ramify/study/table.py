"""study.json: the recipe of a study and its table of tasks, one training and evaluation each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ramify.errors import RamifyError
from ramify.files import read_json, write_json
from ramify.recipe import Recipe, TrainOptions, parse_recipe
from ramify.run.changes import FREE, differing_keys
from ramify.study.models import Equal, Kind, Model, models_of, without_empty
from ramify.untrusted import Name, check_version, parsed

NAME = "study.json"
VERSION = 1

State = Literal["waiting", "training", "trained", "evaluating", "done", "stopped", "failed"]
"""`trained`: to be evaluated. `stopped`: to be continued from its latest checkpoint. `failed`: ended with an error."""

ANY_TIME = (*FREE, "train.seed")
"""Keys of the recipe that may change between two calls; each task states its seed."""

LENGTH = ("train.epochs", "train.max_steps", "train.evaluate_every")
"""Keys that may change together, to lengthen all trainings."""


class Process(BaseModel):
    """The process of a running task, to recognise it after the controller was killed."""

    host: str
    pid: int
    started: int | None


class Task(BaseModel):
    """One model with one seed."""

    model_config = ConfigDict(extra="forbid")

    model: Name
    kind: Kind
    datasets: list[Name] = Field(min_length=1)
    seed: int
    budget: dict[str, Any]
    steps: int
    state: State = "waiting"
    attempts: int = 0
    error: str = ""
    process: Process | None = None

    @property
    def as_model(self) -> Model:
        """The model of the task."""
        return Model(self.model, self.kind, tuple(self.datasets))

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.as_model.run(self.seed)

    def lengthen(self, budget: dict[str, Any], steps: int) -> None:
        """Takes a greater length; a task that was done is to be continued."""
        if steps > self.steps:
            self.budget, self.steps = budget, steps
            self.state = "waiting" if self.state == "waiting" else "stopped"


class Content(BaseModel):
    """Content of study.json."""

    model_config = ConfigDict(extra="forbid")

    version: int = VERSION
    recipe: dict[str, Any]
    equal: Equal
    generations: list[list[Name]] = Field(min_length=1)
    seconds: dict[str, float] = {}
    tasks: list[Task] = []


class Study:
    """A study on disk: DIR/study.json, DIR/runs/MODEL-seedN, DIR/recipes, DIR/logs.

    Args:
        path: the folder.
        content: of study.json.
    """

    def __init__(self, path: Path, content: Content) -> None:
        self.path, self._content = path, content
        self.recipe = parse_recipe(content.recipe, str(path / NAME))

    @classmethod
    def exists(cls, path: Path) -> bool:
        """Whether there is a study at `path`."""
        return (path / NAME).is_file()

    @classmethod
    def open(cls, path: Path) -> Study:
        """Opens an existing study.

        Raises:
            RamifyError: there is none, or study.json is damaged or of a newer version.
        """
        if not cls.exists(path):
            raise RamifyError(f"{path} is not a study: it has no {NAME}", fix="give the folder of `ramify study --out`")
        content = read_json(path / NAME)
        check_version(content, VERSION, path / NAME)
        return cls(path, parsed(Content, content, path / NAME, fix="restore the file, or start a new study"))

    @classmethod
    def create(cls, path: Path, recipe: Recipe, equal: Equal) -> Study:
        """A new study; nothing is written before `save`.

        Raises:
            RamifyError: the folder contains other files.
        """
        if path.exists() and (not path.is_dir() or any(entry.name != "lock.json" for entry in path.iterdir())):
            raise RamifyError(f"{path} exists already and is not a study", fix="choose another --out folder")
        return cls(path, Content(recipe=recipe.model_dump(mode="json"), equal=equal, generations=[[*recipe.datasets]]))

    def extend(self, recipe: Recipe, equal: Equal, where: str) -> None:
        """Continues with a recipe, which may have more datasets than before, and longer trainings.

        Raises:
            RamifyError: naming every other difference.
        """
        refused = differences(self.recipe, recipe)
        if equal != self._content.equal:
            refused.append(f"--equal: {self._content.equal}, now {equal}")
        if refused:
            raise RamifyError(
                f"{where} is not the recipe of the study in {self.path} ({'; '.join(refused)})",
                fix="restore these keys, or choose another --out folder; only datasets may be added, and train.epochs "
                "or train.max_steps raised",
            )
        known = self._content.generations[-1]
        if added := [name for name in recipe.datasets if name not in known]:
            self._content.generations.append([*known, *added])
        self._content.recipe = recipe.model_dump(mode="json")
        self.recipe = recipe

    @property
    def equal(self) -> Equal:
        """The quantity that all trainings have in common."""
        return self._content.equal

    @property
    def first_datasets(self) -> list[str]:
        """Datasets at the beginning of the study."""
        return self._content.generations[0]

    @property
    def datasets(self) -> list[str]:
        """All datasets, in the order in which they were added."""
        return self._content.generations[-1]

    @property
    def seconds(self) -> dict[str, float]:
        """Measured seconds per step, for `--equal time`; change it in place."""
        return self._content.seconds

    @property
    def tasks(self) -> list[Task]:
        """All tasks; change them in place, then `save`."""
        return self._content.tasks

    def models(self) -> list[Model]:
        """All models, in the order of the tables."""
        return models_of(self._content.generations)

    def add(self, task: Task) -> None:
        """Adds a task that the table does not have yet."""
        if task.name not in {other.name for other in self.tasks}:
            self.tasks.append(task)
        order = {model.name: k for k, model in enumerate(self.models())}
        self.tasks.sort(key=lambda task: (order[task.model], task.seed))

    def run(self, task: Task) -> Path:
        """The run directory of a task."""
        return self.path / "runs" / task.name

    def recipe_of(self, task: Task) -> Recipe:
        """The recipe of the run of a task."""
        return task.as_model.recipe(self.recipe, task.seed, task.budget)

    def save(self) -> None:
        """Writes study.json atomically."""
        write_json(self.path / NAME, self._content.model_dump(mode="json"))


def differences(before: Recipe, now: Recipe) -> list[str]:
    """The keys by which a recipe differs from that of a study, apart from `ANY_TIME`, added datasets and a greater
    length."""
    missing = [f"datasets.{name}: missing" for name in before.datasets if name not in now.datasets]
    added = [name for name in now.datasets if name not in before.datasets]
    old, new = _groups(before, before.datasets), _groups(now, before.datasets)
    moved = [f"branches: {old}, now {new}"] if old != new and not missing else []
    free = (*ANY_TIME, "branches", *(LENGTH if _is_longer(before.train, now.train) else ()))
    keys: Mapping[str, Sequence[Any]] = differing_keys(before, now, added=added, free=free)
    lost = tuple(f"datasets.{name}." for name in before.datasets if name not in now.datasets)
    return [
        *missing,
        *moved,
        *(f"{key}: {was}, now {is_}" for key, (was, is_) in keys.items() if not key.startswith(lost)),
    ]


def _is_longer(before: TrainOptions, now: TrainOptions) -> bool:
    """Whether trainings become longer: by passes, or by steps if both recipes state those."""
    if before.max_steps is None or now.max_steps is None:
        return before.max_steps == now.max_steps and now.epochs > before.epochs
    return now.max_steps > before.max_steps


def _groups(recipe: Recipe, datasets: Mapping[str, Any]) -> dict[str, list[str]]:
    """The known datasets of each branch of the multi-branch model."""
    grouped = recipe.branches if isinstance(recipe.branches, dict) else {name: [name] for name in datasets}
    return without_empty(grouped, datasets)
