"""The three machines of the paper, with their published specifications.

Unpublished quantities are assumed: products in float32 reach 40 % of the peak (as `parallel.machine` assumes),
memory 75 % of its own, a kernel launch takes 5 µs, a step of the paper's encoder has 2400 of them and a branch 400
(operators that PyTorch dispatches forward and backward on the model, without views), a message takes 10 µs from one
rank to the next. For better predictions, measure on the machine (`ramify bench scale`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ramify.bench.predict.speed import CALIBRATION, Speed, fit_network, fit_speed
from ramify.errors import RamifyError, nearest
from ramify.recipe import MachineOptions

LAUNCH = 5e-6
ENCODER_KERNELS, BRANCH_KERNELS = 2400, 400
UPDATED_BYTES = 40
"""Bytes read and written per parameter, 4 each: by AdamW (reads weight, gradient and two moments; writes all but the
gradient) and by the averaged weights (reads average and weight; writes the average)."""


@dataclass(frozen=True)
class Machine:
    """A machine that step times are predicted for.

    Attributes:
        name: name of the machine.
        speed: speed of one rank.
        network: network between ranks.
        source: source of these values.
    """

    name: str
    speed: Speed
    network: MachineOptions
    source: str

    def to_data(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "network": self.network.model_dump(mode="json")}


def _stated(name: str, peak: float, memory: float, bandwidth: float, source: str) -> Machine:
    """A machine from TFLOP/s, memory bandwidth in bytes/s, and network bandwidth per rank in GB/s with all ranks
    sending."""
    speed = Speed(
        step=ENCODER_KERNELS * LAUNCH,
        branch=BRANCH_KERNELS * LAUNCH,
        operation=1.0 / (0.4 * peak * 1e12),
        parameter=UPDATED_BYTES / (0.75 * memory),
        asynchronous=True,
    )
    return Machine(name, speed, MachineOptions(tflops=0.4 * peak, bandwidth=bandwidth, latency=10.0), source)


STATED: Mapping[str, Machine] = {
    machine.name: machine
    for machine in (
        _stated("frontier", 23.9, 1.6e12, 12.5, "MI250X, one GCD: 23.9 TFLOP/s, 1.6 TB/s; 4 x 25 GB/s per 8 GCDs"),
        _stated("perlmutter", 19.5, 1.555e12, 25.0, "A100: 19.5 TFLOP/s without TF32, 1.555 TB/s; 4 x 25 GB/s per 4"),
        _stated("aurora", 22.9, 1.6e12, 16.7, "Max 1550, one tile: 22.9 TFLOP/s, 1.6 TB/s; 8 x 25 GB/s per 12 tiles"),
    )
}


def measured_machine(content: Mapping[str, Any], network: MachineOptions | None) -> Machine:
    """The machine of a measured sweep: its speed, and the network as stated or as measured on the most ranks."""
    several = [case for case in content["cases"] if case["ranks"] > 1 and case["mode"] != CALIBRATION]
    if network is None and not several:
        raise RamifyError(
            "no case on several ranks was measured, so the network is not known", fix="state it: --network"
        )
    found = network or fit_network(most_ranks(several))
    name = content["cases"][0]["device"]
    return Machine(name, fit_speed(content["cases"]), found, "measured" if network is None else "network stated")


def most_ranks(cases: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The cases with the largest number of ranks."""
    most = max(case["ranks"] for case in cases)
    return [case for case in cases if case["ranks"] == most]


def find_machine(name: str) -> Machine:
    """One of `STATED`.

    Raises:
        RamifyError: there is no such machine.
    """
    if name not in STATED:
        raise RamifyError(
            f"--machine {name}: no such machine{nearest(name, STATED)}; accepted: here, {', '.join(STATED)}"
        )
    return STATED[name]
