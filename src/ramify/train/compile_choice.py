"""`train.compile: auto`: plain or compiled steps, whichever complete the rest of the run earlier.

A session begins with plain steps. If the gain expected for the remaining steps exceeds the time of the compilation,
the step is compiled; then plain and compiled steps alternate, and the faster ones are taken from then on. All ranks
exchange their measurements after the same steps and choose alike. Both kinds give the same numbers within rounding.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from time import perf_counter
from typing import Any

from ramify.batches.batch import Batch
from ramify.batches.loader import StepBatches
from ramify.batches.padding import PaddedBatch, Padding
from ramify.errors import RamifyError
from ramify.model.multibranch import BatchPredictions, MultiBranch
from ramify.parallel.layout import Layout
from ramify.train.compile_cache import ProgramCache, ProgramCost
from ramify.train.optimization.product_rates import wait_for

WARMUP, PLAIN, PAIRS = 2, 6, 8
"""Steps at the start of a session: not measured; plain and measured; pairs of a compiled and a plain step."""
STEPS = WARMUP + PLAIN + 2 * PAIRS
"""Steps until the choice is final."""

TYPICAL = ProgramCost(compile=200.0, ratio=0.85)
"""Assumed where nothing has been measured: seconds of a compilation, and time of a compiled step divided by that of a
plain one (the recipe `five` on a CPU, docs/step.md)."""
LOAD = 0.25
"""Assumed time to load a program from the cache, divided by that of its compilation."""

Predict = Callable[..., BatchPredictions]


class CompileChoice:
    """Chooses between a plain and a compiled model while a session runs.

    Args:
        plain: the model.
        compiled: the same, compiled when it is first called.
        padding: for batches of the compiled model.
        layout: of this rank.
        cache: of the compiled program.
        note: called with one line per decision.
        obstacle: why there can be no compiled steps on this rank; empty if there can.
    """

    def __init__(
        self,
        plain: MultiBranch,
        compiled: Predict,
        padding: Padding,
        layout: Layout,
        cache: ProgramCache,
        note: Callable[[str], None],
        obstacle: str = "",
    ) -> None:
        self._plain, self._compiled, self._padding = plain, compiled, padding
        self._layout, self._cache, self._note, self._obstacle = layout, cache, note, obstacle
        self._taken = 0
        self._compiles, self._final = False, False
        self._is_compiled = self._was_compiled = False  # the program; in this step
        self._steps: dict[bool, list[tuple[float, int]]] = {False: [], True: []}  # (seconds, edges); True: compiled

    def predict(self, batch: Batch, *, stress: bool = False) -> BatchPredictions:
        """Predictions by the model that was chosen."""
        if self._compiles and isinstance(batch, PaddedBatch) and not self._obstacle:
            if self._final:
                return self._compiled(batch, stress=stress)
            self._was_compiled |= not self._is_compiled
            self._is_compiled = True
            try:
                return self._compiled(batch, stress=stress)
            except RamifyError as error:
                self._obstacle = str(error).splitlines()[0]
        return self._plain(batch, stress=stress)

    def pad(self, batch: Batch, number: int) -> Batch:
        """Pads the batches of compiled steps.

        Args:
            batch: to pad.
            number: of its step in this session, from 0.
        """
        alternating = number < STEPS and (number - WARMUP - PLAIN) % 2 == 1
        if number < WARMUP + PLAIN or alternating or (self._final and not self._compiles):
            return batch
        return self._padding(batch)

    @contextmanager
    def measured(self, work: StepBatches, remaining: int) -> Iterator[None]:
        """One step, measured until the choice is final.

        Args:
            work: of the step.
            remaining: steps of the run, with this one.
        """
        if self._taken == 0 and remaining <= STEPS:
            self._end(f"plain steps: only {remaining} remain", compiles=False)
        if self._final:
            yield
            return
        self._was_compiled = False
        wait_for(self._layout.device)
        began = perf_counter()
        yield
        wait_for(self._layout.device)
        self._taken += 1
        edges = sum(len(batch.receiver) for batch in work.batches)
        if self._taken > WARMUP and edges and not self._was_compiled:
            padded = isinstance(work.batches[0], PaddedBatch)
            self._steps[padded].append((perf_counter() - began, edges))
        if self._taken == WARMUP + PLAIN:
            self._consider(remaining - 1)
        elif self._taken == STEPS:
            self._compare()

    def _consider(self, remaining: int) -> None:
        """Decides whether to compile, from the expected gain."""
        cost, similar = self._cache.cost(), self._cache.similar()
        own = {
            "obstacle": self._obstacle,
            "seconds": median([seconds for seconds, _ in self._steps[False]] or [0.0]),
            "cost": _time_to_load(cost) or similar.compile or TYPICAL.compile,
            "ratio": cost.ratio or similar.ratio or TYPICAL.ratio,
            "source": "cached" if cost.compile else "estimated from another model" if similar.compile else "typical",
        }
        everyone = self._layout.gather(own)
        if text := _obstacles(everyone):
            self._end(f"plain steps: {text}", compiles=False)
            return
        slowest = max(everyone, key=lambda rank: rank["cost"])
        ratio = max(rank["ratio"] for rank in everyone)
        gain = remaining * max(rank["seconds"] for rank in everyone) * (1.0 - ratio)
        text = f"about {slowest['cost']:.0f} s ({slowest['source']})"
        if gain < slowest["cost"]:
            why = f"compilation would take {text} and save about {max(0.0, gain):.0f} s in {remaining:,} further steps"
            self._end(f"plain steps: {why}", compiles=False)
            return
        self._compiles = True
        self._say(f"the next step is compiled, which takes {text}, to save about {gain:.0f} s in {remaining:,} steps")

    def _compare(self) -> None:
        """Decides from the measured steps."""
        plain, compiled = (self._seconds_per_edge(kind) for kind in (False, True))
        own = {"obstacle": self._obstacle, "ratio": compiled / plain if compiled and plain else None}
        everyone = self._layout.gather(own)
        ratios = [rank["ratio"] for rank in everyone if rank["ratio"]]
        text = _obstacles(everyone)
        if text or not ratios:
            self._end(f"plain steps: {text or 'compiled ones could not be measured'}", compiles=False)
            return
        ratio = max(ratios)
        self._cache.note(ratio=ratio)
        faster = ratio < 1.0
        kind = "compiled" if faster else "plain"
        self._end(
            f"{kind} steps: compiled ones take {ratio:.2f} of the time of plain ones, measured in {PAIRS} alternating "
            "pairs",
            compiles=faster,
        )

    def _seconds_per_edge(self, compiled: bool) -> float | None:
        """The median of the compiled or of the plain steps, of which no two have the same edges."""
        return median([seconds / edges for seconds, edges in self._steps[compiled]] or [0.0]) or None

    def _end(self, text: str, *, compiles: bool) -> None:
        self._compiles, self._final = compiles, True
        self._say(text)

    def _say(self, text: str) -> None:
        if self._layout.is_rank_zero:
            self._note(f"train.compile: auto: {text}")


def _time_to_load(cost: ProgramCost) -> float | None:
    """Seconds until a program of the cache is loaded; None where it is not in the cache."""
    return cost.load or (LOAD * cost.compile if cost.compile else None)


def _obstacles(everyone: Sequence[dict[str, Any]]) -> str:
    """Why a rank has no compiled steps; empty if all have them."""
    return next((rank["obstacle"] for rank in everyone if rank["obstacle"]), "")
