"""`search.html`: the result of a search as one self-contained file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ramify.files import write_whole
from ramify.report.page import clock, environment, made_with
from ramify.report.svg import Drawing
from ramify.search.results import figures
from ramify.search.rungs import best_trials
from ramify.search.settings import SearchFolder, Settings
from ramify.search.space import Space
from ramify.search.trials import OBJECTIVES, Trial

NAME = "search.html"
MANY = 20
"""Values of a range from which one at its edge is no chance."""


@dataclass(frozen=True)
class KeyRow:
    """One key of the space: as written, with the value of the best trial and that of the recipe."""

    name: str
    written: str
    best: str
    recipe: str


def write_page(folder: SearchFolder, settings: Settings, space: Space, trials: Sequence[Trial]) -> Path:
    """Writes search.html into the folder of a search and returns its path."""
    path = folder.path / NAME
    write_whole(path, page(folder.path, settings, space, trials))
    return path


def page(path: Path, settings: Settings, space: Space, trials: Sequence[Trial]) -> str:
    """The page as text."""
    best = best_trials(trials, settings.objectives)
    recipe = path / "best.yaml"
    pages = environment("ramify.search.results")
    return pages.get_template("search.html.j2").render(
        name=path.resolve().name,
        path=path,
        settings=settings,
        verdict=verdict(settings, trials, best),
        facts=facts(trials),
        notes=notes(settings, space, trials, best),
        keys=[_key_row(space, key.name, best) for key in space.keys],
        best=best,
        values={trial.number: values_text(space.values(trial.params)) for trial in trials},
        objectives=settings.objectives,
        meanings=OBJECTIVES,
        drawings=_drawings(settings, space, trials, best),
        palette=figures.RUNG_COLORS,
        trials=sorted(trials, key=lambda t: (-len(t.results), t.metric if t.metric is not None else 0.0, t.number)),
        space_text=yaml.safe_dump(settings.space, sort_keys=False),
        recipe_text=recipe.read_text(encoding="utf-8") if recipe.exists() else "",
        versions=made_with("optuna"),
    )


def verdict(settings: Settings, trials: Sequence[Trial], best: Sequence[Trial]) -> str:
    """One or two sentences on the result."""
    if not best:
        return "No trial has a result yet."
    tried = sum(1 for trial in trials if trial.results)
    spent = sum(trial.processor_seconds for trial in trials)
    saved = sum(trial.saved_seconds for trial in trials)
    if len(settings.objectives) > 1:
        text = f"{len(best)} of {tried} trials are on the Pareto front of {', '.join(settings.objectives)}."
    else:
        text = f"Trial {best[0].number} has the lowest validation error of {tried} trials: {best[0].metric:.4g}."
    if saved:
        share = 100 * saved / (spent + saved)
        text += f" Rungs saved about {share:.0f} % of the training time of {tried} whole trainings."
    if settings.equal == "time":
        text += " Each trial has as many steps as fit into the training time of the search's recipe."
    return text


def facts(trials: Sequence[Trial]) -> list[tuple[str, str]]:
    """The key numbers at the top: label and value."""
    counts = {
        state: sum(trial.state == state for trial in trials) for state in ("complete", "paused", "failed", "refused")
    }
    found = [
        ("trials", str(sum(bool(trial.results) for trial in trials))),
        ("trained to the end", str(counts["complete"])),
        ("stopped at a rung", str(counts["paused"])),
    ]
    found += [(state, str(counts[state])) for state in ("failed", "refused") if counts[state]]
    found.append(("training time", clock(sum(trial.processor_seconds for trial in trials))))
    if saved := sum(trial.saved_seconds for trial in trials):
        found.append(("saved by rungs", f"≈ {clock(saved)}"))
    return found


def notes(settings: Settings, space: Space, trials: Sequence[Trial], best: Sequence[Trial]) -> list[str]:
    """Warnings about the result."""
    found = []
    if best and len(best[0].results) < settings.rungs:
        found.append("No trial has been trained to its last step yet; the values are those at an earlier rung.")
    if (tried := sum(bool(trial.results) for trial in trials)) < figures.FEW:
        found.append(f"{tried} trials say little about the importance of {len(space.keys)} keys.")
    edges = [name for name in (_at_edge(space, trial) for trial in best[:1]) if name]
    if edges:
        found.append(f"The best values of {edges[0]} are at the edge of their range: a wider range may be better.")
    return found


def _drawings(
    settings: Settings, space: Space, trials: Sequence[Trial], best: Sequence[Trial]
) -> dict[str, list[tuple[str, Drawing]]]:
    """Figures with captions, by section."""
    if not best:
        return {}
    numbers = [trial.number for trial in best]
    importances = figures.importances(space, trials)
    return {
        "history": [
            ("Metric of each trial; line: best so far", figures.history(trials, settings.rungs)),
            ("Rungs", figures.rung_curves(trials, numbers)),
        ],
        "parallel": [("", figures.parallel_coordinates(space, trials, numbers))],
        "importance": [("", figures.importance_bars(importances))] if importances else [],
        "cost": [("Training time of each trial", figures.costs(trials, settings.rungs))],
        "pareto": [
            (f"{name}: {OBJECTIVES[name]}", figures.pareto(trials, settings.objectives, name))
            for name in settings.objectives[1:]
        ],
    }


def _key_row(space: Space, name: str, best: Sequence[Trial]) -> KeyRow:
    written = (
        yaml.safe_dump(space.content[name], default_flow_style=True, sort_keys=False, width=1000)
        .strip()
        .removesuffix("...")
    )
    value = space.values(best[0].params).get(name, "—") if best else "—"
    known: Any = space.recipe
    for part in name.split("."):
        known = known.get(part, "—") if isinstance(known, dict) else "—"
    return KeyRow(name, written.strip(), _value(value), _value(known))


def values_text(values: Mapping[str, Any]) -> str:
    """Values of a trial in one line, by the last part of each key, or by the last two where they are equal."""
    ends = [name.rsplit(".", 1)[-1] for name in values]
    parts = []
    for name, end in zip(values, ends, strict=True):
        shown = end if ends.count(end) == 1 else ".".join(name.rsplit(".", 2)[-2:])
        parts.append(f"{shown} {_value(values[name])}")
    return ", ".join(parts)


def _at_edge(space: Space, trial: Trial) -> str:
    """Keys whose value is within 3 % of an end of its range; ranges of few values have it by chance."""
    found = []
    values = space.values(trial.params)
    for key in space.keys:
        few = len(key.grid() or range(MANY)) < MANY
        if key.entry.choices is None and key.name in values and not few:
            height = figures.height(key, values[key.name])
            if height < 0.03 or height > 0.97:
                found.append(key.name)
    return ", ".join(found)


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
