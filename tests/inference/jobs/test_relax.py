"""Relaxation: it ends where the forces vanish, or gives the reason."""

import json
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import read, write

from ramify.errors import RamifyError
from ramify.inference.integrations.ase import Calculator
from ramify.inference.jobs import relax as module
from ramify.inference.jobs.relax import Relaxation, RelaxOptions, relax, relax_file
from ramify.inference.model import Model


@pytest.fixture
def silicon(stiff: Model) -> tuple[Atoms, Calculator]:
    """A crystal a little off its place, and a calculator for it."""
    atoms = bulk("Si")
    atoms.rattle(0.05, seed=2)
    return atoms, Calculator(stiff, "mptrj")


@pytest.mark.parametrize("optimizer", ["bfgs", "fire"])
def test_forces_vanish_where_it_ends(silicon: tuple[Atoms, Calculator], optimizer: str) -> None:
    atoms, calculator = silicon
    before = atoms.copy()
    found = relax(atoms, calculator, RelaxOptions(fmax=1e-3, steps=2000, optimizer=optimizer))
    assert (found.converged, found.why) == (True, "")
    assert found.max_force < 1e-3
    fresh = found.atoms.copy()
    fresh.calc = Calculator(calculator.model, "mptrj")
    np.testing.assert_allclose(fresh.get_forces(), found.atoms.get_forces(), atol=1e-9)
    assert np.linalg.norm(fresh.get_forces(), axis=1).max() == pytest.approx(found.max_force, abs=1e-9)
    before.calc = fresh.calc
    assert found.energy_change == pytest.approx(fresh.get_potential_energy() - before.get_potential_energy(), abs=1e-9)
    assert found.energy_change < 0
    np.testing.assert_array_equal(atoms.positions, before.positions)  # a copy was relaxed
    np.testing.assert_array_equal(found.atoms.cell, atoms.cell)


def test_the_cell_gives_way_where_it_may(silicon: tuple[Atoms, Calculator], monkeypatch: pytest.MonkeyPatch) -> None:
    """The stress vanishes; a large change of the volume is marked."""
    atoms, calculator = silicon
    monkeypatch.setattr(module, "VOLUME_CHANGE", 1.0 + 1e-6)
    found = relax(atoms, calculator, RelaxOptions(fmax=1e-2, steps=3000, cell=True))
    assert found.converged
    ratio = found.atoms.get_volume() / atoms.get_volume()
    assert abs(ratio - 1) > 1e-4
    assert found.why == f"the volume changed by a factor of {ratio:.2f}"
    atoms.calc = calculator
    assert np.abs(found.atoms.get_stress()).max() < 0.1 * np.abs(atoms.get_stress()).max()
    monkeypatch.undo()
    monkeypatch.setattr(module, "VOLUME_CHANGE", 1e6)
    assert relax(atoms, calculator, RelaxOptions(fmax=1e-2, steps=3000, cell=True)).why == ""


def test_a_rise_of_the_energy_is_marked(silicon: tuple[Atoms, Calculator], monkeypatch: pytest.MonkeyPatch) -> None:
    """Some optimizers end at a maximum; here an optimizer that climbs replaces them."""
    from ase.optimize import FIRE

    class Climbing(FIRE):
        def step(self, forces: object = None) -> None:
            self.optimizable.set_x(start.positions.ravel())
            self.optimizable.get_gradient()

    atoms, calculator = silicon
    start = atoms.copy()
    low = relax(atoms, calculator, RelaxOptions(fmax=1e-3, steps=2000))
    monkeypatch.setitem(module.OPTIMIZERS, "fire", Climbing)
    found = relax(low.atoms, calculator, RelaxOptions(fmax=1e-9, steps=1))
    assert found.why.startswith("not converged")
    rise = found.energy_change
    assert rise > 0
    monkeypatch.setattr(Climbing, "gradient_converged", lambda self, gradient: self.nsteps > 0)
    found = relax(low.atoms, calculator, RelaxOptions(fmax=1e9, steps=1))
    assert (found.converged, found.why) == (True, f"the energy rose by {rise:.4f} eV: forces also vanish at maxima")


