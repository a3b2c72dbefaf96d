"""`search.json`: the settings of a search, fixed when it starts, and the paths in its folder."""

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from ramify.errors import RamifyError, nearest
from ramify.files import create_whole, read_json
from ramify.recipe.base import Keys
from ramify.search.trials import ERRORS, GEOMETRIC, OBJECTIVES, Equal

NAME = "search.json"
VERSION = 1


class Settings(Keys):
    """What determines the trials of a search, besides their number."""

    version: int = VERSION
    """Version of this file."""
    recipe: dict[str, Any]
    """The recipe with all its keys; a trial replaces those of the space."""
    space: dict[str, Any]
    """The space as written."""
    sampler: str = "tpe"
    """Name of the sampler."""
    seed: int = Field(0, ge=0)
    """Seed of the sampler."""
    rungs: int = Field(3, ge=1)
    """Number of rungs, the full length included; 1 trains every trial to its end."""
    reduction: int = Field(3, ge=2)
    """One of so many trials at a rung is continued, to so many times its steps."""
    objectives: list[str] = Field([GEOMETRIC])
    """Values to minimise; the first is an error."""
    equal: Equal = "passes"
    """What all trials have in common."""
    storage: str = ""
    """URL of an SQL database; empty: a journal file."""
    study: str = ""
    """Name of the study in the database."""


class SearchFolder:
    """The folder of a search."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self, settings: Settings) -> Settings:
        """Creates the folder, or opens that of a search with the same settings.

        Returns:
            The settings with the name of the study.

        Raises:
            RamifyError: the folder holds something else, or a search with other settings: with both values.
        """
        file = self.path / NAME
        if not file.exists():
            self._create(file, settings)
        found = Settings.model_validate(read_json(file))
        wanted, known = (s.model_dump(mode="json", exclude={"study"}) for s in (settings, found))
        if different := [key for key in wanted if wanted[key] != known[key]]:
            texts = [_difference(key, known[key], wanted[key]) for key in different]
            raise RamifyError(
                f"{self.path} is a search with other settings: {'; '.join(texts)}",
                fix="restore them to continue it, or choose another --out; only --trials, --jobs, --launcher, --ranks "
                "may change",
            )
        for name in ("trials", "recipes", "logs", "claims"):
            (self.path / name).mkdir(exist_ok=True)
        return found

    def _create(self, file: Path, settings: Settings) -> None:
        """Creates the file of settings; of several controllers that start together, the first chooses the study."""
        is_used = self.path.exists() and (not self.path.is_dir() or any(self._foreign()))
        if is_used and not file.exists():  # in this order: another controller may create its files between the two
            raise RamifyError(f"--out {self.path} exists and is not a search", fix="choose another folder")
        self.path.mkdir(parents=True, exist_ok=True)
        named = settings.model_copy(update={"study": f"{self.path.resolve().name}-{secrets.token_hex(4)}"})
        create_whole(file, json.dumps(named.model_dump(mode="json"), indent=1) + "\n")

    def _foreign(self) -> Iterator[Path]:
        """What the folder holds, except a file of settings that another controller is about to create."""
        return (path for path in self.path.iterdir() if not path.name.startswith(f".{NAME}."))

    @property
    def pace(self) -> Path:
        """Seconds per step of the recipe of the search, for trials of equal time."""
        return self.path / "pace.json"

    def run(self, number: int) -> Path:
        """Run directory of a trial."""
        return self.path / "trials" / str(number)

    def recipe(self, number: int) -> Path:
        """Recipe of a trial."""
        return self.path / "recipes" / f"{number}.yaml"

    def log(self, number: int) -> Path:
        """Output of the trainings of a trial."""
        return self.path / "logs" / f"{number}.log"

    def claim(self, number: int) -> Path:
        """Folder whose lock shows which controller has a trial."""
        return self.path / "claims" / str(number)


def parse_objectives(text: str) -> list[str]:
    """The objectives of `--objective geometric,time`.

    Raises:
        RamifyError: an unknown one, one that occurs twice, or the first is not the only error.
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in OBJECTIVES:
            listed = ", ".join(OBJECTIVES)
            raise RamifyError(f"--objective {text}: unknown {name!r}{nearest(name, OBJECTIVES)}; accepted: {listed}")
    if [name for name in names if name in ERRORS] != names[:1] or len(set(names)) < len(names):
        raise RamifyError(
            f"--objective {text}: the first must be {' or '.join(ERRORS)}, and each may occur once",
            fix=f"e.g. {GEOMETRIC},time",
        )
    return names


def _difference(key: str, old: Any, new: Any) -> str:
    """The first dotted keys in which two values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        inner = next(k for k in (*old, *new) if old.get(k) != new.get(k))
        return _difference(f"{key}.{inner}", old.get(inner), new.get(inner))
    return f"{key}: {old}, now {new}"
