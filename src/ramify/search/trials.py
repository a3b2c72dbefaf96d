"""The trials of a search: values, state, and the results at the rungs that they reached."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal["active", "paused", "complete", "failed", "refused"]
"""active: to be trained to its target rung; paused: at a rung, its checkpoint is kept; complete: trained to the last
rung; failed: ended with an error; refused: never started, because a plan says that it does not fit into memory."""

Equal = Literal["passes", "time"]
EQUAL: tuple[Equal, ...] = ("passes", "time")
"""What all trials have in common: the length that the recipe states, or the training time of the recipe."""

GEOMETRIC, METRIC, TIME, MEMORY = "geometric", "metric", "time", "memory"
ERRORS = (GEOMETRIC, METRIC)
"""The first objective is one of these."""
OBJECTIVES = {
    GEOMETRIC: "geometric mean of error / trivial error over datasets and labels of the validation splits, the lowest "
    "so far",
    METRIC: "validation metric of the run, the arithmetic mean of the same, the lowest so far",
    TIME: "seconds of training per step, evaluations included",
    MEMORY: "GB of the rank with most memory, by the plan",
}
"""What a search can minimise."""


@dataclass(frozen=True, slots=True)
class RungResult:
    """The result of a trial at one rung.

    Attributes:
        step: steps done.
        metric: lowest value of the first objective, an error on the validation splits, up to here.
        seconds: training time up to here.
        ranks: number of processes of the last session.
    """

    step: int
    metric: float
    seconds: float
    ranks: int = 1


@dataclass(frozen=True)
class Trial:
    """One trial.

    Attributes:
        number: from 0.
        params: values of the space for Optuna.
        state: see `State`.
        steps: of the whole run.
        results: at rungs 0, 1, ...
        target: rung to which the trial is or was trained last.
        memory: GB of the fullest rank by the plan; None if it was not planned.
        reason: why it failed or was refused.
        attempts: number of sessions that ended without a result, since the last one that had a result.
        system_attrs: of Optuna.
    """

    number: int
    params: dict[str, Any]
    state: State
    steps: int
    results: tuple[RungResult, ...] = ()
    target: int = 0
    memory: float | None = None
    reason: str = ""
    attempts: int = 0
    system_attrs: dict[str, Any] = field(default_factory=dict)

    @property
    def metric(self) -> float | None:
        """At the last rung reached; None before the first."""
        return self.results[-1].metric if self.results else None

    @property
    def seconds(self) -> float:
        """Training time up to the last rung reached."""
        return self.results[-1].seconds if self.results else 0.0

    @property
    def processor_seconds(self) -> float:
        """Training time multiplied by the number of processes."""
        return self.seconds * (self.results[-1].ranks if self.results else 1)

    @property
    def saved_seconds(self) -> float:
        """Estimated processor time that the trial would need from its last rung to its last step."""
        if self.state != "paused" or not self.results[-1].step:
            return 0.0
        return self.processor_seconds * (self.steps - self.results[-1].step) / self.results[-1].step

    def objectives(self, names: Sequence[str], rung: int = -1) -> tuple[float, ...]:
        """Values to minimise at a rung that the trial has reached, by default the last."""
        result = self.results[rung]
        values: Mapping[str, float] = {
            GEOMETRIC: result.metric,
            METRIC: result.metric,
            TIME: result.seconds / max(1, result.step),
            MEMORY: self.memory or 0.0,
        }
        return tuple(values[name] for name in names)
