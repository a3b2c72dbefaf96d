"""Checks the five corpora with h5py, json, bz2 and numpy only, independently of the readers of ramify.

    python tools/minicorpora/check_files.py [--root FOLDER]

Prints one line of JSON per corpus and exits with status 1 if a corpus violates a limit: finite labels, net force,
closest pair, no duplicates, and an energy-force slope near 1. That slope is the regression of dE on
-(F_i + F_j)/2 . dx over pairs of neighbouring structures of one system in one cell (crystals: all pairs with one cell).
"""

import argparse
import bz2
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import h5py
import numpy as np

ROOT = Path(__file__).parents[2] / "src" / "ramify" / "minicorpora"
HARTREE = 27.211386245988  # eV, CODATA 2018
NEIGHBOUR = 0.12  # Å: largest change of a coordinate between neighbouring structures of a molecule
MAX_NET_FORCE = 1e-5  # eV/Å
MIN_DISTANCE = 0.6  # Å
MAX_SLOPE_ERROR = 0.06  # the trapezoidal rule over a finite step is that coarse
PERIODIC_TABLE = (
    "X H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr "
    "Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir "
    "Pt Au Hg Tl Pb Bi"
)
SYMBOLS = PERIODIC_TABLE.split()


@dataclass(frozen=True)
class System:
    """S labelled structures of N atoms of one system.

    Attributes:
        name: group of the file.
        numbers: (N,) atomic numbers.
        cell: (S, 3, 3) Å, None for molecules.
        positions: (S, N, 3) Å.
        energy: (S,) eV.
        forces: (S, N, 3) eV/Å.
        unlabelled: rows that were left out because their labels are NaN.
        ends: end points of a reaction; others may begin or end with the same molecule.
    """

    name: str
    numbers: np.ndarray
    cell: np.ndarray | None
    positions: np.ndarray
    energy: np.ndarray
    forces: np.ndarray
    unlabelled: int = 0
    ends: tuple[int, ...] = ()


def ani1x(path: Path) -> Iterator[System]:
    """Systems are compositions."""
    with h5py.File(path) as file:
        for name, group in file.items():
            columns = (group[k][()] for k in ("wb97x_dz.energy", "wb97x_dz.forces", "coordinates"))
            energy, forces, positions = columns
            require(np.isnan(group["ccsd(t)_cbs.energy"][()]).all(), f"{name}: coupled-cluster energies are not NaN")
            require(energy.dtype == "f8" and forces.dtype == positions.dtype == "f4", f"{name}: number types")
            good = ~(np.isnan(energy) | np.isnan(forces).any((1, 2)))
            labels = positions[good].astype("f8"), energy[good] * HARTREE, forces[good].astype("f8") * HARTREE
            yield System(name, group["atomic_numbers"][()], None, *labels, unlabelled=int((~good).sum()))


def qm7x(path: Path) -> Iterator[System]:
    """Systems are molecules; the minimum comes first."""
    with h5py.File(path) as file:
        for name, group in file.items():
            geometries = sorted(group, key=lambda g: (not g.endswith("opt"), len(g), g))
            column = {k: np.array([group[g][k][()] for g in geometries]) for k in group[geometries[0]]}
            yield System(name, column["atNUM"][0], None, column["atXYZ"], column["ePBE0"][:, 0], column["pbe0FOR"])


def transition1x(path: Path) -> Iterator[System]:
    """Systems are reactions, read from `data`; `train`, `val` and `test` must hold each of them once."""
    key = "wB97x_6-31G(d)."
    with h5py.File(path) as file:
        names = {s: {f"{a}/{b}" for a in file[s] for b in file[s][a]} for s in ("data", "train", "val", "test")}
        require(names["train"] | names["val"] | names["test"] == names["data"], "the split does not cover the data")
        require(sum(map(len, names.values())) == 2 * len(names["data"]), "a reaction is in two parts of the split")
        for name in sorted(names["data"]):
            group = file["data"][name]
            energy = group[key + "energy"][()]
            for end in ("reactant", "product", "transition_state"):
                require(group[end][key + "energy"][0] in energy, f"{name}: the {end} is not one of the structures")
            ends = [energy.tolist().index(group[end][key + "energy"][0]) for end in ("reactant", "product")]
            columns = group["positions"][()], energy, group[key + "forces"][()]
            yield System(name, group["atomic_numbers"][()], None, *columns, ends=tuple(ends))


