"""Geometries, sampling and labels of the three molecular corpora.

geometry: SMILES -> RDKit ETKDG and MMFF -> GFN2-xTB minimum and Hessian (tblite)
sampling: thermal displacements along the normal modes, and Gaussian rattle
labels:   PySCF restricted Kohn-Sham with density fitting, energy and analytic gradient with grid response
"""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import h5py
import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.optimize import BFGS
from ase.units import Bohr, kB
from numpy.typing import NDArray
from pyscf import dft, gto, lib
from rdkit import Chem
from rdkit.Chem import AllChem
from tasks import parser
from tblite.ase import TBLite

Array = NDArray[np.float64]
GRID_LEVEL = 2
CONVERGENCE = 1e-9  # Hartree
START_LEVEL, START_CONVERGENCE = 0, 1e-4  # of the cheap field that gives the starting density: a tenth less time
SOFTEST_MODE = 0.05  # eV/Å²/amu, 117 1/cm: softer modes are stiffened to this, or they would overshoot
ZERO_MODE = 0.005  # eV/Å²/amu: softer modes are translations or rotations


SECOND_ROUND = "second_round"
"""In the provenance of a file: the systems with the structures of both rounds."""

SMALL_HEADERS = ("v110", "v110")
"""Format of HDF5 files (`libver`): since version 1.10, small datasets take a quarter to two thirds of the space."""


