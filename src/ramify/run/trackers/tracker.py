"""The interface of a tracker, and the curves that all of them show."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from ramify.recipe import Recipe

Ending = Literal["finished", "stopped", "failed"]


class Tracker(Protocol):
    """A run in a tracker. `id` identifies it there; None if the folder of the run does."""

    @property
    def id(self) -> str | None: ...

    def add(self, entry: Mapping[str, Any]) -> None:
        """Writes the numbers of one line of metrics.jsonl."""

    def tables(self, split: str, step: int, errors: Mapping[str, float], markdown: str) -> None:
        """Writes the errors on a split: numbers by `DATASET/ERROR`, and the tables of the run."""

    def close(self, ended: Ending) -> None:
        """Writes all data and ends the session."""


class Opening(Protocol):
    """Opens a tracker for a run.

    Args of a call:
        folder: the run directory.
        recipe: of the run.
        known: the identifier of the run from an earlier session.
        step: where the session begins; None to add tables to a run without training it.

    Raises any exception if the tracker cannot be used.
    """

    def __call__(self, folder: Path, recipe: Recipe, known: str | None, step: int | None) -> Tracker: ...


def curves(entry: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of metrics.jsonl, by their paths with `/`."""
    return {f"{entry['kind']}/{tag}": value for tag, value in _numbers(entry)}


def _numbers(entry: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for key, value in entry.items():
        if isinstance(value, dict):
            found += _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and key not in ("step", "time"):
            found.append((prefix + key, float(value)))
    return found
