"""The embedded corpora, read with h5py, json and bz2 alone: content, units and signs, and their READMEs."""

import bz2
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from ase.data import atomic_numbers, chemical_symbols
from ase.neighborlist import primitive_neighbor_list
from ase.units import GPa, Hartree
from scipy.spatial.distance import pdist

from ramify.minicorpora import FILES, FOLDER
from tests.corpora import ELEMENTS, HELD, readme, stated_slope

TOOLS = Path(__file__).parents[1] / "tools" / "minicorpora"
NEIGHBOUR = 0.12  # Å: largest change of a coordinate between neighbouring structures of a molecule


@dataclass(frozen=True)
class Frame:
    """One labelled structure: Å, eV, eV/Å, eV/Å³ (tension positive); cell and stress are None for molecules."""

    system: str
    numbers: np.ndarray
    positions: np.ndarray
    energy: float
    forces: np.ndarray
    cell: np.ndarray | None = None
    stress: np.ndarray | None = None
    is_end: bool = False
    """Reactant or product of a reaction."""


def read_ani1x(path: Path) -> Iterator[Frame]:
    with h5py.File(path) as file:
        for name, group in file.items():
            columns = [group[k][()] for k in ("coordinates", "wb97x_dz.energy", "wb97x_dz.forces")]
            for positions, energy, forces in zip(*columns, strict=True):
                if not np.isnan(energy):
                    yield Frame(name, group["atomic_numbers"][()], positions, energy * Hartree, forces * Hartree)


def read_qm7x(path: Path) -> Iterator[Frame]:
    with h5py.File(path) as file:
        for name, molecule in file.items():
            for g in molecule.values():
                yield Frame(name, g["atNUM"][()], g["atXYZ"][()], g["ePBE0"][0], g["pbe0FOR"][()])


def read_transition1x(path: Path) -> Iterator[Frame]:
    with h5py.File(path) as file:
        for formula, reactions in file["data"].items():
            for name, g in reactions.items():
                columns = [g[k][()] for k in ("positions", "wB97x_6-31G(d).energy", "wB97x_6-31G(d).forces")]
                ends = [g[f"{end}/wB97x_6-31G(d).energy"][0] for end in ("reactant", "product")]
                for positions, energy, forces in zip(*columns, strict=True):
                    is_end, numbers = energy in ends, g["atomic_numbers"][()]
                    yield Frame(f"{formula}/{name}", numbers, positions, energy, forces, is_end=is_end)


def crystal(system: str, structure: dict[str, Any], energy: float, forces: Any, stress: Any) -> Frame:
    sites = structure["sites"]
    numbers = np.array([atomic_numbers[site["species"][0]["element"]] for site in sites])
    positions, cell = np.array([site["xyz"] for site in sites]), np.array(structure["lattice"]["matrix"])
    # VASP's sign and kBar -> tension positive, eV/Å³
    return Frame(system, numbers, positions, energy, np.array(forces), cell, -0.1 * GPa * np.array(stress))


def read_mptrj(path: Path) -> Iterator[Frame]:
    for material, rows in json.loads(path.read_text()).items():
        for r in rows.values():
            yield crystal(material, r["structure"], r["uncorrected_total_energy"], r["force"], r["stress"])


def read_alexandria(path: Path) -> Iterator[Frame]:
    for e in json.loads(bz2.decompress(path.read_bytes()))["entries"]:
        forces = [site["properties"]["forces"] for site in e["structure"]["sites"]]
        yield crystal(e["data"]["parent_id"], e["structure"], e["energy"], forces, e["data"]["stress"])


READERS: dict[str, Callable[[Path], Iterator[Frame]]] = {
    "ani1x_mini": read_ani1x,
    "qm7x_mini": read_qm7x,
    "transition1x_mini": read_transition1x,
    "mptrj_mini": read_mptrj,
    "alexandria_mini": read_alexandria,
}
# closest pair, Å, rounded down
CLOSEST = {"ani1x_mini": 0.7, "qm7x_mini": 0.8, "transition1x_mini": 0.7, "mptrj_mini": 1.4, "alexandria_mini": 1.8}
LEVELS = {"ani1x_mini": "wB97X/6-31G(d)", "qm7x_mini": "PBE0/def2-SVP", "transition1x_mini": "wB97X/6-31G(d)"}


