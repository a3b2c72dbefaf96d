"""The cost of every model of a study: time, steps, parameters, memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from ramify.run.sessions import Sessions
from ramify.study.results.tables import Trained


@dataclass(frozen=True)
class Cost:
    """Means over the seeds of one model; None where the runs do not state it.

    Attributes:
        seconds: of training.
        steps: optimizer steps.
        epochs: passes over its own data.
        parameters: of the model.
        memory: bytes, largest main memory of the training process.
        device_memory: bytes, largest memory of its accelerator.
        ranks: processes.
    """

    model: str
    seconds: float | None
    steps: float | None
    epochs: float | None
    parameters: int | None
    memory: float | None
    device_memory: float | None
    ranks: int


def costs_of(runs: Sequence[Trained]) -> list[Cost]:
    """The cost of each model, in the order of the tables."""
    by_model: dict[str, list[Trained]] = {}
    for run in runs:
        by_model.setdefault(run.task.model, []).append(run)
    return [_cost(model, found) for model, found in by_model.items()]


def _cost(model: str, runs: Sequence[Trained]) -> Cost:
    histories = [[*run.results.train, *run.results.val] for run in runs]
    sessions = [line for run in runs for line in Sessions(run.results.path).lines()]
    parameters = runs[0].results.evaluation.model.get("parameters")

    def mean(key: str) -> float | None:
        values = [max(entry.get(key, 0.0) for entry in entries) for entries in histories if entries]
        return fmean(values) if values else None

    def largest(key: str) -> float | None:
        return max((float(line[key]) for line in sessions if line.get(key)), default=None)

    return Cost(
        model=model,
        seconds=mean("time"),
        steps=mean("step"),
        epochs=mean("epoch"),
        parameters=parameters if isinstance(parameters, int) else None,
        memory=largest("memory"),
        device_memory=largest("device_memory"),
        ranks=int(largest("ranks") or 1),
    )
