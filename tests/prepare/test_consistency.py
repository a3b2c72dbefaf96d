"""The energy-force slope: documented values of real and embedded data, and the values for each kind of mistake."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import units
from ase.build import bulk
from ase.calculators.emt import EMT

from ramify.errors import RamifyError
from ramify.minicorpora import FILES
from ramify.prepare.checks.consistency import SlopeMeter
from ramify.prepare.checks.fingerprints import fingerprints
from ramify.sources.formats import formats
from ramify.sources.quarantine import Quarantine
from ramify.store.manifest import Consistency
from ramify.structures import Structures
from tests.corpora import stated_slope

BENCHMARK = ("train", "val", "test")


def load(format_name: str, *paths: Path, **keys: Any) -> Structures:
    """Whole files in one piece, in eV and eV/Å."""
    format_ = formats()[format_name]
    options = format_.options.model_validate({"format": format_name, "path": "", **keys})
    chunks = [chunk for path in paths for chunk in format_.read(path, options, Quarantine())]
    return Structures.concatenate(chunks)


def meter(structures: Structures, **settings: Any) -> SlopeMeter:
    found = SlopeMeter(**settings)
    found.add(structures, fingerprints(structures))
    return found


def measure(structures: Structures, **settings: Any) -> Consistency:
    return meter(structures, **settings).result()


@pytest.mark.parametrize(
    ("name", "format_name", "keys"),
    [
        ("ani1x_mini", "ani1x", {}),
        ("qm7x_mini", "qm7x", {"labels": "pbe0"}),
        ("mptrj_mini", "mptrj", {}),
        ("alexandria_mini", "alexandria", {}),
    ],
)
def test_unweighted_slopes_are_those_of_the_corpora(
    name: str, format_name: str, keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check in the READMEs of the corpora gives all pairs within 0.12 Å equal weight: same pairs, same slope."""
    slope, pairs = stated_slope(name)
    monkeypatch.setattr("ramify.prepare.checks.consistency.SOUGHT", 10**9)
    monkeypatch.setattr("ramify.prepare.checks.consistency.IDENTICAL", 0.0)
    found = measure(load(format_name, FILES[name], **keys), limit=0.12, r0=None)
    assert found.pairs == pairs
    assert found.slope == pytest.approx(slope, abs=5e-5)


@pytest.mark.parametrize(
    ("name", "format_name", "keys"),
    [
        ("ani1x_mini", "ani1x", {}),
        ("qm7x_mini", "qm7x", {"labels": "pbe0"}),
        ("transition1x_mini", "transition1x", {}),
        ("mptrj_mini", "mptrj", {}),
        ("alexandria_mini", "alexandria", {}),
    ],
)
def test_weighted_slopes_are_nearly_one(name: str, format_name: str, keys: dict[str, Any]) -> None:
    """Forces of the corpora agree with finite differences (READMEs), so the true slope is 1."""
    found = meter(load(format_name, FILES[name], **keys)).check(name)
    assert found.slope is not None
    assert 0.95 < found.slope < 1.05
    assert found.pairs >= 140
    assert found.correlation is not None
    assert found.correlation > 0.95


@pytest.mark.parametrize(("name", "slope"), [("wb97x", 0.98), ("qm7x", 0.977), ("orca_pbe", 1.004), ("mlearn", 1.0)])
def test_slopes_of_the_benchmark(shared: Path, name: str, slope: float) -> None:
    """Its README, measured otherwise: S66x8 0.983, qm7x 0.977, orca_pbe 1.004, mlearn 0.977 to 1.044 by element."""
    folder = shared / "benchmark" / "five" / name
    found = meter(load("extxyz", *[folder / f"{part}.extxyz" for part in BENCHMARK])).check(name)
    assert found.slope == pytest.approx(slope, abs=0.02)
    assert found.pairs > 100


def test_mad_has_no_close_pairs(shared: Path) -> None:
    folder = shared / "benchmark" / "five" / "mad"
    found = meter(load("extxyz", *[folder / f"{part}.extxyz" for part in BENCHMARK])).check("mad")
    assert found == Consistency(slope=None, pairs=0, correlation=None)


def test_gradients_of_comp6(shared: Path) -> None:
    """S66x8 of COMP6 stores gradients: documented slope -0.98."""
    comp6 = load("ani1", shared / "data" / "ani_comp6_s66x8" / "s66x8_wb97x6-31gd.h5")
    with pytest.raises(
        RamifyError, match=r"'comp6'.* -0\.98.* gradients .*\n  fix: .*forces_sign: -1.*datasets\.comp6"
    ):
        meter(comp6).check("comp6")
    turned = meter(replace(comp6, forces=-comp6.forces)).check("comp6")
    assert turned.slope == pytest.approx(0.98, abs=0.01)


def test_energies_per_atom_of_nickel(shared: Path) -> None:
    """The ALIGNN copy of mlearn holds eV/atom under the name of totals, which its reader mends: slope 1/N, N = 108."""
    nickel = load("mlearn", shared / "data" / "mlearn_pbe_vasp" / "Ni_alignn_id_prop.json")
    assert meter(nickel).check("nickel").slope == pytest.approx(1.01, abs=0.02)
    with pytest.raises(RamifyError, match="energies are per atom"):
        meter(replace(nickel, energy=nickel.energy / nickel.n_atoms)).check("nickel")