@pytest.fixture(scope="module")
def corpora() -> dict[str, list[Frame]]:
    return {name: list(read(FILES[name])) for name, read in READERS.items()}


def by_system(frames: list[Frame]) -> list[list[Frame]]:
    systems: dict[str, list[Frame]] = {}
    for frame in frames:
        systems.setdefault(frame.system, []).append(frame)
    return list(systems.values())


def elements(frames: list[Frame]) -> list[str]:
    return [chemical_symbols[z] for z in sorted({int(z) for f in frames for z in f.numbers})]


@pytest.fixture(scope="module")
def pairs(corpora: dict[str, list[Frame]]) -> dict[str, np.ndarray]:
    return {name: energy_force_pairs(frames) for name, frames in corpora.items()}


def energy_force_pairs(frames: list[Frame]) -> np.ndarray:
    """(P, 2): energy difference and work of the mean force, for neighbours of one composition and cell."""
    found = []
    for system in by_system(frames):
        for a, b in combinations(system, 2):
            change = b.positions - a.positions
            if a.cell is None or b.cell is None:
                near = np.abs(change).max() <= NEIGHBOUR
            else:
                near = np.abs(a.cell - b.cell).max() <= 1e-8
            if near and np.array_equal(a.numbers, b.numbers):
                found.append((b.energy - a.energy, -0.5 * ((a.forces + b.forces) * change).sum()))
    return np.array(found)


def slope(pairs: np.ndarray) -> float:
    return float(pairs[:, 0] @ pairs[:, 1] / (pairs[:, 1] @ pairs[:, 1]))


@pytest.mark.parametrize("name", READERS)
def test_holds_what_it_should(name: str, corpora: dict[str, list[Frame]]) -> None:
    frames = corpora[name]
    sizes = [len(f.numbers) for f in frames]
    largest = max(np.abs(f.forces).max() for f in frames)
    held = (len(frames), len(by_system(frames)), sum(sizes), min(sizes), max(sizes), round(float(largest), 3))
    assert held == HELD[name]
    assert elements(frames) == ELEMENTS[name].split()
    for f in frames:
        assert f.positions.shape == f.forces.shape == (len(f.numbers), 3)
        assert np.isfinite(f.positions).all()
        assert np.isfinite(f.forces).all()
        assert np.isfinite(f.energy)


def test_ani1x_has_three_rows_without_labels() -> None:
    unlabelled = 0
    with h5py.File(FILES["ani1x_mini"]) as file:
        for group in file.values():
            energy, forces = np.isnan(group["wb97x_dz.energy"][()]), np.isnan(group["wb97x_dz.forces"][()])
            assert np.array_equal(energy, forces.all((1, 2)))
            assert np.array_equal(energy, forces.any((1, 2)))
            assert np.isfinite(group["coordinates"][()]).all()
            assert np.isnan(group["ccsd(t)_cbs.energy"][()]).all()
            unlabelled += int(energy.sum())
    assert unlabelled == 3


def test_transition1x_split_covers_every_reaction_once() -> None:
    with h5py.File(FILES["transition1x_mini"]) as file:
        names = {part: {f"{f}/{r}" for f in file[part] for r in file[part][f]} for part in file}
        assert {part: len(n) for part, n in names.items()} == {"data": 150, "train": 98, "val": 23, "test": 29}
        assert names["train"] | names["val"] | names["test"] == names["data"]
        formulas = [{name.split("/")[0] for name in names[part]} for part in ("train", "val", "test")]
        assert sum(map(len, formulas)) == len(set().union(*formulas)), "a formula is in one part only"
        for name in names["test"]:
            assert file[f"test/{name}"] == file[f"data/{name}"], "the parts are links, not copies"
        for name in names["data"]:
            reaction = file[f"data/{name}"]
            energy = reaction["wB97x_6-31G(d).energy"][()]
            refined = len(energy) > 12  # others have two images, and perhaps three more of a second round
            images = 8 if refined else 2
            path = energy[-images:] if refined else energy[4:6]
            ends = [reaction[f"{end}/wB97x_6-31G(d).energy"][0] for end in ("reactant", "product", "transition_state")]
            assert ends == [energy[0], energy[images + 1], path.max()]


@pytest.mark.parametrize("name", READERS)
def test_energies_and_forces_belong_together(name: str, pairs: dict[str, np.ndarray]) -> None:
    assert len(pairs[name]) > 100
    assert slope(pairs[name]) == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("name", LEVELS)
