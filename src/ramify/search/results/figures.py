"""Figures of a search: history, rungs, importance of keys, parallel coordinates, costs, Pareto front."""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import create_trial

from ramify.report.svg import INK, MUTED, PALETTE, RULE, Canvas, Drawing, log_axis, plain
from ramify.search.rungs import pareto_front
from ramify.search.space import Key, Space
from ramify.search.trials import OBJECTIVES, Trial

WIDTH = 460
"""Width of a figure in half of the page, CSS pixels."""
RUNG_COLORS = tuple(PALETTE[i] for i in (5, 0, 2, 3, 6, 7))
"""Colours of trials by their last rung; orange is the best."""
UNUSED = -0.13
"""Position of a key that a trial does not have, below its axis, in parallel coordinates."""
FEW = 20
"""Trials below which importances are rough: they compare the best tenth with all."""


def history(trials: Sequence[Trial], rungs: int) -> Drawing:
    """The validation error of each trial at its last rung, in the order of sampling, and the best so far."""
    shown = [trial for trial in trials if trial.metric is not None]
    with Canvas(WIDTH, 250) as canvas:
        axes = canvas.axes()
        best: list[float] = []
        for trial in shown:
            best.append(min([*best[-1:], trial.metric or math.inf]))
        axes.step([t.number for t in shown], best, where="post", color=MUTED, linewidth=1.0)
        for rung in range(rungs):
            at = [(t.number, t.metric) for t in shown if len(t.results) == rung + 1]
            if at:
                axes.plot(*zip(*at, strict=True), "o", color=RUNG_COLORS[rung % len(RUNG_COLORS)], markersize=4.5)
        axes.set(xlabel="trial", ylabel="validation error")
        axes.locator_params(axis="x", integer=True)
        _scale(axes, "y", [trial.metric or 0.0 for trial in shown])
        return canvas.drawing(
            f"Validation error of {len(shown)} trials at their last rung; the lowest is {min(best):.4g}"
        )


def rung_curves(trials: Sequence[Trial], best: Sequence[int]) -> Drawing:
    """The validation error of each trial against the part of its training, one point for each rung."""
    shown = [trial for trial in trials if trial.results]
    with Canvas(WIDTH, 250) as canvas:
        axes = canvas.axes()
        for trial in shown:
            last = trial.state == "complete"
            color = PALETTE[1] if trial.number in best else PALETTE[0] if last else MUTED
            axes.plot(
                [100 * result.step / trial.steps for result in trial.results],
                [result.metric for result in trial.results],
                "o-",
                color=color,
                alpha=1.0 if last else 0.6,
                markersize=3.5,
                linewidth=1.4 if last else 0.9,
                zorder=3 if last else 2,
            )
        axes.set(xlabel="steps, % of the whole training", ylabel="validation error")
        _scale(axes, "y", [result.metric for trial in shown for result in trial.results])
        log_axis(axes, "x")
        return canvas.drawing(f"Validation error at each rung of {len(shown)} trials; those that continue are lines")


