"""Every gate: accepted and refused structures, with reasons."""

from typing import Any

import numpy as np
import pytest
from ase.build import bulk, molecule

from ramify.prepare.checks import gates
from ramify.prepare.checks.gates import detail, screen
from ramify.sources.base import Gates
from ramify.structures import Structures

nan, inf = np.nan, np.inf


def structures(count: int = 3, **changed: Any) -> Structures:
    """Water molecules (a crystal where a cell is given) with labels, columns changed as stated."""
    water = molecule("H2O")
    columns: dict[str, Any] = {
        "n_atoms": [3] * count,
        "numbers": np.tile(water.numbers, count),
        "positions": np.tile(water.positions, (count, 1)),
        "energy": np.full(count, -2078.0),
        "forces": np.zeros((3 * count, 3)),
    }
    return Structures.make(**columns | changed)


def verdicts(chunk: Structures, **limits: Any) -> list[str]:
    found = screen(chunk, Gates(**limits))
    return [found.reasons[f - 1] if f else "" for f in found.failures]


def forces(*rows: tuple[int, Any]) -> np.ndarray:
    """(9, 3) zeros with some rows replaced."""
    values = np.zeros((9, 3))
    for row, value in rows:
        values[row] = value
    return values


def test_good_structures_pass_with_their_measures() -> None:
    chunk = structures(forces=forces((4, [3.0, 4.0, 0.0])))
    found = screen(chunk, Gates())
    assert not found.failures.any()
    np.testing.assert_allclose(found.max_force, [0, 5, 0])
    np.testing.assert_allclose(found.closest, molecule("H2O").get_distance(0, 1), rtol=1e-12)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"energy": [-1, nan, -1]}, gates.NO_ENERGY),
        ({"energy": [-1, inf, -1]}, gates.NON_FINITE_LABEL),
        ({"forces": forces((5, [0, nan, 0]))}, gates.NON_FINITE_LABEL),
        ({"forces": forces((3, [0, 0, -inf]))}, gates.NON_FINITE_LABEL),
        ({"forces": forces((3, nan), (4, nan))}, gates.NON_FINITE_LABEL),  # the third atom has forces
        ({"stress": [np.full((3, 3), nan), np.diag([0, nan, 0]), np.eye(3)]}, gates.NON_FINITE_LABEL),
        ({"forces": forces((4, [60.0, 60.0, 60.0]))}, gates.LARGE_FORCE),  # each component is below the limit
        ({"numbers": [8, 1, 1, 8, 0, 1, 8, 1, 1]}, gates.UNKNOWN_ELEMENT),
        ({"numbers": [8, 1, 1, 8, 119, 1, 8, 1, 1]}, gates.UNKNOWN_ELEMENT),
    ],
)
def test_one_of_three_fails(changed: dict[str, Any], reason: str) -> None:
    assert verdicts(structures(**changed)) == ["", reason, ""]


def test_absent_labels_pass() -> None:
    chunk = structures(forces=forces((3, nan), (4, nan), (5, nan)))
    found = screen(chunk, Gates())
    assert not found.failures.any()
    assert np.isnan(found.max_force).tolist() == [False, True, False]


@pytest.mark.parametrize("value", [nan, inf])
def test_geometry_that_is_not_finite(value: float) -> None:
    chunk = structures()
    chunk.positions[4, 1] = value
    assert verdicts(chunk) == ["", gates.NON_FINITE_GEOMETRY, ""]
    chunk = structures()
    chunk.cell[2, 0, 0] = value
    assert verdicts(chunk) == ["", "", gates.NON_FINITE_GEOMETRY]


def test_structures_without_atoms_are_left_out() -> None:
    water = molecule("H2O")
    chunk = Structures.make(
        n_atoms=[0, 3, 0],
        numbers=water.numbers,
        positions=water.positions,
        energy=[0.0, -1, 0],
        forces=np.zeros((3, 3)),
    )
    assert verdicts(chunk) == [gates.NO_ATOMS, "", gates.NO_ATOMS]


def test_atoms_too_close() -> None:
    chunk = structures()
    chunk.positions[4] = chunk.positions[3] + [0.0, 0.39, 0.0]
    assert verdicts(chunk) == ["", gates.TOO_CLOSE, ""]
    assert verdicts(chunk, min_distance=0.38) == ["", "", ""]
    found = screen(chunk, Gates())
    assert found.details[1] == pytest.approx(0.39)
    assert detail(gates.TOO_CLOSE, found.details[1], Gates()) == "closest atoms 0.3900 Å apart, limit 0.4 Å"


def test_images_are_atoms_too_and_dummy_cells_are_not() -> None:
    copper = bulk("Cu", "fcc", a=3.6)
    chunk = Structures.from_ase([copper] * 4)
    labels = {"energy": np.zeros(4), "forces": np.zeros((4, 3))}
    cell = chunk.cell.copy()
    cell[1] *= 0.1  # nearest image at 0.25 Å
    cell[2] = np.eye(3) * 0.1
    cell[3] = 0.0
    pbc = np.array([[True] * 3, [True] * 3, [False] * 3, [True] * 3])
    changed = Structures.make(
        n_atoms=[1] * 4, numbers=[29] * 4, positions=np.zeros((4, 3)), cell=cell, pbc=pbc, **labels
    )
    assert verdicts(changed) == ["", gates.TOO_CLOSE, "", gates.NO_VOLUME]


def test_the_first_failing_gate_is_the_reason() -> None:
    chunk = structures(energy=[nan, -1, -1], forces=forces((0, nan), (3, 1e4), (4, nan)))
    assert verdicts(chunk) == [gates.NO_ENERGY, gates.NON_FINITE_LABEL, ""]
