"""Dispersion by Grimme's D3 as a fixed correction of predictions, for branches whose labels lack it.

E = E_branch + E_D3; forces -dE/dx; stress the strain derivative per volume. D3: Grimme et al., doi:10.1063/1.3382344;
damping `bj`: doi:10.1002/jcc.21759; `mbj` and `mzero`: doi:10.1021/acs.jpclett.6b00780. Energies, parameters of the
functionals and periodic sums are those of simple-dftd3 (package `dftd3`, doi:10.21105/joss.07169), in Hartree and Bohr.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from ase.geometry import complete_cell
from ase.units import Bohr, Hartree
from numpy.typing import NDArray
from pydantic import ValidationError

from ramify.errors import RamifyError
from ramify.recipe.base import Keys
from ramify.recipe.validation_errors import mistakes
from ramify.structures import Structures

Floats = NDArray[np.float64]

CONTAINED = re.compile(
    r"(?<![A-Za-z0-9])D[234](?![0-9])|MBD|VV10|XDM|[Vv][Dd]W|[-+](D|V|TS)\b|DRSLL|\b3c\b|[Dd]ispersion"
)
"""Names of dispersion in a level of theory, e.g. ωB97M-D3(BJ), PBE0+MBD, ωB97M-V, OptB88vdW."""

EXAMPLE = "{functional: pbe, damping: bj}"


class DispersionOptions(Keys):
    """Keys of the correction."""

    functional: str
    """Functional of the labels by its name in simple-dftd3, e.g. `pbe`, `b3lyp`, `wb97x`; it selects the parameters."""
    damping: Literal["bj", "zero", "mbj", "mzero"]
    """Damping at short distances; each has parameters of its own."""
    three_body: bool = False
    """Whether the three-body term of Axilrod, Teller and Muto is added."""
    ignore_theory: bool = False
    """Add the correction also where the level of theory of the labels contains dispersion, is another, or is not
    stated."""


@dataclass(frozen=True, slots=True)
class Dispersion:
    """The correction. Made by `of`.

    Attributes:
        options: the keys.
        parameters: of the damping, an object of `dftd3`.
    """

    options: DispersionOptions
    parameters: Any

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> "Dispersion":
        """From keys, see `DispersionOptions`.

        Raises:
            RamifyError: an invalid key, a functional without parameters, or the package `dftd3` is missing.
        """
        if not isinstance(entry, Mapping):
            raise RamifyError(f"dispersion: found {entry!r:.80}", fix=f"give keys, e.g. {EXAMPLE}")
        try:
            options = DispersionOptions.model_validate(entry)
        except ValidationError as error:
            found = "\n  ".join(mistakes(error, DispersionOptions, "dispersion."))
            raise RamifyError(found, fix=f"give keys, e.g. {EXAMPLE}") from None
        try:
            from dftd3 import interface
        except ImportError as error:
            raise RamifyError(
                f"dispersion needs the package dftd3 ({error})", fix="pip install 'ramify[dispersion]'"
            ) from error
        damping = {
            "bj": interface.RationalDampingParam,
            "zero": interface.ZeroDampingParam,
            "mbj": interface.ModifiedRationalDampingParam,
            "mzero": interface.ModifiedZeroDampingParam,
        }[options.damping]
        try:
            return cls(options, damping(method=options.functional, atm=options.three_body))
        except RuntimeError as error:
            raise RamifyError(
                f"dispersion.functional: '{options.functional}' has no parameters for dispersion.damping: "
                f"{options.damping} ({error})",
                fix="name a functional of https://dftd3.readthedocs.io, or another damping",
            ) from None

    def must_fit(self, dataset: str, theory: str) -> None:
        """Checks that labels of a level of theory lack this correction.

        Raises:
            RamifyError: they contain dispersion, have another functional, or their theory is not stated; unless
                `ignore_theory`.
        """
        if self.options.ignore_theory:
            return
        if contained := CONTAINED.search(theory):
            why = f"is '{theory}', which contains dispersion ({contained[0].strip('-+')}): it would be counted twice"
        elif not theory:
            why = "is not stated, so that its labels may contain dispersion"
        elif _plain(self.options.functional) not in {_plain(t) for t in re.split(r"[^\w-]+", theory.replace("+", " "))}:
            why = f"is '{theory}', but the correction is that of the functional '{self.options.functional}'"
        else:
            return
        raise RamifyError(
            f"dispersion: the level of theory of dataset '{dataset}' {why}",
            fix="leave dispersion out, or add `ignore_theory: true` to it if this is intended",
        )

    def energies(self, structures: Structures) -> tuple[Floats, Floats, Floats]:
        """(S,) eV, forces (N, 3) eV/Å, and stress (S, 3, 3) eV/Å³, tension positive, NaN without a periodic axis.

        Raises:
            RamifyError: an element without parameters.
        """
        count, offsets = len(structures), structures.offsets
        energy, stress = np.zeros(count), np.full((count, 3, 3), np.nan)
        forces = np.zeros((len(structures.numbers), 3))
        for k in range(count):
            atoms, periodic = slice(offsets[k], offsets[k + 1]), structures.pbc[k].astype(bool)
            cell = complete_cell(structures.cell[k].astype(np.float64)) if periodic.any() else None
            found = self._of(structures.numbers[atoms], structures.positions[atoms], cell, periodic)
            energy[k] = Hartree * found["energy"]
            forces[atoms] = -Hartree / Bohr * found["gradient"]
            if cell is not None:
                stress[k] = Hartree * found["virial"] / abs(np.linalg.det(cell))
        return energy, forces, stress

    def _of(self, numbers: Any, positions: Any, cell: Floats | None, periodic: NDArray[np.bool_]) -> Mapping[str, Any]:
        from dftd3.interface import DispersionModel

        bohr = positions.astype(np.float64) / Bohr
        box = {} if cell is None else {"lattice": cell / Bohr, "periodic": periodic}
        try:
            return DispersionModel(numbers.astype(np.int64), bohr, **box).get_dispersion(self.parameters, grad=True)
        except RuntimeError as error:
            raise RamifyError(f"dispersion cannot be computed: {error}", fix="predict this structure without") from None


def _plain(name: str) -> str:
    """The name of a functional without signs that are written in different ways."""
    return name.lower().replace("ω", "w").replace("-", "")