def test_too_few_steps(silicon: tuple[Atoms, Calculator]) -> None:
    atoms, calculator = silicon
    found = relax(atoms, calculator, RelaxOptions(fmax=1e-6, steps=2))
    assert (found.converged, found.steps) == (False, 2)
    assert found.why == f"not converged in 2 steps: largest force {found.max_force:.4f} eV/Å"
    assert found.max_force > 1e-6


def test_a_step_that_is_refused_ends_at_the_one_before(
    silicon: tuple[Atoms, Calculator], monkeypatch: pytest.MonkeyPatch
) -> None:
    atoms, calculator = silicon
    calculate, calls = Calculator.calculate, []

    def failing(self: Calculator, *arguments: object) -> None:
        calls.append(1)
        if len(calls) == 4:
            raise RamifyError("two atoms on one spot: two of its atoms are 0.0100 Å apart", fix="none")
        calculate(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Calculator, "calculate", failing)
    found = relax(atoms, calculator, RelaxOptions(fmax=1e-9))
    assert not found.converged
    assert found.why == "step 3 was refused: two atoms on one spot: two of its atoms are 0.0100 Å apart"
    assert found.steps == 2
    assert np.isfinite(found.atoms.get_forces()).all()


def test_what_cannot_be_relaxed(direct: Model, conservative: Model) -> None:
    water, crystal = molecule("H2O"), bulk("Si")
    with pytest.raises(RamifyError, match="branch 'bare' predicts no forces"):
        relax(water, Calculator(direct, "bare"), RelaxOptions())
    with pytest.raises(RamifyError, match="branch 'mptrj' has direct forces and no stress: the cell cannot"):
        relax(crystal, Calculator(direct, "mptrj"), RelaxOptions(cell=True))
    with pytest.raises(RamifyError, match="a cell is relaxed along three periodic axes or not at all"):
        relax(water, Calculator(conservative, "qm7x"), RelaxOptions(cell=True))
    with pytest.raises(RamifyError, match="optimizer 'gd' is unknown; accepted: fire, bfgs, lbfgs"):
        relax(crystal, Calculator(direct, "mptrj"), RelaxOptions(optimizer="gd"))  # type: ignore[arg-type]


def test_a_file(conservative: Model, tmp_path: Path) -> None:
    """Structures that converge, do not converge, and cannot be predicted; interrupted after two and resumed."""
    images = [molecule("H2O"), molecule("SiH4"), molecule("CH4"), molecule("CH3OH")]
    for atoms in images:
        atoms.rattle(0.1, seed=1)
    images[0].info["name"] = "first"
    write(tmp_path / "in.xyz", images)
    calculator, options = Calculator(conservative, "qm7x"), RelaxOptions(fmax=0.01, steps=30)
    heard: list[tuple[int, str, bool]] = []

    def done(index: int, formula: str, found: Relaxation | None, why: str) -> None:
        if len(heard) == 2:
            raise KeyboardInterrupt
        heard.append((index, formula, found is None))

    with pytest.raises(KeyboardInterrupt):
        relax_file(calculator, tmp_path / "in.xyz", tmp_path / "out.extxyz", options, done=done)
    assert not (tmp_path / "out.extxyz").exists()
    again: list[int] = []
    progress = relax_file(
        calculator,
        tmp_path / "in.xyz",
        tmp_path / "out.extxyz",
        options,
        done=lambda index, formula, found, why: again.append(index),
    )
    assert [index for index, *_ in heard] == [0, 1]
    assert again == [3]  # the third was done and safe before the interruption was felt
    assert (progress.written, progress.skipped) == (3, {"element that the branch never saw": 1})
    skipped = [json.loads(line) for line in (tmp_path / "out.extxyz.skipped.jsonl").read_text().splitlines()]
    assert [line["record"] for line in skipped] == ["in.xyz[1]"]
    found = read(tmp_path / "out.extxyz", ":")
    assert [a.info["source_index"] for a in found] == [0, 2, 3]
    assert found[0].info["name"] == "first"
    for atoms in found:
        assert atoms.info["converged"] == (atoms.info["max_force"] < 0.01)
        assert ("why" in atoms.info) == (not atoms.info["converged"])
        expected = conservative.predict(atoms, "qm7x")
        assert atoms.get_potential_energy() == pytest.approx(expected.energy, abs=1e-4)
    assert progress.warnings == sum(not a.info["converged"] for a in found)