def test_molecules_are_bound(name: str, corpora: dict[str, list[Frame]]) -> None:
    """Total energies less those of the atoms at the same level are a few eV per atom: the unit and the level fit."""
    atoms = json.loads((TOOLS / "atom_energies.json").read_text())[LEVELS[name]]
    bound = [
        (f.energy - sum(atoms[chemical_symbols[z]]["eV"] for z in f.numbers)) / len(f.numbers) for f in corpora[name]
    ]
    assert min(bound) > -6
    assert max(bound) < -1.5


@pytest.mark.parametrize("name", ["mptrj_mini", "alexandria_mini"])
def test_crystals_are_bound(name: str, corpora: dict[str, list[Frame]]) -> None:
    """Relative to atoms without spin: 1 (K) to 14 (W) eV per atom. A shift to PBEsol atoms with the wrong sign would be
    off by twice 0.2 (H) to 150 eV (Pb)."""
    per_atom = [f.energy / len(f.numbers) for f in corpora[name]]
    assert min(per_atom) > -15
    assert max(per_atom) < -1


def test_moments_of_ferromagnets() -> None:
    """Measured at equilibrium: 2.2 Bohr magnetons per atom of iron, 0.6 of nickel (Kittel, Introduction to Solid State
    Physics, table of ferromagnetic crystals)."""
    rows = json.loads(FILES["mptrj_mini"].read_text()).values()
    last = [list(material.values())[-1] for material in rows]
    moments = {row["structure"]["sites"][0]["species"][0]["element"]: row["magmom"] for row in last if row["magmom"]}
    assert sorted(moments) == ["Fe", "Ni"]
    assert np.mean(moments["Fe"]) == pytest.approx(2.2, abs=0.15)
    assert np.mean(moments["Ni"]) == pytest.approx(0.6, abs=0.1)


@pytest.mark.parametrize("name", READERS)
def test_net_force_vanishes(name: str, corpora: dict[str, list[Frame]]) -> None:
    limit = 1e-5 if name == "ani1x_mini" else 2e-6  # single precision there
    assert max(np.abs(f.forces.sum(0)).max() for f in corpora[name]) < limit


@pytest.mark.parametrize("name", READERS)
def test_no_atoms_too_close(name: str, corpora: dict[str, list[Frame]]) -> None:
    closest = np.inf
    for f in corpora[name]:
        if f.cell is None:
            near = pdist(f.positions)
        else:
            near = primitive_neighbor_list("d", (True,) * 3, f.cell, f.positions, 3.0)
        closest = min(closest, near.min(initial=np.inf))
    assert CLOSEST[name] < closest < CLOSEST[name] + 0.12


@pytest.mark.parametrize("name", READERS)
def test_no_structure_twice(name: str, corpora: dict[str, list[Frame]]) -> None:
    """End points aside: several reactions may begin or end with the same molecule."""
    seen, frames = set(), [f for f in corpora[name] if not f.is_end]
    for f in frames:
        box = b"" if f.cell is None else np.round(f.cell, 4).tobytes()
        seen.add((f.numbers.tobytes(), np.round(f.positions, 4).tobytes(), box))
    assert len(seen) == len(frames)


def test_compressed_crystals_have_positive_stress_in_the_file() -> None:
    correlations = []
    for rows in json.loads(FILES["mptrj_mini"].read_text()).values():
        volume = np.array([np.linalg.det(r["structure"]["lattice"]["matrix"]) for r in rows.values()])
        kbar = np.array([np.trace(r["stress"]) / 3 for r in rows.values()])
        if np.ptp(volume) / np.abs(volume).mean() > 0.05:  # with less, displacements matter as much as the volume
            correlations.append(np.corrcoef(np.abs(volume), kbar)[0, 1])
    assert len(correlations) > 30
    assert max(correlations) < -0.85
    assert np.median(correlations) < -0.99