@contextmanager
def new_file(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file to write, which appears at `path` once it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with h5py.File(part, "w", libver=SMALL_HEADERS) as file:
        yield file
    part.replace(path)


class System(Protocol):
    """Anything made from a SMILES."""

    @property
    def smiles(self) -> str:
        """Of a reaction: reactant>>product."""
        ...


S = TypeVar("S", bound=System)


@dataclass(frozen=True)
class Theory:
    """A level of theory: `xc` and `basis` as PySCF calls them, `name` as the READMEs do."""

    name: str
    xc: str
    basis: str


WB97X = Theory("wB97X/6-31G(d)", "wb97x", "6-31g*")
PBE0 = Theory("PBE0/def2-SVP", "pbe0", "def2-svp")


@dataclass(frozen=True)
class Modes:
    """Vibrations of a molecule: `stiffness` (M,), eV/Å²/amu, and mass-weighted `vectors` (M, N, 3), 1/sqrt(amu)."""

    stiffness: Array
    vectors: Array


def label(
    numbers: NDArray[np.integer], positions: Array, theory: Theory, guess: Array | None
) -> tuple[float, Array, Array]:
    """Energy (Hartree), forces (N, 3) (Hartree/Å) and density matrix of a closed-shell molecule.

    Args:
        numbers: (N,) atomic numbers.
        positions: (N, 3), Å.
        theory: functional and basis.
        guess: density matrix to start from, e.g. of a similar geometry.

    Raises:
        RuntimeError: the self-consistent field does not converge.
    """
    lib.num_threads(1)
    molecule = gto.M(atom=[(int(z), p) for z, p in zip(numbers, positions, strict=True)], basis=theory.basis, verbose=0)
    start = kohn_sham(molecule, theory, START_LEVEL, START_CONVERGENCE)
    start.kernel(guess)
    if start.converged:
        guess = start.make_rdm1()
    field = kohn_sham(molecule, theory, GRID_LEVEL, CONVERGENCE)
    energy = field.kernel(guess)
    if not field.converged:  # second-order solver first, then finish with the plain one
        second_order = field.newton()
        second_order.kernel(guess)
        energy = field.kernel(second_order.make_rdm1())
    if not field.converged:
        raise RuntimeError("the self-consistent field does not converge")
    gradient = field.nuc_grad_method()
    gradient.grid_response = True
    return float(energy), -np.asarray(gradient.kernel()) / Bohr, field.make_rdm1()


def kohn_sham(molecule: gto.Mole, theory: Theory, level: int, convergence: float) -> dft.rks.RKS:
    """Restricted Kohn-Sham with density fitting, integration grid of `level`, energy to `convergence` Hartree."""
    field = dft.RKS(molecule, xc=theory.xc).density_fit()
    field.grids.level, field.conv_tol, field.max_cycle = level, convergence, 80
    return field


def atom_energy(number: int, unpaired: int, theory: Theory) -> float:
    """Energy of the isolated atom (unrestricted Kohn-Sham), Hartree."""
    atom = gto.M(atom=[(number, (0, 0, 0))], basis=theory.basis, spin=unpaired, verbose=0)
    field = dft.UKS(atom, xc=theory.xc).density_fit()
    field.grids.level, field.conv_tol = GRID_LEVEL, CONVERGENCE
    return float(field.kernel())


def xtb() -> TBLite:
    """A GFN2-xTB calculator."""
    return TBLite(method="GFN2-xTB", verbosity=0)


def embed(molecule: Chem.Mol, seed: int) -> Array:
    """(N, 3) ETKDG coordinates, Å; random starting coordinates where the distance geometry fails."""
    if AllChem.EmbedMolecule(molecule, randomSeed=seed) != 0:
        AllChem.EmbedMolecule(molecule, randomSeed=seed, useRandomCoords=True)
    return np.asarray(molecule.GetConformer().GetPositions())


def from_smiles(smiles: str) -> Atoms:
    """The GFN2-xTB minimum nearest to the ETKDG and MMFF conformer, with its calculator."""
    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    embed(molecule, seed=1)
    if AllChem.MMFFHasAllMoleculeParams(molecule):
        AllChem.MMFFOptimizeMolecule(molecule)
    atoms = Atoms([a.GetSymbol() for a in molecule.GetAtoms()], molecule.GetConformer().GetPositions())
    atoms.calc = xtb()
    BFGS(atoms, logfile=None).run(fmax=0.005, steps=300)
    return atoms


def normal_modes(atoms: Atoms, step: float = 0.005) -> Modes:
    """All real vibrations at the geometry and calculator of `atoms`, by central differences of `step` Å."""
    n = len(atoms)
    origin = atoms.positions.copy()
    hessian = np.zeros((3 * n, 3 * n))
    for i in range(3 * n):
        forces = []
        for sign in (1, -1):
            moved = origin.copy().reshape(-1)
            moved[i] += sign * step
            atoms.positions = moved.reshape(n, 3)
            forces.append(atoms.get_forces().reshape(-1))
        hessian[i] = (forces[1] - forces[0]) / (2 * step)
    atoms.positions = origin
    hessian = (hessian + hessian.T) / 2
    weight = 1 / np.sqrt(np.repeat(atoms.get_masses(), 3))
    stiffness, vectors = np.linalg.eigh(hessian * weight[:, None] * weight)
    real = stiffness > ZERO_MODE
    return Modes(np.maximum(stiffness[real], SOFTEST_MODE), (vectors * weight[:, None]).T[real].reshape(-1, n, 3))


def thermal(atoms: Atoms, modes: Modes, temperature: float, rng: np.random.Generator, rattle: float = 0.0) -> Array:
    """(N, 3) centred positions: a harmonic Boltzmann sample at `temperature` K (cut at 3 sigma) plus `rattle` Å."""
    amplitude = np.clip(rng.standard_normal(len(modes.stiffness)), -3, 3) * np.sqrt(kB * temperature / modes.stiffness)
    moved: Array = atoms.positions + np.tensordot(amplitude, modes.vectors, 1)
    moved = moved + rattle * rng.standard_normal((len(atoms), 3))
    moved -= moved.mean(0)
    return moved


def is_sane(numbers: NDArray[np.integer], positions: Array) -> bool:
    """Whether no two atoms are closer than 0.6 times the sum of their covalent radii."""
    distance = np.linalg.norm(positions[:, None] - positions[None], axis=-1) + 99 * np.eye(len(positions))
    return bool((distance > 0.6 * (covalent_radii[numbers][:, None] + covalent_radii[numbers][None])).all())


def names_in(earlier: Path | None, kind: str) -> list[str]:
    """The systems that an earlier file of a corpus holds: the list `kind` of its provenance; empty without a file."""
    if earlier is None:
        return []
    with h5py.File(earlier) as file:
        return list(json.loads(file.attrs["provenance"]).get(kind, []))


def missing(systems: Sequence[S], earlier: Path | None, kind: str) -> list[S]:
    """The systems that an earlier file does not hold, small ones first."""
    held = set(names_in(earlier, kind))
    return sorted((s for s in systems if s.smiles not in held), key=lambda s: basis_functions(s.smiles))


def with_one_round(systems: Sequence[S], earlier: Path | None, kind: str) -> list[S]:
    """The systems that an earlier file holds with the structures of the first round only, small ones first."""
    new = {system.smiles for system in missing(systems, earlier, kind)}
    return [system for system in missing(systems, earlier, SECOND_ROUND) if system.smiles not in new]


def molecule_parser(description: str | None) -> ArgumentParser:
    """The options of a generator of molecules."""
    made = parser(description)
    text = "label more structures of the systems that the file in --earlier holds, instead of new systems"
    made.add_argument("--second-round", action="store_true", help=text)
    return made


def chosen(args: Namespace, first: Sequence[S], second: Sequence[S], earlier: Path | None, kind: str) -> list[S]:
    """The systems that the options ask for: of the second round, or new ones; small ones first."""
    if args.second_round and earlier is None:
        raise SystemExit("--second-round adds structures to an earlier file: name its folder by --earlier")
    systems = with_one_round(second, earlier, kind) if args.second_round else missing(first, earlier, kind)
    return systems[: args.limit]


def basis_functions(smiles: str) -> int:
    """Of a molecule, about: 2 for a hydrogen, 15 for an atom of the second period, 19 for one of the third."""
    reactant = smiles.split(">>")[0]
    options = Chem.SmilesParserParams()
    options.removeHs = False
    numbers = [atom.GetAtomicNum() for atom in Chem.AddHs(Chem.MolFromSmiles(reactant, options)).GetAtoms()]
    return sum(2 if z == 1 else 15 if z < 11 else 19 for z in numbers)
