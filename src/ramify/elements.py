"""Chemical elements: symbols, and numeric features from the periodic table."""

from functools import cache

import numpy as np
from ase import units
from ase.data import chemical_symbols, covalent_radii
from numpy.typing import NDArray

MAX_NUMBER = 118
SYMBOLS: tuple[str, ...] = tuple(chemical_symbols[: MAX_NUMBER + 1])
"""Symbol of each atomic number; index 0 is ASE's placeholder."""
NUMBERS: dict[str, int] = {symbol: number for number, symbol in enumerate(SYMBOLS) if number}

_NOBLE_GASES = (0, 2, 10, 18, 36, 54, 86, 118)


def period_and_group(number: int) -> tuple[int, int]:
    """Period 1..7 and group 1..18; lanthanides and actinides are in group 3.

    Source: IUPAC periodic table; derived from the noble gas that ends each period.
    """
    period = next(p for p in range(1, 8) if number <= _NOBLE_GASES[p])
    from_start = number - _NOBLE_GASES[period - 1]
    to_end = _NOBLE_GASES[period] - number
    if from_start <= 2 and not (period == 1 and from_start == 2):
        return period, from_start
    if to_end <= 15 and (to_end <= 5 or period >= 4):
        return period, 18 - to_end
    return period, 3


@cache
def element_features() -> NDArray[np.float64]:
    """(119, 28) features of the elements: one-hot period and group, filling of the f block, covalent radius.

    Row 0 is zero. The radius is ASE's covalent radius (Cordero et al., doi:10.1039/b801115j) / 1.5 Å - 1.
    """
    table = np.zeros((MAX_NUMBER + 1, 7 + 18 + 3))
    for number in range(1, MAX_NUMBER + 1):
        period, group = period_and_group(number)
        table[number, period - 1] = 1.0
        table[number, 7 + group - 1] = 1.0
        f_filling = number - _NOBLE_GASES[period - 1] - 2 if group == 3 and period >= 6 else 0
        table[number, 25] = float(0 < f_filling < 15)
        table[number, 26] = f_filling / 14.0
        table[number, 27] = covalent_radii[number] / 1.5 - 1.0
    return table


def all_electron_energy() -> NDArray[np.float64]:
    """(119,) eV, total energy of the isolated atom by atomic number, from the nuclear charge alone:

        E(Z) = -(0.768745 Z^(7/3) - Z²/2 + 0.269900 Z^(5/3)) Hartree

    (Thomas-Fermi with Scott's and Schwinger's corrections: Schwinger, Phys. Rev. A 22, 1827 (1980) and 24, 2353
    (1981)). The error is 0.5 % for carbon and 8 % for hydrogen; binding and, for the heaviest elements, relativity add
    up to 10 %.
    """
    z = np.arange(MAX_NUMBER + 1, dtype=np.float64)
    hartree: NDArray[np.float64] = -(0.768745 * z ** (7 / 3) - z**2 / 2 + 0.269900 * z ** (5 / 3))
    return hartree * units.Hartree
