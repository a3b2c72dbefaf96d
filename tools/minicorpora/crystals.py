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


def _parse(text: str) -> list[Crystal]:
    crystals = []
    for line in text.strip().splitlines():
        prototype, elements, lattice, kind = line.split()
        crystals.append(Crystal(prototype, tuple(elements.split("-")), tuple(map(float, lattice.split(","))), kind))
    return crystals


MPTRJ = _parse("""
rocksalt Na-Cl 5.64 i
zincblende Ga-As 5.65 s
fcc2 Al 4.05 m
perovskite Sr-Ti-O 3.91 i
rocksalt Mg-O 4.21 i
cscl Cs-Cl 4.12 i
fluorite Ca-F 5.46 i
wurtzite Zn-O 3.25,5.21 i
diamond Si 5.43 s
bcc2 W 3.17 m
rocksalt Li-F 4.03 i
rocksalt Ti-N 4.24 m
hcp Mg 3.21,5.21 m
zincblende Si-C 4.36 s
rocksalt K-Br 6.60 i
fluorite Zr-O 5.09 i
fluorite O-Li 4.62 i
perovskite K-Mg-F 3.99 i
zincblende Zn-S 5.41 s
zincblende B-N 3.62 i
rocksalt Pb-S 5.94 s
diamond C 3.57 i
bcc2 Na 4.28 m
fcc2 Cu 3.61 m
rocksalt Ti-C 4.33 m
zincblende In-P 5.87 s
wurtzite Al-N 3.11,4.98 i
cscl Ni-Al 2.89 m
bcc2 Fe 2.85 f
fluorite Si-Mg 6.35 s
rocksalt Ca-O 4.81 i
rocksalt Ag-Cl 5.55 i
halfheusler Sn-Ti-Ni 5.92 s
zincblende Cd-Te 6.48 s
hcp Ti 2.95,4.68 m
rocksalt Sr-S 6.02 i
cdi2 Mg-Br 3.81,6.26 i
rutile Ti-O 4.60,2.96 i
cscl Tl-Br 3.99 i
zincblende Al-P 5.46 s
fcc2 Au 4.08 m
rocksalt Sc-N 4.50 s
l12 Sc-Al 4.10 m
perovskite Ba-Ti-O 4.02 i
rocksalt Sn-Te 6.33 s
diamond Ge 5.66 s
bcc2 V 3.03 m
cdi2 Ti-S 3.41,5.70 s
fluorite S-Na 6.53 i
zincblende Cu-Cl 5.42 s
perovskite Cs-Pb-Cl 5.61 i
rocksalt Ba-O 5.54 i
cscl Mg-Ag 3.31 m
rocksalt Li-H 4.08 i
rocksalt Na-F 4.62 i
rocksalt K-Cl 6.29 i
rocksalt Li-Br 5.50 i
rocksalt Mg-S 5.20 i
rocksalt Ca-S 5.69 i
rocksalt Sr-O 5.16 i
rocksalt Ba-S 6.39 i
rocksalt Cd-O 4.70 s
rocksalt Pb-Te 6.46 s
rocksalt Ag-Br 5.77 i
rocksalt Zr-N 4.58 m
rocksalt Zr-C 4.69 m
rocksalt V-N 4.13 m
zincblende Al-As 5.66 s
zincblende Ga-P 5.45 s
zincblende Ga-N 4.50 s
zincblende In-As 6.06 s
zincblende Zn-Te 6.10 s
zincblende Cd-S 5.82 s
zincblende B-P 4.54 s
zincblende B-As 4.78 s
fluorite Sr-F 5.80 i
fluorite Ba-F 6.20 i
fluorite Cd-F 5.39 i
fluorite S-Li 5.71 i
fluorite O-Na 5.55 i
fluorite O-K 6.44 i
fluorite Sr-Cl 6.98 i
fluorite Ge-Mg 6.39 s
fluorite Sn-Mg 6.76 s
cscl Tl-Cl 3.83 i
cscl Cs-Br 4.29 i
cscl Ni-Ti 3.01 m
cscl Cu-Zn 2.95 m
cscl Ag-Zn 3.16 m
cscl Li-Ag 3.16 m
cscl Sc-Cu 3.26 m
cscl Sc-Ni 3.17 m
cscl Li-Tl 3.43 m
halfheusler Li-Al-Si 5.93 s
halfheusler Zr-Sn-Ni 6.11 s
halfheusler Li-P-Zn 5.76 s
perovskite K-Zn-F 4.05 i
perovskite Ba-Li-F 3.99 i
perovskite Na-Mg-F 3.92 i
fcc2 Ag 4.09 m
fcc2 Pb 4.95 m
bcc2 Li 3.51 m
hcp Zn 2.66,4.95 m
hcp Sc 3.31,5.27 m
hcp Zr 3.23,5.15 m
cscl Zr-Cu 3.26 m
cscl Ti-Zn 3.15 m
zincblende W-C 4.55 m
rocksalt W-C 4.38 m
rocksalt Na-I 6.47 i
rocksalt K-F 5.34 i
rocksalt Rb-Cl 6.58 i
rocksalt Rb-I 7.34 i
rocksalt Cs-F 6.01 i
rocksalt Li-I 6.00 i
rocksalt K-H 5.70 i
rocksalt Na-H 4.88 i
rocksalt Mg-Se 5.46 i
rocksalt Ca-Te 6.35 i
rocksalt Sr-Se 6.23 i
rocksalt Ba-Te 7.00 i
rocksalt Pb-Se 6.12 s
rocksalt Sn-S 5.80 s
rocksalt Ge-Te 5.99 s
rocksalt Y-P 5.66 m
rocksalt Hf-C 4.63 m
rocksalt Nb-N 4.39 m
zincblende Be-Te 5.62 s
zincblende Be-S 4.87 s
zincblende Zn-Se 5.67 s
zincblende Cd-Se 6.05 s
zincblende Ga-Sb 6.10 s
zincblende In-Sb 6.48 s
zincblende Hg-Se 6.08 s
zincblende Cu-I 6.05 s
zincblende Ag-I 6.47 s
fluorite Se-Li 6.00 i
fluorite Te-Na 7.31 i
fluorite S-K 7.39 i
fluorite O-Rb 6.74 i
fluorite Pb-F 5.94 i
fluorite Ba-Cl 7.34 i
fluorite C-Be 4.34 s
fluorite Pb-Mg 6.81 s
fluorite Au-Al 6.00 m
cscl Cs-I 4.57 i
cscl Tl-I 4.20 i
cscl Li-Hg 3.29 m
cscl Mg-Tl 3.63 m
cscl Mg-Au 3.26 m
cscl Be-Cu 2.70 m
cscl Sc-Ag 3.41 m
cscl Y-Zn 3.58 m
cscl Y-Cu 3.48 m
cscl Zr-Zn 3.34 m
cscl Al-Co 2.86 m
halfheusler Li-As-Zn 5.94 s
halfheusler Li-P-Mg 6.02 s
halfheusler Li-N-Zn 4.88 s
perovskite K-Ca-F 4.41 i
fcc2 Pd 3.89 m
fcc2 Pt 3.92 m
fcc2 Ca 5.58 m
fcc2 Ni 3.52 f
bcc2 Mo 3.15 m
bcc2 Ta 3.30 m
bcc2 K 5.33 m
bcc2 Ba 5.02 m
cscl Fe-Co 2.85 f
""")