def copper(count: int, displacement: float = 0.02) -> Structures:
    """Copper supercells with EMT energies and forces, atoms wrapped into the cell."""
    rng = np.random.default_rng(0)
    crystal = bulk("Cu", "fcc", a=3.65, cubic=True)
    images, energy, forces = [], [], []
    for _ in range(count):
        atoms = crystal.copy()
        atoms.positions += rng.normal(size=(4, 3)) * displacement
        atoms.wrap()
        atoms.calc = EMT()
        images.append(atoms)
        energy.append(atoms.get_potential_energy())
        forces.append(atoms.get_forces())
    return replace(Structures.from_ase(images), energy=np.array(energy), forces=np.concatenate(forces))


def test_wrapped_atoms_count_as_near() -> None:
    data = copper(40)
    jumps = np.abs(data.positions[:4] - data.positions[4:8]).max()
    assert jumps > 3  # an atom near a face stands on the other side in the next frame
    found = measure(data)
    assert found.pairs == 40 * 39 // 2
    assert found.slope == pytest.approx(1, abs=0.01)
    assert found.correlation is not None
    assert found.correlation > 0.999


@pytest.mark.parametrize(
    ("wrong", "slope", "meaning"),
    [
        (lambda s: replace(s, forces=-s.forces), -1, "gradients"),
        (lambda s: replace(s, forces=s.forces * units.Bohr), 1.89, "Ha/bohr while positions are in Å"),
        (lambda s: replace(s, forces=s.forces / units.Bohr), 0.529, "positions are in bohr"),
        (lambda s: replace(s, energy=s.energy / units.Hartree), 0.0367, "energies are in Hartree but forces in eV/Å"),
        (lambda s: replace(s, energy=s.energy / (units.kcal / units.mol)), 23.06, "energies are in kcal/mol"),
        (lambda s: replace(s, forces=-s.forces / (units.kcal / units.mol)), -0.0434, "kcal/mol/Å; gradients"),
        (lambda s: replace(s, energy=s.energy / 4), 0.25, "energies are per atom"),
        (lambda s: replace(s, forces=s.forces * 0.7), 1.43, "units and sign of both"),
    ],
)
def test_what_a_wrong_slope_means(wrong: Callable[[Structures], Structures], slope: float, meaning: str) -> None:
    with pytest.raises(RamifyError) as error:
        meter(wrong(copper(12))).check("copper")
    text = str(error.value)
    stated = re.search(r"slope of dE on -F·dx is (\S+) over 66 pairs", text)
    assert stated is not None
    assert float(stated[1]) == pytest.approx(slope, rel=0.02)
    assert meaning in text
    assert "'copper'" in text
    assert ("forces_sign: -1" in text) == (slope < 0)


def test_few_pairs_are_reported_and_never_a_failure() -> None:
    data = copper(8)  # 28 pairs
    found = meter(replace(data, forces=-data.forces)).check("copper")
    assert found == Consistency(slope=None, pairs=28, correlation=None)


@pytest.mark.parametrize(("unit", "refused"), [(1.0, False), (units.Hartree, True), (units.kcal / units.mol, True)])
def test_noisy_energies_in_a_wrong_unit_are_refused(unit: float, refused: bool) -> None:
    """Noise takes the correlation down to between 0.5 and 0.8; the slope is far off all the same."""
    data = copper(30)
    noise = np.random.default_rng(1).normal(size=len(data)) * 1.5 * data.energy.std()
    noisy = replace(data, energy=(data.energy + noise) / unit)
    found = meter(noisy).result()
    assert found.correlation is not None
    assert 0.5 < found.correlation < 0.8
    if refused:
        with pytest.raises(RamifyError, match="forces and energies disagree"):
            meter(noisy).check("copper")
    else:
        assert meter(noisy).check("copper") == found


def test_two_labels_for_one_geometry_are_not_judged() -> None:
    """Some energies are of another state: the slope is meaningless, which the correlation shows."""
    data = copper(30)
    noise = np.random.default_rng(0).choice([0.0, 2.0], len(data))
    found = meter(replace(data, energy=data.energy + noise, forces=-data.forces)).check("copper")
    assert found.correlation is not None
    assert abs(found.correlation) < 0.5


def test_structures_without_forces_and_of_other_cells_make_no_pairs() -> None:
    data = copper(20)
    forces = data.forces.copy()
    forces[: 4 * 10] = np.nan
    assert measure(replace(data, forces=forces)).pairs == 10 * 9 // 2
    cell = data.cell * (1 + np.arange(20) // 10 * 1e-3)[:, None, None]
    assert measure(replace(data, cell=cell)).pairs == 2 * 10 * 9 // 2


def test_identical_structures_say_nothing() -> None:
    data = copper(2)
    copies = data.take(np.arange(60) % 2)
    assert measure(replace(copies, energy=copies.energy + np.arange(60))).pairs == 30 * 30


def test_work_is_bounded_and_chunks_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    data = copper(80)
    monkeypatch.setattr("ramify.prepare.checks.consistency.BUDGET", 4 * 200)
    bounded = measure(data)
    assert 200 <= bounded.pairs <= 201
    assert bounded.slope == pytest.approx(1, abs=0.02)
    monkeypatch.setattr("ramify.prepare.checks.consistency.BUDGET", 10**9)
    both = SlopeMeter()
    for start in (0, 40):
        part = data.span(start, start + 40)
        both.add(part, fingerprints(part))
    assert both.pairs == 2 * 40 * 39 // 2
