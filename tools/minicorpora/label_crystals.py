"""GPAW labels of the two crystal corpora; make_crystal_files.py writes the files from them.

    /usr/bin/python3 tools/minicorpora/label_crystals.py mptrj --out OUT --workers 2
    /usr/bin/python3 tools/minicorpora/label_crystals.py alexandria --out OUT --workers 2

Plane waves of 500 eV, Gamma-centred k-points fixed per material, Fermi-Dirac 0.1 eV (metals 0.2 eV). The energy is the
free energy, which the forces derive from; the net force is removed; stress has one constant Pulay term per material.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.dft.bandgap import bandgap
from crystals import ALEXANDRIA, METALS, MPTRJ, SPIN_POLARISED, Crystal, missing
from gpaw import GPAW, PW, FermiDirac, Mixer, MixerSum
from gpaw.xc import XC
from tasks import Arrays, parser, run_tasks, seed_of

PLANE_WAVES = 500  # eV
INITIAL_MOMENT = 2.3  # Bohr magnetons, of bcc Fe


@dataclass(frozen=True)
class Corpus:
    """Options of a corpus.

    Attributes:
        name: part of the random seeds.
        functional: its name in GPAW.
        crystals: the materials.
        relax_volume: whether the volume of the symmetric crystal is relaxed first, giving the first structure.
        scan_width: relative change of the lattice constants in the first scan of the energy.
        max_strain: largest component of the strain.
        amplitude: largest displacement of an atom, Å: drawn between the two.
        grid_margin: scale of the cell that sets the real-space grid of all structures.
        schedule: strain and displacement of each structure as fractions of the largest; equal strain is the same cell.
    """

    name: str
    functional: str
    crystals: list[Crystal]
    relax_volume: bool
    scan_width: float
    max_strain: float
    amplitude: tuple[float, float]
    grid_margin: float
    schedule: tuple[tuple[float, float], ...]


CORPORA = {
    "mptrj": Corpus(
        name="mptrj",
        functional="PBE",
        crystals=MPTRJ,
        relax_volume=False,
        scan_width=0.005,
        max_strain=0.04,
        amplitude=(0.09, 0.15),
        grid_margin=1.03,
        # like a relaxation: strain and displacement decrease
        schedule=((1, 1), (1, 0.65), (1, 0.35), (0.5, 0.6), (0.5, 0.35), (0.5, 0.15), (0, 0.25), (0, 0.06)),
    ),
    "alexandria": Corpus(
        name="alexandria",
        functional="PBEsol",
        crystals=ALEXANDRIA,
        relax_volume=True,
        scan_width=0.012,
        max_strain=0.005,
        amplitude=(0.03, 0.03),
        grid_margin=1.001,
        schedule=((1, 1), (1, 0.6), (1, 0.25)),
    ),
}


@dataclass(frozen=True)
class Labelling:
    """One task: all structures of one crystal of one corpus."""

    corpus: str
    crystal: Crystal

    @property
    def key(self) -> str:
        """Name of the result file."""
        return self.crystal.name


@dataclass(frozen=True)
class Scan:
    """Energies (3,) eV of the symmetric crystal at scales 1 - width, 1, 1 + width, and the crystal at scale 1."""

    width: float
    energy: np.ndarray
    middle: Atoms

    @property
    def best_step(self) -> float:
        """Relative change of the lattice constants to the minimum of the parabola, at most 3 %."""
        curvature = self.energy[0] + self.energy[2] - 2 * self.energy[1]
        if curvature > 0:
            step = -0.5 * (self.energy[2] - self.energy[0]) / curvature * self.width
        else:
            step = np.sign(self.energy[0] - self.energy[2]) * 0.02
        return float(np.clip(step, -0.03, 0.03))


def calculator(
    functional: str, crystal: Crystal, kpoints: tuple[int, ...], symmetric: bool, grid: tuple[int, ...] | None = None
) -> GPAW:
    """The labelling level of theory; `symmetric` uses point-group symmetry, `grid` fixes the real-space grid."""
    xc = XC(functional)
    xc.get_setup_name = lambda: "PBE"  # PBE PAW data sets for both functionals: GPAW ships none for PBEsol
    options: dict[str, Any] = {} if symmetric else {"symmetry": {"point_group": False}}
    if grid is not None:
        options["gpts"] = grid
    mixer = MixerSum if crystal.kind == SPIN_POLARISED else Mixer
    return GPAW(
        mode=PW(PLANE_WAVES),
        xc=xc,
        kpts={"size": kpoints, "gamma": True},
        txt=None,
        occupations=FermiDirac(0.2 if crystal.kind in METALS else 0.1),
        mixer=mixer(0.5, 8, 1),
        maxiter=120,
        convergence={"energy": 1e-5, "density": 3e-5, "eigenstates": 1e-6},
        **options,
    )


def magnetised(atoms: Atoms, crystal: Crystal) -> Atoms:
    """`atoms`, with initial magnetic moments where the crystal has any."""
    if crystal.kind == SPIN_POLARISED:
        atoms.set_initial_magnetic_moments([INITIAL_MOMENT] * len(atoms))
    return atoms


def free_energy(atoms: Atoms) -> float:
    """eV; the energy that the forces derive from (electrons at finite temperature)."""
    return float(atoms.get_potential_energy(force_consistent=True))


def scan_volume(reference: Atoms, corpus: Corpus, crystal: Crystal, kpoints: tuple[int, ...], width: float) -> Scan:
    """Energy of the symmetric crystal at three scales of the reference cell."""
    energy, scaled = [], []
    for scale in (1 - width, 1.0, 1 + width):
        atoms = magnetised(reference.copy(), crystal)
        atoms.set_cell(reference.cell * scale, scale_atoms=True)
        atoms.calc = calculator(corpus.functional, crystal, kpoints, symmetric=True)
        energy.append(free_energy(atoms))
        scaled.append(atoms)
    return Scan(width, np.array(energy), scaled[1])


def relax_volume(reference: Atoms, corpus: Corpus, crystal: Crystal, kpoints: tuple[int, ...]) -> Scan:
    """Brings the cell of `reference` (changed in place) to the minimum of the energy over volume, in up to 3 scans."""
    width = corpus.scan_width
    for _ in range(3):
        scan = scan_volume(reference, corpus, crystal, kpoints, width)
        step = scan.best_step
        reference.set_cell(reference.cell * (1 + step), scale_atoms=True)
        width = 0.006
        if abs(step) < 0.003:
            return scan_volume(reference, corpus, crystal, kpoints, width)
    return scan


def pulay_term(scan: Scan, volume: float) -> float:
    """eV: slope of the energy over volume minus the analytic pressure, which lacks the change of the basis set."""
    slope = (scan.energy[2] - scan.energy[0]) / (2 * scan.width) / (3 * volume)
    analytic = scan.middle.get_stress(voigt=False).trace() / 3
    return float((slope - analytic) * volume)


def random_strain(rng: np.random.Generator, largest: float) -> np.ndarray:
    """(3, 3) symmetric: shear, stretch and volume change, scaled to the largest component."""
    shear = rng.uniform(-1, 1, (3, 3))
    stretch = np.diag(rng.uniform(-1, 1, 3))
    strain = 0.25 * (shear + shear.T) + stretch * 0.5 + np.eye(3) * rng.uniform(-1, 1) * 0.5
    return np.asarray(strain * largest / np.abs(strain).max())


def common_grid(reference: Atoms, corpus: Corpus, crystal: Crystal, kpoints: tuple[int, ...]) -> tuple[int, ...]:
    """One real-space grid for all structures of a material, fine enough for its largest cell."""
    largest = reference.copy()
    largest.set_cell(reference.cell * corpus.grid_margin, scale_atoms=True)
    probe = calculator(corpus.functional, crystal, kpoints, symmetric=False)
    probe.initialize(magnetised(largest, crystal))
    return tuple(int(n) for n in probe.wfs.gd.N_c)


def labelled(atoms: Atoms, crystal: Crystal, pulay: float) -> Arrays:
    """Labels of one structure: eV, eV/Å without the net force, eV/Å³ with the Pulay term (tension positive)."""
    forces = atoms.get_forces()
    spins = crystal.kind == SPIN_POLARISED
    return {
        "cell": atoms.cell.array.copy(),
        "positions": atoms.positions.copy(),
        "energy": free_energy(atoms),
        "forces": forces - forces.mean(0),
        "drift": forces.mean(0) * len(atoms),
        "stress": atoms.get_stress(voigt=False) + np.eye(3) * pulay / atoms.get_volume(),
        "magmoms": atoms.get_magnetic_moments() if spins else np.zeros(len(atoms)),
    }


def distorted(
    reference: Atoms, corpus: Corpus, crystal: Crystal, kpoints: tuple[int, ...], pulay: float
) -> list[Arrays]:
    """Labelled strained and displaced structures, following the schedule of the corpus."""
    rng = np.random.default_rng(seed_of(corpus.name, crystal.name))
    low, high = corpus.amplitude
    amplitude = rng.uniform(low, high) if low < high else low
    strain = random_strain(rng, corpus.max_strain)
    grid = common_grid(reference, corpus, crystal, kpoints)
    direction = rng.standard_normal((len(reference), 3))
    structures, last_scale, calc = [], None, None
    for strain_scale, displacement_scale in corpus.schedule:
        atoms = magnetised(reference.copy(), crystal)
        atoms.set_cell(reference.cell.array @ (np.eye(3) + strain_scale * strain), scale_atoms=True)
        moved = direction + 0.3 * rng.standard_normal(direction.shape)
        atoms.positions += amplitude * displacement_scale * moved / np.linalg.norm(moved, axis=1).max()
        if strain_scale != last_scale:  # a new cell needs a new calculator
            calc, last_scale = calculator(corpus.functional, crystal, kpoints, False, grid), strain_scale
        atoms.calc = calc
        structures.append(labelled(atoms, crystal, pulay))
    return structures


def band_gaps(calc: GPAW) -> list[float]:
    """Indirect and direct gap on the k-point mesh, eV; 0 for a metal."""
    with Path(os.devnull).open("w") as nowhere:
        return [float(bandgap(calc, direct=direct, output=nowhere)[0]) for direct in (False, True)]


def label_crystal(task: Labelling) -> Arrays:
    """All labelled structures of one material, as arrays over structures."""
    corpus, crystal = CORPORA[task.corpus], task.crystal
    reference, kpoints = crystal.atoms(), crystal.kpoints()
    if corpus.relax_volume:
        scan = relax_volume(reference, corpus, crystal, kpoints)
    else:
        scan = scan_volume(reference, corpus, crystal, kpoints, corpus.scan_width)
    pulay = pulay_term(scan, reference.get_volume())
    structures = [labelled(scan.middle, crystal, pulay)] if corpus.relax_volume else []
    structures += distorted(reference, corpus, crystal, kpoints, pulay)
    columns = {name: np.array([s[name] for s in structures]) for name in structures[0]}
    return dict(numbers=reference.numbers, kpts=kpoints, pulay=pulay, gap=band_gaps(scan.middle.calc), **columns)


def cost(crystal: Crystal) -> float:
    """A rough relative cost: the cheap materials are labelled first."""
    atoms, spins = crystal.atoms(), 3 if crystal.kind == SPIN_POLARISED else 1
    return float(np.prod(crystal.kpoints()) * len(atoms) ** 1.5 * atoms.get_volume() ** 0.5 * spins)


def main() -> None:
    """Labels the missing materials."""
    options = parser(__doc__, assembles=False)
    options.add_argument("corpus", choices=CORPORA)
    args = options.parse_args()
    crystals = sorted(missing(args.corpus, CORPORA[args.corpus].crystals, args.earlier), key=cost)
    tasks = [Labelling(args.corpus, crystal) for crystal in crystals]
    run_tasks(label_crystal, tasks[: args.limit], args.out / "work" / args.corpus, args.workers)


if __name__ == "__main__":
    main()
