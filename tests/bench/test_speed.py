"""The cost model finds the numbers that measurements were made from, and predicts by its stated equation."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramify.bench.predict.check import check
from ramify.bench.predict.speed import CALIBRATION, Load, Speed, fit_network, fit_speed, rank_seconds, step_seconds
from ramify.errors import RamifyError
from ramify.recipe import MachineOptions

PARAMETERS = 1000.0
LIMITS = {"flops": 1e10, "copied": 1e9, "all_reduce": []}


def row(operations: float, segments: float, update: float, **more: Any) -> dict[str, Any]:
    """One measured rank."""
    resident = {"weights": 4 * PARAMETERS, "gradients": 4 * PARAMETERS}
    own = {"operations": operations, "segments": segments, "update": update, "parameters": PARAMETERS, "traffic": {}}
    return {**own, "resident": resident, "limits": LIMITS, "branches": ["a"], **more}


def case(seconds: float, rows: list[dict[str, Any]], mode: str = CALIBRATION, batch: int = 1) -> dict[str, Any]:
    """One measured case."""
    about = {"mode": mode, "placement": "replicated", "ranks": len(rows), "branches": 1, "batch": batch}
    return {**about, "seconds": seconds, "rows": rows, "device": "cpu", "precision": "fp32"}


def calibration(speed: Speed) -> list[dict[str, Any]]:
    """Four cases on a rank of this speed."""
    cases = []
    for segments in (1, 6):
        for batch in (6, 12):
            operations, update = 1e9 * batch, speed.parameter * PARAMETERS
            seconds = speed.step + speed.branch * segments + speed.operation * operations + update
            cases.append(case(seconds, [row(operations, segments, update)], batch=batch))
    return cases


speeds = st.builds(
    Speed,
    step=st.floats(0, 0.1),
    branch=st.floats(0, 0.1),
    operation=st.floats(1e-12, 1e-9),
    parameter=st.floats(1e-12, 1e-8),
)


@settings(max_examples=50, deadline=None)
@given(speeds)
def test_the_fit_finds_what_the_cases_were_made_from(speed: Speed) -> None:
    found = fit_speed(calibration(speed))
    for segments, operations in ((1, 6e9), (3, 1e9), (64, 2e10)):
        load = Load(operations, segments, PARAMETERS, ())
        assert rank_seconds(load, found, MachineOptions()) == pytest.approx(
            rank_seconds(load, speed, MachineOptions()), rel=1e-3
        )


def test_no_coefficient_is_negative() -> None:
    """A branch that seems to save time is noise."""
    cases = calibration(Speed(0.01, 0.0, 1e-10, 1e-9))
    for one in cases:
        one["seconds"] -= 0.001 * one["rows"][0]["segments"]
    found = fit_speed(cases)
    assert found.branch == 0.0
    assert min(found.step, found.operation, found.parameter) >= 0.0


def test_too_few_cases_are_refused() -> None:
    with pytest.raises(RamifyError, match="at least three cases on one rank"):
        fit_speed(calibration(Speed(0.01, 0.0, 1e-10, 1e-9))[:2])


@pytest.mark.parametrize("ranks", [2, 8])
def test_network_is_found(ranks: int) -> None:
    """From sums that take 2 log2(g) α + 2 (g - 1)/g b/β, on the rank that they take longest on."""
    sums = [(size, 2 * math.log2(ranks) * 30e-6 + 2 * (ranks - 1) / ranks * size / 2e9) for size in (1e3, 1e6, 1e8)]
    limits = LIMITS | {"all_reduce": sums}
    faster = LIMITS | {"all_reduce": [(size, 0.5 * seconds) for size, seconds in sums]}
    usual = case(1.0, [row(1, 1, 1, limits=limits), *[row(1, 1, 1, limits=faster)] * (ranks - 1)])
    disturbed = case(
        1.0, [row(1, 1, 1, limits=LIMITS | {"all_reduce": [(size, 0.1 + 3 * s) for size, s in sums]})] * ranks
    )
    found = fit_network([usual, disturbed, usual])
    assert found.latency == pytest.approx(30.0, rel=1e-6)
    assert found.bandwidth == pytest.approx(2.0, rel=1e-6)


def test_an_accelerator_hides_messages_behind_the_backward_pass() -> None:
    """Two thirds of the compute; a CPU hides none. The slowest rank sets the pace."""
    network = MachineOptions(latency=0.0, bandwidth=1.0)
    load = Load(1e9, 2, 0, ((1e9, 2),))  # 1 s of messages
    cpu, gpu = Speed(0.1, 0.2, 1.2e-9, 0.0), Speed(0.1, 0.2, 1.2e-9, 0.0, asynchronous=True)
    assert rank_seconds(load, cpu, network) == pytest.approx(0.1 + 0.4 + 1.2 + 1.0)
    assert rank_seconds(load, gpu, network) == pytest.approx(1.2 + (1.0 - 0.8))
    assert rank_seconds(Load(0.0, 2, 0, ()), gpu, network) == pytest.approx(0.5)
    assert step_seconds([load, Load(1e10, 2, 0, ())], gpu, network) == pytest.approx(12.0)


def test_check_compares_with_cases_on_several_ranks() -> None:
    """Ranks slowed to half; the encoder's message over both, that of the one branch over its one host is none."""
    speed = Speed(0.01, 0.005, 1e-10, 1e-9)
    sums = [(size, 2 * 10e-6 + size / 1e9) for size in (1e3, 1e6, 1e8)]
    limits = {"flops": 0.5e10, "copied": 0.5e9, "all_reduce": sums}
    rows = [row(6e9, 1, 1e-6, limits=limits, traffic={"encoder": 4e6}, branches=[name]) for name in "ab"]
    compute = 2 * (0.01 + 0.005 + 0.6 + 1e-6)
    measured = case(compute + 20e-6 + 4e-3, rows, mode="weak", batch=12)
    found = check({"cases": [*calibration(speed), measured]})
    (checked,) = found["checked"]
    assert checked["slower"] == {"products": 2.0, "copies": 2.0}
    assert found["largest_error"] == pytest.approx(0.0, abs=1e-6)