def crystal(name: str, rows: list[tuple[dict[str, Any], float, Any]]) -> System:
    """A material from (pymatgen structure, energy, forces) rows."""
    sites = [structure["sites"] for structure, _, _ in rows]
    numbers = [[SYMBOLS.index(site["species"][0]["element"]) for site in row] for row in sites]
    require(all(n == numbers[0] for n in numbers), f"{name}: the order of the atoms changes")
    cell = np.array([structure["lattice"]["matrix"] for structure, _, _ in rows])
    positions = np.array([[site["xyz"] for site in row] for row in sites])
    energy, forces = np.array([r[1] for r in rows]), np.array([r[2] for r in rows])
    return System(name, np.array(numbers[0]), cell, positions, energy, forces)


def mptrj(path: Path) -> Iterator[System]:
    """Systems are materials."""
    for name, rows in json.loads(path.read_text()).items():
        for key, row in rows.items():
            n = len(row["structure"]["sites"])
            require(key.startswith(name) and np.shape(row["stress"]) == (3, 3), f"{key}: name or stress")
            require(abs(row["energy_per_atom"] * n - row["corrected_total_energy"]) < 1e-9, f"{key}: energies disagree")
        yield crystal(name, [(r["structure"], r["uncorrected_total_energy"], r["force"]) for r in rows.values()])


def alexandria(path: Path) -> Iterator[System]:
    """Systems are the crystals that `parent_id` names."""
    with bz2.open(path) as file:
        entries = json.load(file)["entries"]
    names = {entry["data"]["mat_id"] for entry in entries}
    require(len(names) == len(entries), "a mat_id occurs twice")
    systems = defaultdict(list)
    for entry in entries:
        structure, data = entry["structure"], entry["data"]
        require(entry["energy"] == data["energy_total"], f"{data['mat_id']}: energies disagree")
        require(len(structure["sites"]) == data["nsites"], f"{data['mat_id']}: number of atoms")
        forces = [site["properties"]["forces"] for site in structure["sites"]]
        systems[data["parent_id"]].append((structure, entry["energy"], forces))
    for name, rows in systems.items():
        yield crystal(name, rows)


CORPORA: dict[str, tuple[str, Callable[[Path], Iterator[System]]]] = {
    "ani1x_mini": ("ani1x-mini.h5", ani1x),
    "qm7x_mini": ("1000.hdf5", qm7x),
    "transition1x_mini": ("Transition1x-mini.h5", transition1x),
    "mptrj_mini": ("MPtrj_mini.json", mptrj),
    "alexandria_mini": ("alexandria_mini_000.json.bz2", alexandria),
}


def require(condition: bool, message: str) -> None:
    """Raises ValueError(message) unless the condition holds (`python -O` would remove an assert)."""
    if not condition:
        raise ValueError(message)


def closest_pair(positions: np.ndarray, cell: np.ndarray | None) -> float:
    """Smallest distance between two atoms of a structure, neighbouring images included, Å."""
    shifts = np.zeros((1, 3)) if cell is None else np.array(np.meshgrid(*[[-1, 0, 1]] * 3)).reshape(3, -1).T @ cell
    distance = np.linalg.norm(positions[:, None, None] - positions[None, :, None] + shifts, axis=-1)
    return float(distance[distance > 1e-6].min(initial=np.inf))


def neighbours(system: System) -> Iterator[tuple[float, float]]:
    """Energy difference and its estimate from the forces, eV, for every pair of neighbouring structures."""
    for i, j in combinations(range(len(system.energy)), 2):
        change = system.positions[j] - system.positions[i]
        if system.cell is None:
            near = np.abs(change).max() <= NEIGHBOUR
        else:
            near = np.abs(system.cell[i] - system.cell[j]).max() <= 1e-8
        if near:
            work = -0.5 * ((system.forces[i] + system.forces[j]) * change).sum()
            yield float(system.energy[j] - system.energy[i]), float(work)


