"""Learning rate schedules, the same on every rank.

To add one, define a function, list it in `SCHEDULES` and add its name to the type of `schedule.kind`.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

from ramify.recipe import ScheduleOptions

Shape = Callable[[ScheduleOptions, float, float], float]
"""(options, progress from 0 to 1, current factor of `plateau`) -> factor of the learning rate after the warm-up."""


def cosine(options: ScheduleOptions, progress: float, lowered: float) -> float:
    """Cosine decay to `final` (Loshchilov & Hutter, arXiv:1608.03983)."""
    return options.final + (1 - options.final) * 0.5 * (1 + math.cos(math.pi * progress))


def plateau(options: ScheduleOptions, progress: float, lowered: float) -> float:
    """Reduced when the metric stops improving, see `Schedule.observe`."""
    return lowered


def constant(options: ScheduleOptions, progress: float, lowered: float) -> float:
    """Constant."""
    return 1.0


SCHEDULES: dict[str, Shape] = {"cosine": cosine, "plateau": plateau, "constant": constant}


@dataclass
class Schedule:
    """Learning rate of each step; a pure function of the step, except for the state of `plateau`.

    Attributes:
        factor: current factor of the learning rate (plateau).
        waited: number of evaluations since the best metric (plateau).
        best: best metric so far (plateau).
    """

    options: ScheduleOptions
    base: float
    total_steps: int
    factor: float = 1.0
    waited: int = 0
    best: float = math.inf

    def rate(self, step: int) -> float:
        """Learning rate of step `step` (from 0)."""
        o = self.options
        step, steps = max(0, step - o.start), self.total_steps - o.start
        warm = min(1.0, (step + 1) / o.warmup_steps) if o.warmup_steps else 1.0
        progress = min(1.0, step / max(1, steps))
        return self.base * warm * SCHEDULES[o.kind](o, progress, self.factor)

    def observe(self, metric: float) -> None:
        """Updates the state of plateau after an evaluation."""
        if SCHEDULES[self.options.kind] is not plateau:
            return
        if metric < self.best:
            self.best, self.waited = metric, 0
            return
        self.waited += 1
        if self.waited > self.options.patience:
            self.factor, self.waited = max(self.options.final, self.factor * self.options.factor), 0

    def state(self) -> dict[str, float]:
        """The state for checkpoints."""
        kept = asdict(self)
        return {key: kept[key] for key in ("factor", "waited", "best")}

    def restore(self, state: dict[str, float]) -> None:
        """Restores the result of `state`."""
        self.factor, self.waited, self.best = state["factor"], int(state["waited"]), state["best"]
