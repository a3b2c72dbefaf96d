"""`ramify phonons`: harmonic phonons of a crystal by finite displacements, with phonopy.

phonopy (https://phonopy.github.io/phonopy) is an optional dependency.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator as AseCalculator
from numpy.typing import NDArray

from ramify.errors import RamifyError, RamifyWarning

MESH = 15
"""Points along each axis of the mesh of the density of states, for a primitive cell of about 4 Å."""

LARGE_FORCE = 0.01
"""eV/Å; above it the structure is not at a minimum, where phonons are defined."""


@dataclass(frozen=True, slots=True)
class Phonons:
    """Phonons of one crystal.

    Attributes:
        at: (Q,) position along the path of ASE's `BandPath`.
        frequencies: (Q, bands) THz; imaginary ones are negative.
        ticks: position and name of the special points.
        dos: frequencies in THz, and states per THz and primitive cell.
        phonopy: the object of phonopy, with displacements, forces and force constants.
    """

    at: NDArray[np.float64]
    frequencies: NDArray[np.float64]
    ticks: list[tuple[float, str]]
    dos: tuple[NDArray[np.float64], NDArray[np.float64]]
    phonopy: Any

    def to_dict(self) -> dict[str, object]:
        """As plain data, with units in the names."""
        return {
            "lowest_frequency_THz": float(self.frequencies.min()),
            "highest_frequency_THz": float(self.frequencies.max()),
            "displaced_supercells": len(self.phonopy.supercells_with_displacements),
            "special_points": [{"at": at, "name": name} for at, name in self.ticks],
            "at": self.at.tolist(),
            "frequencies_THz": self.frequencies.tolist(),
            "dos_frequencies_THz": self.dos[0].tolist(),
            "dos_per_THz": self.dos[1].tolist(),
        }

    def draw(self, path: Path) -> None:
        """Writes a figure of the bands and the density of states; the suffix sets the format."""
        from ramify.report.materials import save_bands

        save_bands(path, self.at, self.frequencies, self.ticks, self.dos)


def phonons(
    atoms: Atoms,
    calculator: AseCalculator,
    *,
    supercell: tuple[int, int, int] = (2, 2, 2),
    distance: float = 0.01,
    points: int = 100,
) -> Phonons:
    """Force constants from displaced atoms in a supercell, bands along ASE's path, and the density of states.

    Args:
        atoms: a relaxed crystal with three periodic axes; phonopy finds its primitive cell and its symmetry.
        calculator: calculator of the branch, best in float64.
        supercell: repetitions of the cell along its three lattice vectors.
        distance: Å, of the displacements.
        points: number of q-points along the path.

    Raises:
        RamifyError: phonopy is missing, the structure is not periodic, or the branch cannot predict a structure.

    Warns:
        RamifyWarning: forces on the undisplaced atoms.
    """
    try:
        from phonopy import Phonopy
        from phonopy.structure.atoms import PhonopyAtoms
    except ImportError as error:
        fix = "install it: pip install 'ramify[phonons]'"
        raise RamifyError(f"phonopy cannot be imported: {error}", fix=fix) from None
    if not atoms.pbc.all():
        raise RamifyError(f"pbc {atoms.pbc.tolist()}: phonons need three periodic axes")
    largest = float(np.abs(_forces(atoms, calculator)).max())
    if largest > LARGE_FORCE:
        warnings.warn(
            f"the largest force on the atoms is {largest:.3f} eV/Å: relax the structure before its phonons",
            RamifyWarning,
            stacklevel=2,
        )
    cell = PhonopyAtoms(
        numbers=atoms.numbers, cell=atoms.cell.array, scaled_positions=atoms.get_scaled_positions(wrap=False)
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "primitive_matrix")  # that "auto" finds another cell than older versions
        work: Any = Phonopy(cell, supercell_matrix=np.diag(supercell), primitive_matrix="auto", log_level=0)
    work.generate_displacements(distance=distance)
    work.forces = np.array([_forces(_atoms(moved), calculator) for moved in work.supercells_with_displacements])
    work.produce_force_constants()
    work.symmetrize_force_constants()
    primitive = _atoms(work.primitive)
    path = primitive.cell.bandpath(npoints=points)
    at, places, names = path.get_linear_kpoint_axis()
    work.run_band_structure([path.kpts])
    work.run_mesh(np.maximum(1, np.rint(MESH * 4.0 / primitive.cell.lengths()).astype(int)), is_gamma_center=True)
    work.run_total_dos()
    dos = (np.asarray(work.total_dos.frequency_points), np.asarray(work.total_dos.dos))
    ticks: dict[float, str] = {}
    for place, name in zip(places.tolist(), names, strict=True):
        name = "Γ" if name == "G" else str(name)
        ticks[place] = f"{ticks[place]}|{name}" if place in ticks else name  # the path jumps from one to the other
    return Phonons(np.asarray(at), np.asarray(work.band_structure.frequencies[0]), list(ticks.items()), dos, work)


def _forces(atoms: Atoms, calculator: AseCalculator) -> NDArray[np.float64]:
    copy = atoms.copy()
    copy.set_constraint()
    copy.calc = calculator
    return np.asarray(copy.get_forces())


def _atoms(cell: Any) -> Atoms:
    """Atoms of phonopy as atoms of ASE."""
    return Atoms(numbers=cell.numbers, cell=cell.cell, scaled_positions=cell.scaled_positions, pbc=True)