def importances(space: Space, trials: Sequence[Trial]) -> dict[str, float]:
    """Importance of each key for the validation error at the first rung, which all trials have; they add up to 1.

    PED-ANOVA (S. Watanabe et al., arXiv:2304.10255), by Optuna. Empty with fewer than four trials.
    """
    shown = [trial for trial in trials if trial.results]
    if len(shown) < 4:
        return {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    for trial in shown:
        own = space.distributions(trial.params)
        study.add_trial(create_trial(params=trial.params, distributions=own, value=trial.results[0].metric))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about few trials, which the page states itself
        found = optuna.importance.get_param_importances(study)
    searched = {key.name for key in space.keys if not key.distribution.single()}
    return {name: float(value) for name, value in found.items() if name in searched}


def importance_bars(found: Mapping[str, float]) -> Drawing:
    """Importances as bars, the largest on top."""
    names = list(found)[::-1]
    with Canvas(WIDTH, 46 + 21 * len(names)) as canvas:
        axes = canvas.axes()
        axes.barh(range(len(names)), [found[name] for name in names], color=PALETTE[0], height=0.62)
        axes.set_yticks(range(len(names)), names, color=INK)
        axes.set(xlabel="importance for the validation error at the first rung", xlim=(0, None))
        axes.grid(axis="y", visible=False)
        largest = names[-1] if names else "none"
        return canvas.drawing(f"Importance of {len(names)} keys; the most important is {largest}")


def parallel_coordinates(space: Space, trials: Sequence[Trial], best: Sequence[int]) -> Drawing:
    """One line for each trial over the axes of all keys and of the validation error."""
    shown = [trial for trial in trials if trial.results]
    keys = [key for key in space.keys if not key.distribution.single()]
    metrics = [trial.metric or 0.0 for trial in shown]
    low, high = min(metrics), max(metrics)
    with Canvas(max(700, 84 * (len(keys) + 1)), 300) as canvas:
        axes = canvas.axes()
        for at, key in enumerate(keys):
            _axis(axes, at, key)
        axes.plot([len(keys)] * 2, [0, 1], color=INK, linewidth=0.8)
        for y, value in ((0.0, low), (1.0, high)):
            axes.text(len(keys) + 0.05, y, f"{value:.3g}", va="center", color=INK)
        for trial in sorted(shown, key=lambda t: (len(t.results), -(t.metric or 0.0))):
            values = space.values(trial.params)
            heights = [height(key, values[key.name]) if key.name in values else UNUSED for key in keys]
            heights.append(((trial.metric or 0.0) - low) / ((high - low) or 1.0))
            last = trial.state == "complete"
            color = PALETTE[1] if trial.number in best else PALETTE[0] if last else MUTED
            axes.plot(
                heights,
                color=color,
                alpha=0.9 if last else 0.4,
                linewidth=1.6 if last else 0.9,
                zorder=3 if last else 2,
            )
        names = [*(key.name.replace(".", ".\u200b").rsplit(".", 1) for key in keys), ["validation", "error"]]
        axes.set_xticks(range(len(keys) + 1), ["\n".join(name) for name in names])
        axes.set(ylim=(-0.2, 1.08), xlim=(-0.25, len(keys) + 0.45), yticks=[])
        axes.grid(visible=False)
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
        return canvas.drawing(
            f"Values of {len(keys)} keys and the validation error of {len(shown)} trials, one line each"
        )


def costs(trials: Sequence[Trial], rungs: int) -> Drawing:
    """Training time of each trial, and the estimated rest of those that stopped at a rung."""
    shown = [trial for trial in trials if trial.results]
    unit, name = (3600.0, "hours") if max(t.processor_seconds for t in shown) > 5400 else (60.0, "minutes")
    with Canvas(WIDTH, 250) as canvas:
        axes = canvas.axes()
        for trial in shown:
            color, spent = RUNG_COLORS[(len(trial.results) - 1) % len(RUNG_COLORS)], trial.processor_seconds / unit
            axes.bar(trial.number, spent, color=color, width=0.75)
            axes.bar(trial.number, trial.saved_seconds / unit, bottom=spent, color="none", edgecolor=RULE, width=0.75)
        axes.set(xlabel="trial", ylabel=f"{name} of training")
        axes.locator_params(axis="x", integer=True)
        return canvas.drawing(f"Training time of {len(shown)} trials; outlines: estimated rest of those that stopped")


def pareto(trials: Sequence[Trial], objectives: Sequence[str], other: str) -> Drawing:
    """One objective against the validation error, with the Pareto front of both."""
    shown = [trial for trial in trials if trial.results]
    values = {t.number: t.objectives([other, objectives[0]]) for t in shown}
    with Canvas(WIDTH, 250) as canvas:
        axes = canvas.axes()
        front = sorted(values[number] for number in pareto_front(values))
        axes.step(*zip(*front, strict=True), where="post", color=PALETTE[1], linewidth=1.2)
        axes.plot(*zip(*values.values(), strict=True), "o", color=MUTED, markersize=4)
        axes.plot(*zip(*front, strict=True), "o", color=PALETTE[1], markersize=5)
        axes.set(xlabel=OBJECTIVES[other], ylabel="validation error")
        return canvas.drawing(
            f"{other} against the validation error of {len(shown)} trials; {len(front)} are on the Pareto front"
        )


def _axis(axes: Any, at: int, key: Key) -> None:
    """The axis of one key: its ends, or its choices."""
    axes.plot([at, at], [0, 1], color=INK, linewidth=0.8)
    if isinstance(key.distribution, CategoricalDistribution):
        ticks = [(choice, str(choice)) for choice in key.entry.choices or ()]
    else:
        assert isinstance(key.distribution, IntDistribution | FloatDistribution)
        ticks = [(value, plain(value)) for value in (key.distribution.low, key.distribution.high)]
    for value, text in ticks:
        axes.text(at + 0.05, height(key, value), text[:16], va="center", color=INK, zorder=4)


def height(key: Key, value: Any) -> float:
    """Position of a value on its axis, 0 to 1."""
    if key.entry.choices is not None:
        return key.entry.choices.index(value) / max(1, len(key.entry.choices) - 1)
    distribution = key.distribution
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    low, high = distribution.low, distribution.high
    if distribution.log:
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def _scale(axes: Any, which: Any, values: Sequence[float]) -> None:
    """A logarithmic axis where values differ by more than a factor of three."""
    if values and min(values) > 0 and max(values) > 3 * min(values):
        log_axis(axes, which)
