"""A step profiled by `torch.profiler`: a trace for a viewer, and the most expensive operations."""

from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

from ramify.train.loop import Trainer
from ramify.train.optimization.product_rates import wait_for

MOST_EXPENSIVE = 10
"""Number of listed operations."""


def profile_step(trainer: Trainer, trace: Path) -> list[dict[str, Any]]:
    """Takes one step and writes its trace, to be opened in chrome://tracing or ui.perfetto.dev.

    Returns:
        The `MOST_EXPENSIVE` operations, separately for each set of tensor shapes: name, shapes, calls, own seconds, and
        their fraction of the total.
    """
    kinds = [ProfilerActivity.CPU]
    device = trainer.layout.device
    if device.type != "cpu":
        kinds.append(ProfilerActivity[device.type.upper()])
    with trainer.loader() as loader:
        work = next(loader)
        with profile(activities=kinds, record_shapes=True) as found:
            trainer.step(work)
            wait_for(device)
    found.export_chrome_trace(str(trace))
    events = found.key_averages(group_by_input_shape=True)

    def own(event: Any) -> float:
        return float(event.self_cpu_time_total if device.type == "cpu" else event.self_device_time_total)

    whole = sum(own(event) for event in events)
    most_expensive = sorted(events, key=own, reverse=True)[:MOST_EXPENSIVE]
    return [
        {
            "operation": event.key,
            "shapes": [shape for shape in event.input_shapes if shape],
            "calls": event.count,
            "seconds": own(event) / 1e6,
            "share": own(event) / whole,
        }
        for event in most_expensive
    ]
