"""The crystals of mptrj_mini and alexandria_mini: prototypes, elements, lattice constants, k-point meshes.

Lattice constants are starting values (Å) near the known experimental ones.
"""

import bz2
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk

# k-points per 1/Å of reciprocal length; i insulator, s semiconductor, m metal, f ferromagnetic metal (spin-polarised)
KPOINT_DENSITY = {"i": 1.25, "s": 1.5, "m": 1.95, "f": 1.95}
SPIN_POLARISED = "f"
METALS = "mf"

FILES = {
    "mptrj": Path("mptrj_mini/MPtrj_mini.json"),
    "alexandria": Path("alexandria_mini/alexandria_mini_000.json.bz2"),
}
LISTS = Path(__file__).with_name("lists")
Points = list[tuple[float, float, float]]
Q, H = 0.25, 0.5
CENTRED: Points = [(0, 0, 0), (H, H, H)]
FCC_CELL = 0.5 * (np.ones((3, 3)) - np.eye(3))  # primitive, for lattice constant 1
# prototypes on a cubic lattice: the element at each fractional position
FCC_PROTOTYPES: dict[str, tuple[tuple[int, ...], Points]] = {
    "rocksalt": ((0, 1), CENTRED),
    "zincblende": ((0, 1), [(0, 0, 0), (Q, Q, Q)]),
    "fluorite": ((0, 1, 1), [(0, 0, 0), (Q, Q, Q), (-Q, -Q, -Q)]),  # antifluorite: swap the elements
    "halfheusler": ((0, 1, 2), [(0, 0, 0), (H, H, H), (Q, Q, Q)]),
}
CUBIC_PROTOTYPES: dict[str, tuple[tuple[int, ...], Points]] = {
    "cscl": ((0, 1), CENTRED),
    "bcc2": ((0, 0), CENTRED),
    "perovskite": ((0, 1, 2, 2, 2), [*CENTRED, (H, H, 0), (H, 0, H), (0, H, H)]),
    "l12": ((0, 1, 1, 1), [(0, 0, 0), (0, H, H), (H, 0, H), (H, H, 0)]),
}


@dataclass(frozen=True)
class Crystal:
    """One material: `lattice` holds a, or a and c (Å); `kind` is a key of KPOINT_DENSITY."""

    prototype: str
    elements: tuple[str, ...]
    lattice: tuple[float, ...]
    kind: str

    @property
    def name(self) -> str:
        """E.g. `rocksalt_Na-Cl`: unique within a corpus."""
        return f"{self.prototype}_{'-'.join(self.elements)}"

    def atoms(self) -> Atoms:
        """The primitive cell (bcc and fcc elements: the two-atom cell)."""
        a, elements = self.lattice[0], self.elements
        if self.prototype in FCC_PROTOTYPES:
            which, points = FCC_PROTOTYPES[self.prototype]
            return _periodic([elements[i] for i in which], points, a * FCC_CELL)
        if self.prototype in CUBIC_PROTOTYPES:
            which, points = CUBIC_PROTOTYPES[self.prototype]
            return _periodic([elements[i] for i in which], points, np.eye(3) * a)
        if self.prototype == "fcc2":  # tetragonal
            return _periodic([elements[0]] * 2, CENTRED, np.diag([a / 2**0.5, a / 2**0.5, a]))
        if self.prototype in ("diamond", "hcp", "wurtzite"):
            return bulk("".join(elements), self.prototype, *self.lattice)
        if self.prototype == "rutile":
            return _rutile(elements, *self.lattice)
        if self.prototype == "cdi2":
            return _cadmium_iodide(elements, *self.lattice)
        raise ValueError(f"unknown prototype {self.prototype!r}")

    def kpoints(self) -> tuple[int, ...]:
        """The Gamma-centred mesh of the starting cell, kept for all structures of the material."""
        reciprocal = 2 * np.pi * np.linalg.norm(np.linalg.inv(self.atoms().cell.array).T, axis=1)
        return tuple(int(max(1, np.ceil(KPOINT_DENSITY[self.kind] * b - 0.05))) for b in reciprocal)


def missing(corpus: str, crystals: list[Crystal], earlier: Path | None) -> list[Crystal]:
    """The crystals of a corpus that its file in the folder `earlier` does not hold: it names them by their place."""
    if earlier is None:
        return crystals
    content = (earlier / FILES[corpus]).read_bytes()
    if corpus == "mptrj":
        held = {int(name.removeprefix("rm-")) for name in json.loads(content)}
    else:
        entries = json.loads(bz2.decompress(content))["entries"]
        held = {int(entry["data"]["parent_id"].removeprefix("rmagm")) for entry in entries}
    return [crystal for i, crystal in enumerate(crystals, 1) if i not in held]


def _periodic(symbols: list[str], points: Points, cell: np.ndarray) -> Atoms:
    return Atoms(symbols, scaled_positions=points, cell=cell, pbc=True)


def _rutile(elements: tuple[str, ...], a: float, c: float) -> Atoms:
    u = 0.305
    points = [*CENTRED, (u, u, 0), (-u, -u, 0), (H + u, H - u, H), (H - u, H + u, H)]
    return _periodic([elements[0]] * 2 + [elements[1]] * 4, points, np.diag([a, a, c]))


def _cadmium_iodide(elements: tuple[str, ...], a: float, c: float) -> Atoms:
    z = 0.25
    cell = np.array([[a, 0, 0], [-a / 2, a * 3**0.5 / 2, 0], [0, 0, c]])
    points: Points = [(0, 0, 0), (1 / 3, 2 / 3, z), (2 / 3, 1 / 3, -z)]
    return _periodic([elements[0], elements[1], elements[1]], points, cell)


def _parse(name: str) -> list[Crystal]:
    """The crystals of `lists/NAME.txt`: prototype, elements, lattice constants (a, or a,c), kind."""
    crystals = []
    for line in (LISTS / f"{name}.txt").read_text().splitlines():
        prototype, elements, lattice, kind = line.split()
        crystals.append(Crystal(prototype, tuple(elements.split("-")), tuple(map(float, lattice.split(","))), kind))
    return crystals


MPTRJ = _parse("mptrj")
ALEXANDRIA = _parse("alexandria")
