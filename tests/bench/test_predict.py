"""Predictions follow the paper's findings, where they follow from its own reasons."""

from typing import Any

import pytest

from ramify.bench.predict.machines import find_machine
from ramify.bench.predict.predict import ScalingPrediction, first_win
from ramify.errors import RamifyError
from ramify.planning.workload import dataset_sizes, read_sizes
from ramify.recipe import load_recipe


@pytest.fixture(scope="module")
def predicted() -> dict[str, dict[str, Any]]:
    """By machine, for the paper's model and datasets, equal numbers of structures of each as in its scaling runs."""
    recipe = load_recipe("paper", ["train.sampling=equal"])
    sizes = dataset_sizes(recipe, read_sizes("paper", recipe))
    names = ("frontier", "perlmutter")
    return {
        name: ScalingPrediction(
            recipe, sizes, find_machine(name), 160, 6400, ranks=(40, 320, 640, 1920), branches=(5, 64)
        ).predict()
        for name in names
    }


def seconds(found: dict[str, Any], mode: str, ranks: int) -> dict[str, float]:
    (row,) = [row for row in found["scaling"] if (row["mode"], row["ranks"]) == (mode, ranks)]
    times: dict[str, float] = row["seconds"]
    return times


@pytest.mark.slow
@pytest.mark.parametrize("machine", ["frontier", "perlmutter"])
def test_strong_scaling_bends_first_where_messages_are_large(
    predicted: dict[str, dict[str, Any]], machine: str
) -> None:
    """MTL-par scales better than MTL-base at large scale (paper, section 5.2)."""
    few, many = (seconds(predicted[machine], "strong", ranks) for ranks in (40, 640))
    assert few["replicated"] < few["per-branch-even"]
    assert many["per-branch-even"] < many["replicated"]
    assert predicted[machine]["wins"]["strong"]["per-branch"] in (320, 640)


@pytest.mark.slow
def test_base_is_faster_in_weak_scaling_on_a_fast_network(predicted: dict[str, dict[str, Any]]) -> None:
    """When a model fits (paper, on Perlmutter): equal groups wait for the dataset of largest structures, and groups by
    work do not."""
    for ranks in (40, 320, 640):
        times = seconds(predicted["perlmutter"], "weak", ranks)
        assert times["replicated"] < 0.6 * times["per-branch-even"]
        assert times["per-branch"] == pytest.approx(times["replicated"], rel=0.05)


def test_time_does_not_grow_with_branches_that_are_spread(predicted: dict[str, dict[str, Any]]) -> None:
    for found in predicted.values():
        few, many = (row["seconds"] for row in found["branches"])
        assert many["per-branch"] == pytest.approx(few["per-branch"], rel=0.05)
        assert many["replicated"] > 2 * few["replicated"]


def test_first_win_is_where_it_stays() -> None:
    rows = [
        {"ranks": ranks, "seconds": {"replicated": 1.0, "per-branch": par, "per-branch-even": 2.0}}
        for ranks, par in ((1, 0.5), (2, 1.0), (4, 0.9), (8, 0.8))
    ]
    assert first_win(rows, "ranks") == {"per-branch": 4, "per-branch-even": None}


def test_unknown_machines_are_refused() -> None:
    with pytest.raises(RamifyError, match=r"--machine fronteir: .*'frontier'"):
        find_machine("fronteir")
