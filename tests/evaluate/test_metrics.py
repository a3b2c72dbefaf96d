"""Error accumulators against numpy on the whole, and against numbers worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ramify.evaluate.metrics import Errors, element_errors

errors = st.one_of(st.floats(-50, 50), st.just(math.nan))


def test_hand_made_numbers() -> None:
    gathered = Errors()
    gathered.add([1.0, -3.0], [[1, -1, 2], [0, 0, -4.0]])
    gathered.add([2.0], [[math.nan] * 3, [1, 1, 1]])
    assert gathered.results() == {
        "energy_mae": 2.0,
        "energy_rmse": pytest.approx(math.sqrt(14 / 3)),
        "forces_mae": pytest.approx(11 / 9),
        "forces_rmse": pytest.approx(math.sqrt(25 / 9)),
        "structures": 3,
        "atoms": 4,
    }


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_partition_merged_in_any_order_equals_numpy_on_the_whole(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=12))
    energy = data.draw(arrays(np.float64, len(sizes), elements=errors))
    forces = data.draw(arrays(np.float64, (sum(sizes), 3), elements=errors))
    starts = np.concatenate([[0], np.cumsum(sizes)])
    parts = data.draw(st.lists(st.integers(0, 3), min_size=len(sizes), max_size=len(sizes)))
    ranks = [Errors() for _ in range(4)]
    for i, part in enumerate(parts):
        ranks[part].add(energy[i : i + 1], forces[starts[i] : starts[i + 1]])
    merged = Errors()
    for rank in data.draw(st.permutations(ranks)):
        merged.merge(rank)
    reduced = Errors(np.sum([rank.totals for rank in ranks], axis=0))
    for found in (merged, reduced):
        assert (found.structures, found.atoms) == (len(sizes), sum(sizes))
        for mae, rmse, values in (
            (found.energy_mae, found.energy_rmse, energy),
            (found.forces_mae, found.forces_rmse, forces),
        ):
            labelled = values[~np.isnan(values)]
            if not labelled.size:
                assert mae is None
                assert rmse is None
            else:
                assert mae == pytest.approx(np.abs(labelled).mean(), rel=1e-12)
                assert rmse == pytest.approx(np.sqrt((labelled**2).mean()), rel=1e-12)


def test_batch_size_does_not_enter() -> None:
    """The mean of batch means would be 5.5 / 2; sums give 3.25."""
    gathered = Errors()
    gathered.add([5.0], [[0, 0, 0]])
    gathered.add([0.5, 0.5, 7.0], [[0, 0, 0]] * 3)
    assert gathered.energy_mae == 3.25


def test_a_nan_prediction_of_a_labelled_structure_is_not_lost() -> None:
    silent, loud = Errors(), Errors()
    silent.add([math.nan, 1.0], [[0, 0, 0]])
    loud.add([math.nan, 1.0], [[0, 0, 0]], energy_labelled=[True, True])
    assert silent.energy_mae == 1.0
    assert loud.energy_mae is not None
    assert math.isnan(loud.energy_mae)


def test_labels_can_be_missing_altogether() -> None:
    gathered = Errors()
    gathered.add([math.nan], [[1, 1, 1]], forces_labelled=np.zeros((1, 3), bool))
    assert (gathered.energy_mae, gathered.forces_rmse, gathered.structures) == (None, None, 1)


@pytest.mark.parametrize(
    ("energy", "forces", "labelled"),
    [([[1.0]], [[1, 1, 1]], None), ([1.0], [1, 1, 1], None), ([1.0], [[1, 1, 1]], [True, False])],
)
def test_wrong_shapes_are_refused(energy: list, forces: list, labelled: list | None) -> None:
    with pytest.raises(ValueError, match="shape"):
        Errors().add(energy, forces, energy_labelled=labelled)
    with pytest.raises(ValueError, match="shape"):
        Errors([1.0, 2.0])


def test_element_errors_equal_a_plain_loop() -> None:
    rng = np.random.default_rng(3)
    n_atoms = rng.integers(1, 6, 40)
    numbers = rng.choice([1, 6, 8, 118], n_atoms.sum()).astype(np.uint8)
    energy, forces = rng.normal(size=40), rng.normal(size=(n_atoms.sum(), 3))
    energy[3], forces[5] = math.nan, math.nan
    found = element_errors(numbers, n_atoms, energy, forces)
    assert list(found) == ["H", "C", "O", "Og"]
    structure = np.repeat(np.arange(40), n_atoms)
    for symbol, z in (("H", 1), ("C", 6), ("O", 8), ("Og", 118)):
        holders = [s for s in range(40) if z in numbers[structure == s]]
        assert found[symbol].structures == len(holders)
        assert found[symbol].atoms == int((numbers == z).sum())
        assert found[symbol].energy_mae == pytest.approx(np.nanmean([abs(energy[s]) for s in holders]))
        assert found[symbol].forces_mae == pytest.approx(np.nanmean(np.abs(forces[numbers == z])))
