"""Machines whose steps can be predicted without having them: the paper's three, from their published figures.

Each assumes what no publication states: products in float32 reach 40 % of the peak (as `parallel.machine` assumes),
memory 75 % of its own, a kernel is launched every 5 µs, a step of the paper's encoder takes 2400 of them and a branch
400 (operators that PyTorch dispatches forward and backward on the model, without views), a message takes 10 µs from one
rank to the next. Better figures: measure on the machine (`ramify bench scale`) and predict from that.
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
"""Read and written per parameter by AdamW (weight, gradient, two averages; all but the gradient come back) and by the
averaged weights (itself and the weight; itself comes back), 4 bytes each."""


@dataclass(frozen=True)
class Machine:
    """What a prediction is made for.

    Attributes:
        name: of it.
        speed: of one rank.
        network: between ranks.
        source: where these are from.
    """

    name: str
    speed: Speed
    network: MachineOptions
    source: str

    def to_data(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "network": self.network.model_dump(mode="json")}


def _stated(name: str, peak: float, memory: float, bandwidth: float, source: str) -> Machine:
    """From TFLOP/s, bytes per second of memory, and GB/s that one rank sends while all do."""
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
    """The machine that a sweep was measured on: its speed, and the network as stated or as measured on most ranks."""
    several = [case for case in content["cases"] if case["ranks"] > 1 and case["mode"] != CALIBRATION]
    if network is None and not several:
        raise RamifyError(
            "no case on several ranks was measured, so the network is not known", fix="state it: --network"
        )
    found = network or fit_network(most_ranks(several))
    name = content["cases"][0]["device"]
    return Machine(name, fit_speed(content["cases"]), found, "measured" if network is None else "network stated")


def most_ranks(cases: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those of the cases that ran on as many ranks as any."""
    most = max(case["ranks"] for case in cases)
    return [case for case in cases if case["ranks"] == most]


def find_machine(name: str) -> Machine:
    """One of `STATED`.

    Raises:
        RamifyError: no machine is called so.
    """
    if name not in STATED:
        raise RamifyError(
            f"--machine {name}: no such machine{nearest(name, STATED)}; accepted: here, {', '.join(STATED)}"
        )
    return STATED[name]
