"""Errors of the cost model, from measurements.

The model is fitted to the cases on one rank and to the all-reduces timed with the cases on several ranks; it is checked
against all other cases.
"""

from collections.abc import Mapping
from typing import Any

from ramify.bench.predict.speed import CALIBRATION, fit_network, fit_speed, load_of_row, slowdown, step_seconds
from ramify.recipe import MachineOptions

KEY = ("mode", "placement", "ranks", "branches", "batch")
"""Keys that identify a case."""
ITEMSIZE = {"fp32": 4, "bf16": 4, "tf32": 4, "fp64": 8}
"""Bytes of a weight by `train.precision`."""


def check(content: Mapping[str, Any]) -> dict[str, Any]:
    """The cost model fitted to a measured sweep, and its errors in the cases that it was not fitted to.

    Returns:
        `speed` of one rank; `checked`: for every case on several ranks the measured and predicted time, and the assumed
        network and slowdown; `largest_error`: largest relative error of these (None if there are none).
    """
    cases = content["cases"]
    speed = fit_speed(cases)
    checked = []
    for case in cases:
        if case["ranks"] == 1 and case["mode"] != CALIBRATION:
            found, network, slow = speed, MachineOptions(), (1.0, 1.0)
        elif case["ranks"] > 1:
            network = fit_network([other for other in cases if other["ranks"] == case["ranks"]])
            slow = slowdown(case["ranks"], cases)
            found = speed.slowed(*slow)
        else:
            continue
        itemsize = ITEMSIZE[case["precision"]]
        loads = [load_of_row(row, case["rows"], itemsize) for row in case["rows"]]
        predicted = step_seconds(loads, found, network)
        checked.append(
            {
                **{key: case[key] for key in KEY},
                "measured": case["seconds"],
                "predicted": predicted,
                "error": predicted / case["seconds"] - 1.0,
                "slower": {"products": slow[0], "copies": slow[1]},
                "network": {"latency_us": network.latency, "bandwidth_gb": network.bandwidth},
            }
        )
    return {
        "speed": {name: getattr(speed, name) for name in ("step", "branch", "operation", "parameter")},
        "checked": checked,
        "largest_error": max((abs(row["error"]) for row in checked), default=None),
    }