ALEXANDRIA = _parse("""
rocksalt Li-Cl 5.10 i
zincblende Al-As 5.65 s
fluorite Sr-F 5.79 i
cscl Ni-Ti 3.01 m
rocksalt Mg-Se 5.45 i
perovskite K-Zn-F 4.05 i
halfheusler Li-Al-Si 5.93 s
bcc2 Nb 3.30 m
fluorite O-Na 5.55 i
rocksalt Zr-C 4.69 m
zincblende Be-S 4.86 s
cscl Cs-I 4.56 i
rocksalt Ca-S 5.67 i
perovskite Ca-Ti-O 3.86 i
fcc2 Pd 3.89 m
zincblende Ga-Sb 6.10 s
fluorite Cd-F 5.38 i
rocksalt Sr-O 5.13 i
halfheusler Zr-Sn-Ni 6.11 s
cscl Au-Zn 3.15 m
rocksalt Na-Br 5.93 i
fluorite S-Li 5.70 i
rocksalt Hf-N 4.52 m
zincblende Zn-Se 5.66 s
perovskite Na-Mg-F 3.92 i
rocksalt Pb-Te 6.42 s
bcc2 Mo 3.15 m
rocksalt K-F 5.34 i
fluorite Ge-Mg 6.38 s
zincblende B-As 4.77 s
cscl Li-Ag 3.16 m
rocksalt V-N 4.13 m
fluorite Ba-F 6.19 i
halfheusler Li-N-Mg 4.96 s
rocksalt Rb-I 7.30 i
zincblende In-Sb 6.48 s
perovskite Li-Ba-F 3.99 i
fluorite Hf-O 5.07 i
rocksalt Cd-O 4.70 s
cscl Be-Cu 2.70 m
rocksalt Y-N 4.88 s
fluorite C-Be 4.34 s
zincblende Cd-S 5.82 s
rocksalt Nb-C 4.45 m
rocksalt Ca-Se 5.90 i
perovskite Cs-Sn-Cl 5.55 i
fcc2 Ca 5.50 m
rocksalt Na-H 4.85 i
fluorite O-K 6.43 i
zincblende Si-Ge 5.54 s
cscl Ru-Al 2.97 m
rocksalt Ag-F 4.95 i
fluorite Pb-F 5.93 i
halfheusler Li-P-Zn 5.76 s
rocksalt Ba-S 6.36 i
zincblende Hg-Te 6.45 s
rocksalt Sn-Se 5.99 s
rocksalt K-Cl 6.26 i
fcc2 Ag 4.08 m
perovskite K-Ta-O 3.99 i
fluorite Sn-Mg 6.76 s
zincblende Al-Sb 6.13 s
cscl Cs-Br 4.28 i
rocksalt Ta-C 4.45 m
fluorite S-K 7.39 i
fcc2 Ir 3.85 m
cscl Y-Ag 3.60 m
zincblende Cu-Br 5.66 s
rocksalt Mg-O 4.21 i
rocksalt Sc-P 5.31 s
diamond Sn 6.47 s
zincblende Ga-As 5.65 s
cscl Hg-Li 3.28 m
rocksalt Zr-N 4.57 m
perovskite Rb-Ca-F 4.45 i
bcc2 Li 3.48 m
rocksalt Li-Br 5.49 i
rocksalt Li-I 6.00 i
rocksalt Na-F 4.61 i
rocksalt Na-Cl 5.61 i
rocksalt Na-I 6.45 i
rocksalt K-Br 6.57 i
rocksalt K-I 7.04 i
rocksalt Rb-F 5.63 i
rocksalt Rb-Br 6.83 i
rocksalt Cs-F 5.98 i
rocksalt Cs-Cl 6.97 i
rocksalt Ag-Cl 5.52 i
rocksalt Ag-Br 5.73 i
rocksalt K-H 5.66 i
rocksalt Li-H 4.02 i
rocksalt Mg-S 5.18 i
rocksalt Mg-Te 5.93 i
rocksalt Ca-O 4.78 i
rocksalt Ca-Te 6.32 i
rocksalt Sr-S 5.99 i
rocksalt Sr-Se 6.21 i
rocksalt Sr-Te 6.63 i
rocksalt Ba-O 5.53 i
rocksalt Ba-Se 6.57 i
rocksalt Ba-Te 6.98 i
rocksalt Pb-S 5.91 s
rocksalt Pb-Se 6.10 s
rocksalt Sn-Te 6.31 s
rocksalt Ge-Te 5.97 s
rocksalt Sc-As 5.46 m
rocksalt Y-As 5.76 m
rocksalt Ti-N 4.23 m
rocksalt Ti-C 4.32 m
rocksalt Hf-C 4.61 m
zincblende B-P 4.53 s
zincblende B-N 3.61 s
zincblende Al-P 5.46 s
zincblende Ga-P 5.45 s
zincblende In-P 5.88 s
zincblende In-As 6.07 s
zincblende Si-C 4.36 s
zincblende Be-Se 5.15 s
zincblende Be-Te 5.61 s
zincblende Mg-Te 6.40 s
zincblende Zn-S 5.40 s
zincblende Zn-Te 6.08 s
zincblende Cd-Se 6.05 s
zincblende Cd-Te 6.48 s
zincblende Hg-Se 6.09 s
zincblende Cu-Cl 5.39 s
zincblende Cu-I 6.02 s
zincblende Ag-I 6.45 s
fluorite Ca-F 5.45 i
fluorite Sr-Cl 6.95 i
fluorite Ba-Cl 7.30 i
fluorite O-Li 4.60 i
fluorite O-Rb 6.72 i
fluorite S-Na 6.52 i
fluorite Se-Li 5.98 i
fluorite Se-Na 6.79 i
fluorite Se-K 7.67 i
fluorite Te-Li 6.48 i
fluorite Te-Na 7.28 i
fluorite Te-K 8.13 i
fluorite Si-Mg 6.34 s
fluorite Pb-Mg 6.80 s
cscl Cs-Cl 4.10 i
cscl Tl-Cl 3.82 i
cscl Tl-Br 3.97 i
cscl Cs-Au 4.26 s
cscl Mg-Ag 3.29 m
cscl Mg-Au 3.23 m
cscl Sc-Ag 3.38 m
cscl Ca-Tl 3.81 m
cscl Sr-Tl 3.98 m
cscl Y-Cu 3.44 m
cscl Y-Zn 3.55 m
cscl Zr-Zn 3.31 m
cscl Cu-Zn 2.91 m
cscl Ag-Cd 3.28 m
halfheusler Li-P-Mg 6.00 s
halfheusler Li-As-Mg 6.17 s
halfheusler Li-As-Zn 5.92 s
halfheusler Li-As-Cd 6.25 s
perovskite K-Mg-F 3.98 i
perovskite Cs-Ca-F 4.51 i
bcc2 V 2.96 m
bcc2 Ta 3.29 m
bcc2 W 3.16 m
bcc2 K 5.28 m
bcc2 Ba 4.99 m
fcc2 Al 4.02 m
fcc2 Cu 3.57 m
fcc2 Au 4.09 m
fcc2 Pt 3.92 m
fcc2 Sr 5.95 m
fcc2 Pb 4.93 m
""")