def test_stress_agrees_with_energy_over_strain(corpora: dict[str, list[Frame]]) -> None:
    """dE = V sigma : strain - F . dx; the stated uncertainty of the stress leaves about a tenth."""
    changes = []
    for system in by_system(corpora["mptrj_mini"]):
        for a, b in combinations(system, 2):
            assert a.cell is not None
            assert b.cell is not None
            assert a.stress is not None
            assert b.stress is not None
            if np.abs(a.cell - b.cell).max() <= 1e-8:
                continue
            gradient = np.linalg.solve(a.cell, b.cell)
            strain = (gradient + gradient.T) / 2 - np.eye(3)
            virial = 0.5 * (abs(np.linalg.det(a.cell)) * a.stress + abs(np.linalg.det(b.cell)) * b.stress)
            by_forces = -0.5 * ((a.forces + b.forces) * (b.positions - a.positions @ gradient)).sum()
            changes.append((b.energy - a.energy - by_forces, (virial * strain).sum()))
    assert slope(np.array(changes)) == pytest.approx(1, abs=0.15)
    assert np.corrcoef(np.array(changes).T)[0, 1] > 0.95


def test_symmetric_crystals_have_no_forces(corpora: dict[str, list[Frame]]) -> None:
    for system in by_system(corpora["alexandria_mini"]):
        assert np.abs(system[0].forces).max() < 1e-6
        assert np.abs(system[1].forces).max() > 1e-4


@pytest.mark.parametrize("name", READERS)
def test_readme_states_what_the_file_holds(
    name: str, corpora: dict[str, list[Frame]], pairs: dict[str, np.ndarray]
) -> None:
    frames, text = corpora[name], readme(name)
    facts = {key.strip(): value.strip() for key, value in re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", text, re.MULTILINE)}
    sizes, per_atom = [len(f.numbers) for f in frames], [f.energy / len(f.numbers) for f in frames]
    largest = [np.abs(f.forces).max() for f in frames]
    assert facts["file"] == f"`{FILES[name].name}`, {FILES[name].stat().st_size / 1e6:.2f} MB"
    assert facts["structures"].startswith(f"{len(frames)} labelled")
    assert re.match(rf"{len(by_system(frames))} [a-z]+", facts["systems"])
    assert facts["atoms per structure"] == f"{min(sizes)} to {max(sizes)}"
    assert facts["elements"] == f"{len(elements(frames))}: {' '.join(elements(frames))}"
    assert facts["energy per atom"] == f"{min(per_atom):.3f} to {max(per_atom):.3f} eV"
    forces = f"median {np.median(largest):.3f} eV/Å, at most {max(largest):.2f} eV/Å"
    assert facts["largest force component of a structure"] == forces
    stated, number = stated_slope(name)
    assert number == len(pairs[name])
    assert stated == pytest.approx(slope(pairs[name]), abs=1e-4)


def test_overview_states_what_the_files_hold(corpora: dict[str, list[Frame]]) -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    rows = {cells[0][1 : cells[0].index("]")]: cells for cells in _table_rows(text) if cells[0].startswith("[")}
    assert list(rows) == list(READERS) == list(FILES)
    for name, frames in corpora.items():
        sizes = [len(f.numbers) for f in frames]
        assert rows[name][4] == str(len(frames))
        assert rows[name][5].split()[0] == str(len(by_system(frames)))
        assert rows[name][6:] == [f"{min(sizes)} to {max(sizes)}", str(len(elements(frames)))]
    total = sum(map(len, corpora.values()))
    together = elements([f for frames in corpora.values() for f in frames])
    size = sum(path.stat().st_size for path in FILES.values()) / 1e6
    assert f"{total} structures, {len(together)} elements, {size:.1f} MB" in text


def _table_rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def run_check_files(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOLS / "check_files.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_check_files_finds_the_same(corpora: dict[str, list[Frame]], pairs: dict[str, np.ndarray]) -> None:
    done = run_check_files()
    assert done.returncode == 0, done.stderr
    reports = {r["corpus"]: r for r in map(json.loads, done.stdout.splitlines())}
    for name, frames in corpora.items():
        report = reports[name]
        assert (report["structures"], report["systems"]) == (len(frames), len(by_system(frames)))
        assert report["elements"] == elements(frames)
        assert report["pairs"] == len(pairs[name])
        assert report["slope"] == pytest.approx(slope(pairs[name]), abs=1e-6)


def test_check_files_refuses_gradients_in_place_of_forces(tmp_path: Path) -> None:
    for name, path in FILES.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / path.name).write_bytes(path.read_bytes())
    with h5py.File(tmp_path / "qm7x_mini" / "1000.hdf5", "r+") as file:
        for molecule in file.values():
            for geometry in molecule.values():
                geometry["pbe0FOR"][...] *= -1
    done = run_check_files("--root", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.strip().startswith("qm7x_mini: slope = -0.96")