@dataclass
class Report:
    """Statistics of a corpus, accumulated over systems."""

    systems: int = 0
    structures: int = 0
    unlabelled: int = 0
    duplicates: int = 0
    numbers: set[int] = field(default_factory=set)
    atoms: list[int] = field(default_factory=list)
    net_force: list[float] = field(default_factory=list)
    largest_force: list[float] = field(default_factory=list)
    energy_per_atom: list[float] = field(default_factory=list)
    closest: list[float] = field(default_factory=list)
    pairs: list[tuple[float, float]] = field(default_factory=list)
    seen: set[tuple[bytes, ...]] = field(default_factory=set)

    def add(self, system: System) -> None:
        """Checks the shapes of `system` and adds it."""
        S, N = len(system.energy), len(system.numbers)
        require(system.positions.shape == system.forces.shape == (S, N, 3), f"{system.name}: shapes disagree")
        finite = all(np.isfinite(a).all() for a in (system.positions, system.energy, system.forces))
        require(finite, f"{system.name}: a label is not finite")
        self.systems += 1
        self.structures += S
        self.unlabelled += system.unlabelled
        self.numbers |= set(system.numbers.tolist())
        self.atoms += [N] * S
        self.net_force.append(float(np.abs(system.forces.sum(1)).max()))
        self.largest_force += np.abs(system.forces).max((1, 2)).tolist()
        self.energy_per_atom += (system.energy / N).tolist()
        self.pairs += neighbours(system)
        for k, positions in enumerate(system.positions):
            cell = None if system.cell is None else system.cell[k]
            self.closest.append(closest_pair(positions, cell))
            box = b"" if cell is None else np.round(cell, 5).tobytes()
            record = (system.numbers.tobytes(), np.round(positions, 5).tobytes(), box)
            self.duplicates += record in self.seen and k not in system.ends
            self.seen.add(record)

    def summary(self) -> dict[str, Any]:
        """The statistics as plain data."""
        change, work = np.array(self.pairs).T
        return {
            "systems": self.systems,
            "structures": self.structures,
            "unlabelled": self.unlabelled,
            "atoms": sum(self.atoms),
            "atoms_range": [min(self.atoms), max(self.atoms)],
            "elements": [SYMBOLS[z] for z in sorted(self.numbers)],
            "net_force": max(self.net_force),
            "largest_force_median": float(np.median(self.largest_force)),
            "largest_force": max(self.largest_force),
            "energy_per_atom": [min(self.energy_per_atom), max(self.energy_per_atom)],
            "closest_pair": min(self.closest),
            "duplicates": self.duplicates,
            "pairs": len(self.pairs),
            "slope": float(change @ work / (work @ work)),
            "slope_rms_meV": float(1e3 * np.sqrt(np.mean((change - work) ** 2))),
        }


def broken_limits(summary: dict[str, Any]) -> list[str]:
    """The limits that a corpus violates."""
    limits = {
        "net_force": summary["net_force"] <= MAX_NET_FORCE,
        "closest_pair": summary["closest_pair"] >= MIN_DISTANCE,
        "duplicates": summary["duplicates"] == 0,
        "slope": abs(summary["slope"] - 1) <= MAX_SLOPE_ERROR,
    }
    return [name for name, kept in limits.items() if not kept]


def main() -> None:
    """Checks every corpus of the folder."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--root", type=Path, default=ROOT, help="folder with one folder per corpus")
    root = options.parse_args().root
    broken = []
    for corpus, (name, systems) in CORPORA.items():
        report = Report()
        for system in systems(root / corpus / name):
            report.add(system)
        summary = report.summary()
        broken += [f"{corpus}: {limit} = {summary[limit]} is out of its limit" for limit in broken_limits(summary)]
        print(json.dumps(dict(corpus=corpus, bytes=(root / corpus / name).stat().st_size, **summary)))
    if broken:
        sys.exit("\n".join(broken))


if __name__ == "__main__":
    main()
