"""Charge and spin of structures: the recipe keys that name or state them, and the checks common to all formats.

Charges are whole numbers of e. The spin is the multiplicity 2S+1, one more than the number of unpaired electrons; the
number of electrons, Σ Z - charge, is even if and only if the multiplicity is odd. A structure whose file states no
charge or spin has none (NaN): it is not taken for a neutral singlet, unless the recipe states that it is one.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from pydantic import model_validator

from ramify.sources.base import DatasetOptions
from ramify.sources.chunks import UnusableError, as_floats
from ramify.sources.quarantine import Quarantine
from ramify.structures import STATES, Structures

MALFORMED_CHARGE = "malformed charge"
MALFORMED_SPIN = "malformed spin"
NOT_A_CHARGE = "charge is not a whole number, or exceeds the nuclear charge"
NOT_A_MULTIPLICITY = "spin is not a multiplicity"
CONTRADICTION = "charge and spin contradict the number of electrons"
UNREAD = "charge or spin in the file, not read"

CHARGES, SPINS = ("charge", "total_charge"), ("spin", "multiplicity", "spin_multiplicity")
"""Common names of charge and multiplicity in files."""

Convention = Literal["multiplicity", "unpaired", "moments"]
CONVENTIONS: dict[str, Convention] = {
    "unpaired": "unpaired",
    "nupdown": "unpaired",  # VASP's key for the difference of spin up and down
    "uhf": "unpaired",  # that of xTB
    "magmom": "moments",
    "moment": "moments",
}
"""Parts of a name of the spin in a file, and the convention that they imply; other names imply the multiplicity."""

WHOLE = 0.01
"""Largest distance of a stated number from a whole number: files with three digits, but not another unit."""
WHOLE_MOMENT = 0.2
"""Largest distance of a sum of magnetic moments from a whole number, μB: moments of atoms are integrals over spheres,
which leave out some of the space between them."""


class StateOptions(DatasetOptions):
    """Recipe keys of the formats whose files may state charge and spin under any name."""

    charge_key: str | None = None
    """Name of the total charge (e, a whole number); null reads none. A structure without this value has no charge."""
    spin_key: str | None = None
    """Name of the spin; null reads none. A structure without this value has no spin."""
    spin_is: Literal["multiplicity", "unpaired", "moments"] | None = None
    """Meaning of the numbers under `spin_key`: the `multiplicity` 2S+1; the number of `unpaired` electrons 2S; magnetic
    `moments` in μB, of the structure or of its atoms, whose sum is 2S. Null: by the name, `unpaired` for names such as
    `unpaired_electrons`, `nupdown` and `uhf`, `moments` for names such as `magmoms`, else `multiplicity`; the store
    contains the result."""

    @model_validator(mode="before")
    @classmethod
    def _convention(cls, values: Any) -> Any:
        """States the convention that the name of the spin implies, for the manifest of the store."""
        if not isinstance(values, dict) or values.get("spin_is") is not None:
            return values
        key = values.get("spin_key")
        if not isinstance(key, str):
            return values
        return {
            **values,
            "spin_is": next((c for word, c in CONVENTIONS.items() if word in key.lower()), "multiplicity"),
        }

    def by_column(self) -> tuple[str, ...]:
        """See `DatasetOptions.by_column`."""
        named = {"charge": self.charge_key, "spin": self.spin_key}
        read = tuple(name for name in STATES if named[name] is not None or getattr(self, name) is not None)
        return read if self.names_values else STATES

    def charge_of(self, value: Any) -> float | None:
        """Charge in e from a value of a file; None for an absent one.

        Raises:
            UnusableError: not one number.
        """
        return None if value is None else _one(value, MALFORMED_CHARGE, "charge")

    def spin_of(self, value: Any) -> float | None:
        """Multiplicity from a value of a file; None for an absent one.

        Raises:
            UnusableError: not one number, moments that do not add up to a whole number, or negative unpaired electrons.
        """
        if value is None:
            return None
        if self.spin_is == "moments":
            total = abs(float(as_floats(value, MALFORMED_SPIN, "spin").sum()))
            if not abs(total - round(total)) <= WHOLE_MOMENT:
                raise UnusableError(NOT_A_MULTIPLICITY, f"the sum of the magnetic moments is {total:.4g} μB")
            return round(total) + 1.0
        return _one(value, MALFORMED_SPIN, "spin") + (1.0 if self.spin_is == "unpaired" else 0.0)


def _one(value: Any, reason: str, name: str) -> float:
    flat = as_floats(value, reason, name).reshape(-1)
    if flat.size != 1:
        raise UnusableError(reason, f"{flat.size} numbers instead of 1")
    return float(flat[0])


def states_unusual(found: Mapping[str, Any], read: Mapping[str, bool]) -> bool:
    """Whether named values of a structure state, under a common name, a charge or more than a singlet that is not read.

    Args:
        found: named values.
        read: by `charge` and `spin`, whether it is read or stated in the recipe.
    """

    def differs(names: tuple[str, ...], usual: float) -> bool:
        values = (np.asarray(found[name]) for name in names if name in found)
        return any(v.size == 1 and v.dtype.kind in "iuf" and float(v.reshape(-1)[0]) != usual for v in values)

    return (not read["charge"] and differs(CHARGES, 0.0)) or (not read["spin"] and differs(SPINS, 1.0))


def apply_states(chunk: Structures, options: DatasetOptions, quarantine: Quarantine) -> Structures:
    """Adds the charge and spin that the recipe states, and removes structures with impossible ones.

    - A structure without a charge or spin gets that of the keys `charge` and `spin` of the recipe, if they are stated.
    - Charges and multiplicities must be whole numbers (to 0.01, then rounded), the charge at most the nuclear charge,
      the multiplicity at least 1 and at most one more than the number of electrons.
    - If both are known, the multiplicity must be odd for an even number of electrons, and even for an odd one.
    """
    stated = {name: value for name in STATES if (value := getattr(options, name)) is not None}
    changed: dict[str, Any] = {
        name: np.where(np.isnan(getattr(chunk, name)), value, getattr(chunk, name)) for name, value in stated.items()
    }
    chunk = replace(chunk, **changed) if changed else chunk
    if np.isnan(chunk.charge).all() and np.isnan(chunk.spin).all():
        return chunk
    problems = impossible_states(chunk)
    for row, (reason, detail) in problems.items():
        quarantine.add(chunk.name(row), reason, detail)
    chunk = replace(chunk, charge=np.round(chunk.charge), spin=np.round(chunk.spin))
    return chunk.take(np.delete(np.arange(len(chunk)), list(problems))) if problems else chunk


def impossible_states(structures: Structures) -> dict[int, tuple[str, str]]:
    """Reason and detail for each structure with an impossible charge or spin; absent ones are possible."""
    charge, spin = structures.charge, structures.spin
    nuclear = np.bincount(structures.structure_of_atom, structures.numbers, minlength=len(structures))
    electrons = nuclear - np.where(np.isnan(charge), 0.0, np.round(charge))
    known = ~np.isnan(charge) & ~np.isnan(spin)
    odd = (electrons + np.where(known, np.round(spin), 0.0)) % 2 == 0  # both even, or both odd
    wrong_charge = ~np.isnan(charge) & (~(np.abs(charge - np.round(charge)) <= WHOLE) | (charge > nuclear + WHOLE))
    # a structure without a charge may be an ion: no limit follows from its nuclear charge
    most = np.where(np.isnan(charge), np.inf, electrons + 1)
    wrong_spin = ~np.isnan(spin) & (
        ~(np.abs(spin - np.round(spin)) <= WHOLE) | (spin < 1 - WHOLE) | (spin > most + WHOLE)
    )
    found: dict[int, tuple[str, str]] = {}
    for row in np.flatnonzero(wrong_charge | wrong_spin | (known & odd)).tolist():
        if wrong_charge[row]:
            found[row] = NOT_A_CHARGE, f"charge {charge[row]:.6g} e, nuclear charge {nuclear[row]:.0f}"
        elif wrong_spin[row]:
            zero = "; 0 may be a number of unpaired electrons: `spin_is: unpaired`" if abs(spin[row]) < WHOLE else ""
            found[row] = NOT_A_MULTIPLICITY, f"multiplicity {spin[row]:.6g}, accepted are 1, 2, 3, ...{zero}"
        else:
            found[row] = (
                CONTRADICTION,
                f"charge {charge[row]:.0f} leaves {electrons[row]:.0f} electrons, the multiplicity is {spin[row]:.0f}: "
                "one of them must be even, the other odd; if the file states unpaired electrons, `spin_is: unpaired`",
            )
    return found
