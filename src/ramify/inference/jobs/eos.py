"""`ramify eos`: equation of state of a crystal, by ASE."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator as AseCalculator
from ase.eos import EquationOfState
from numpy.typing import NDArray

from ramify.errors import RamifyError

Equation = Literal["birchmurnaghan", "vinet", "murnaghan"]


@dataclass(frozen=True, slots=True)
class EosResult:
    """An equation of state of one structure.

    Attributes:
        volumes, energies: (P,) Å³ and eV, calculated.
        volume, energy: Å³ and eV, at the minimum of the fit.
        bulk_modulus: GPa, at the minimum.
        curve: volumes and energies of the fit, for a figure.
    """

    volumes: NDArray[np.float64]
    energies: NDArray[np.float64]
    volume: float
    energy: float
    bulk_modulus: float
    curve: tuple[NDArray[np.float64], NDArray[np.float64]]

    def to_dict(self) -> dict[str, object]:
        """As plain data, with units in the names."""
        return {
            "volume_A3": self.volume,
            "energy_eV": self.energy,
            "bulk_modulus_GPa": self.bulk_modulus,
            "volumes_A3": self.volumes.tolist(),
            "energies_eV": self.energies.tolist(),
        }

    def draw(self, path: Path) -> None:
        """Writes a figure; the suffix sets the format."""
        from ramify.report.materials import save_energy_volume

        save_energy_volume(path, self.volumes, self.energies, self.curve, (self.volume, self.energy))


def equation_of_state(
    atoms: Atoms,
    calculator: AseCalculator,
    *,
    strain: float = 0.03,
    points: int = 9,
    equation: Equation = "birchmurnaghan",
) -> EosResult:
    """Energies of a crystal scaled uniformly, with constant fractional coordinates, and the fit to them.

    Args:
        atoms: three periodic axes; relaxed, or nearly so.
        calculator: calculator of the branch.
        strain: largest relative change of the lattice constants, in both directions.
        points: number of volumes, from 5.
        equation: equation by its name in ASE.

    Raises:
        RamifyError: an option is not accepted, the structure is not periodic, the minimum is outside the calculated
            volumes, or the branch cannot predict a structure.
    """
    if equation not in get_args(Equation):
        raise RamifyError(f"equation '{equation}' is unknown; accepted: {', '.join(get_args(Equation))}")
    if points < 5:
        raise RamifyError(f"points={points} is below 5: the fit has four parameters", fix="give 5 or more")
    if not 0 < strain < 0.5:
        raise RamifyError(f"strain={strain} is not between 0 and 0.5", fix="give e.g. 0.03")
    if not atoms.pbc.all():
        raise RamifyError(f"pbc {atoms.pbc.tolist()}: an equation of state needs three periodic axes")
    volumes, energies = [], []
    for scale in np.linspace(1 - strain, 1 + strain, points):
        scaled = atoms.copy()
        scaled.set_cell(atoms.cell.array * scale, scale_atoms=True)
        scaled.calc = calculator
        volumes.append(scaled.get_volume())
        energies.append(scaled.get_potential_energy())
    fit = EquationOfState(volumes, energies, eos=equation)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of NumPy and SciPy about fits that are refused below
            volume, energy, modulus = fit.fit(warn=False)
    except (RuntimeError, ValueError) as error:  # SciPy finds no optimum
        raise RamifyError(
            f"the energies do not fit an equation of state: {error}", fix="relax the cell first"
        ) from None
    if not (volumes[0] < volume < volumes[-1] and modulus > 0):
        raise RamifyError(
            f"the fit has its minimum at {volume:.2f} Å³, outside the calculated volumes ({volumes[0]:.2f} to "
            f"{volumes[-1]:.2f} Å³)",
            fix="relax the cell first, e.g. with `ramify relax --cell`, or give a larger --strain",
        )
    *_, grid, curve, _, _ = fit.getplotdata()
    found = (float(volume), float(energy), float(modulus / units.GPa))
    return EosResult(np.array(volumes), np.array(energies), *found, (np.asarray(grid), np.asarray(curve)))
