"""Time of a training step by phase, measured at the boundaries of the phases."""

import time
from collections.abc import Callable
from typing import Any

import torch

from ramify.parallel.watchdog import Watchdog
from ramify.train.forward import Forward
from ramify.train.loop import Trainer
from ramify.train.optimization.product_rates import wait_for

PHASES = ("data", "edges", "encoder", "heads", "forces", "backward", "exchange", "clipping", "optimizer", "averages")
"""The phases in order. `data`: waiting for the loader; `edges`: vectors, distances, weights; `heads`: energies, and
direct forces; `forces`: conservative ones, the first derivative; `backward`: the loss and its derivative; `exchange`:
the remaining all-reduces; `clipping`: gradient norm and synchronisation of all ranks; `averages`: averages of the
weights. In a compiled step, `encoder` includes all that is compiled: edges and encoder, and with conservative forces
also heads and forces.
"""


class Phases:
    """Accumulates seconds by phase. It synchronises with the device at every boundary, which costs time, so steps are
    timed with and without it.

    Args:
        device: device of the trainer.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._last = time.perf_counter()

    def mark(self, phase: str) -> None:
        """Assigns the time since the last mark to `phase`."""
        wait_for(self._device)
        now = time.perf_counter()
        self._seconds[phase] += now - self._last
        self._last = now

    def begin(self) -> None:
        """Resets the times at the begin of a step."""
        wait_for(self._device)
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._last = time.perf_counter()

    def taken(self) -> dict[str, float]:
        """Seconds of every phase since `begin`."""
        return dict(self._seconds)

    def listen(self, trainer: Trainer) -> Callable[[], None]:
        """Adds marks at the boundaries of the phases of `trainer`; returns a function that removes them."""
        model, optimizer, gradients = trainer.model, trainer.optimizer, trainer.gradients
        kinds = {model.branch(name).forces for name in model.branches}
        last = "forces" if "conservative" in kinds else "heads"
        heads = [module for name in model.branches for module in model.branch(name).children()]
        handles: list[Any] = [
            # the next micro-batch begins when the backward pass of the last one has ended
            model.register_forward_pre_hook(lambda *_: self.mark("backward")),
            model.encoder.register_forward_pre_hook(lambda *_: self.mark("edges")),
            model.encoder.register_forward_hook(lambda *_: self.mark("encoder")),
            model.register_forward_hook(lambda *_: self.mark(last)),
            *(head.register_forward_hook(lambda *_: self.mark("heads")) for head in heads),
            optimizer.register_step_pre_hook(lambda *_: self.mark("clipping")),
            optimizer.register_step_post_hook(lambda *_: self.mark("optimizer")),
        ]
        norm, watchdog = gradients.squared_norm, trainer.watchdog

        def counted_norm() -> torch.Tensor:
            self.mark("exchange")
            return norm()

        setattr(gradients, "squared_norm", counted_norm)  # noqa: B010 - set on the instance, removed later
        trainer.watchdog = _Listener(self)
        unlisten = self._listen_to_program(trainer.forward, last) if trainer.recipe.train.compile != "none" else None

        def stop() -> None:
            if unlisten is not None:
                unlisten()
            for handle in handles:
                handle.remove()
            delattr(gradients, "squared_norm")
            trainer.watchdog = watchdog

        return stop

    def _listen_to_program(self, forward: Forward, last: str) -> Callable[[], None]:
        """Adds marks around a compiled model, whose modules are not called, and after its program."""
        compiled: Any = forward.predict
        program = compiled.program

        def counted_program(*given: Any) -> Any:
            found = program(*given)
            self.mark("encoder")
            return found

        def counted(*given: Any, **options: Any) -> Any:
            self.mark("backward")
            found = compiled(*given, **options)
            self.mark(last)
            return found

        compiled.program, forward.predict = counted_program, counted

        def unlisten() -> None:
            compiled.program, forward.predict = program, compiled

        return unlisten


class _Listener(Watchdog):
    """A watchdog that only marks the end of the backward pass."""

    def __init__(self, phases: Phases) -> None:
        super().__init__(0, 1, None, 1.0)
        self._phases = phases

    def arrive(self, place: str) -> None:
        """Called by the trainer when its backward pass has ended."""
        super().arrive(place)
        if place.startswith("the sums"):
            self._phases.mark("backward")
