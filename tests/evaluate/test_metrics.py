"""Error accumulators against numpy on the whole, and against numbers worked out by hand."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ramify.evaluate.metrics import Errors, element_errors

errors = st.one_of(st.floats(-50, 50), st.just(math.nan))


def gather(errors: Errors, energy: object, forces: object) -> None:
    """Adds energies (S,) and forces (N, 3), NaN without label."""
    errors.count(len(np.asarray(energy)), len(np.asarray(forces)))
    errors.add("energy", energy)
    errors.add("forces", forces)


def test_hand_made_numbers() -> None:
    gathered = Errors()
    gather(gathered, [1.0, -3.0], [[1, -1, 2], [0, 0, -4.0]])
    gather(gathered, [2.0], [[math.nan] * 3, [1, 1, 1]])
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
        gather(ranks[part], energy[i : i + 1], forces[starts[i] : starts[i + 1]])
    merged = Errors()
    for rank in data.draw(st.permutations(ranks)):
        merged.merge(Errors.from_dict(json.loads(json.dumps(rank.to_dict()))))  # as ranks send them to one another
    assert (merged.structures, merged.atoms) == (len(sizes), sum(sizes))
    for label, values in (("energy", energy), ("forces", forces)):
        labelled = values[~np.isnan(values)]
        if not labelled.size:
            assert merged.mae(label) is None
            assert merged.rmse(label) is None
        else:
            assert merged.mae(label) == pytest.approx(np.abs(labelled).mean(), rel=1e-12)
            assert merged.rmse(label) == pytest.approx(np.sqrt((labelled**2).mean()), rel=1e-12)


def test_plain_data_keep_every_bit() -> None:
    gathered = Errors()
    gather(gathered, [0.1, 0.2, 1 / 3], [[1e-17, 1e300, math.pi]])
    again = Errors.from_dict(json.loads(json.dumps(gathered.to_dict())))
    assert again.to_dict() == gathered.to_dict()


def test_batch_size_does_not_enter() -> None:
    """The mean of batch means would be 5.5 / 2; sums give 3.25."""
    gathered = Errors()
    gather(gathered, [5.0], [[0, 0, 0]])
    gather(gathered, [0.5, 0.5, 7.0], [[0, 0, 0]] * 3)
    assert gathered.mae("energy") == 3.25


def test_a_nan_prediction_of_a_labelled_structure_is_not_lost() -> None:
    silent, loud = Errors(), Errors()
    silent.add("energy", [math.nan, 1.0])
    loud.add("energy", [math.nan, 1.0], [True, True])
    assert silent.mae("energy") == 1.0
    error = loud.mae("energy")
    assert error is not None
    assert math.isnan(error)


def test_labels_can_be_missing_altogether() -> None:
    gathered = Errors()
    gathered.count(1, 1)
    gathered.add("energy", [math.nan])
    gathered.add("forces", [[1, 1, 1]], np.zeros((1, 3), bool))
    assert (gathered.mae("energy"), gathered.rmse("forces"), gathered.structures) == (None, None, 1)


@pytest.mark.parametrize(
    ("label", "error", "labelled"),
    [
        ("energy", [[1.0]], None),
        ("forces", [1, 1, 1], None),
        ("energy", [1.0], [True, False]),
        ("stress", [[1.0]], None),
    ],
)
def test_wrong_shapes_are_refused(label: str, error: list, labelled: list | None) -> None:
    with pytest.raises(ValueError, match="shape"):
        Errors().add(label, error, labelled)


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
