"""Units of a file: those set in the recipe, and those stated in the file."""

import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from ase import units
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, field_validator

from ramify.errors import RamifyError

ENERGY_UNITS = {
    "eV": 1.0,
    "meV": 1e-3,
    "Hartree": units.Hartree,
    "Rydberg": units.Rydberg,
    "kcal/mol": units.kcal / units.mol,
    "kJ/mol": units.kJ / units.mol,
}
BELOW_ALL = 1.3
"""Multiple of the all-electron energy (`ramify.elements.all_electron_energy`) that is impossible."""
SAME_PART = 0.06
"""Tolerance of the ratio between structures, and to the ratio of two units, for detecting the unit."""
LENGTH_UNITS = {"Å": 1.0, "Angstrom": 1.0, "bohr": units.Bohr}
STRESS_UNITS = {
    "eV/Å³": 1.0,
    "eV/A^3": 1.0,
    "GPa": units.GPa,
    "kBar": 0.1 * units.GPa,
    "bar": 1e-4 * units.GPa,
    "Hartree/bohr³": units.Hartree / units.Bohr**3,
}

_SPELLINGS = {  # spellings of units in files, in lower case, with the names above
    "energy": {
        "ev": "eV",
        "electronvolt": "eV",
        "mev": "meV",
        "ha": "Hartree",
        "eh": "Hartree",
        "au": "Hartree",
        "a.u.": "Hartree",
        "hartree": "Hartree",
        "ry": "Rydberg",
        "rydberg": "Rydberg",
        "kcal/mol": "kcal/mol",
        "kj/mol": "kJ/mol",
    },
    "length": {
        **dict.fromkeys(("å", "a", "ang", "angs", "angstrom", "angstroms"), "Å"),
        **dict.fromkeys(("bohr", "au", "a.u.", "a0"), "bohr"),
    },
    "stress": {
        **dict.fromkeys(("gpa", "gigapascal"), "GPa"),
        **dict.fromkeys(("kbar", "kb", "kilobar"), "kBar"),
        **dict.fromkeys(("bar", "bars"), "bar"),
        **{f"ev/{length}{cube}": "eV/Å³" for length in ("å", "a", "ang", "angstrom") for cube in ("³", "^3", "**3")},
        **{f"ev/{length}/{length}/{length}": "eV/Å³" for length in ("å", "a", "ang", "angstrom")},
        **{f"{ha}/bohr{cube}": "Hartree/bohr³" for ha in ("ha", "hartree") for cube in ("³", "^3", "**3")},
    },
}


QUANTITIES = {  # names, in lower case, for which files state units, as in `energy_unit` or `unit_of_length`
    "energy": ("energy", "energies", "e"),
    "length": ("length", "lengths", "distance", "position", "positions", "coordinates", "cell", "lattice", "r"),
    "forces": ("forces", "force", "f", "gradient", "gradients"),
    "stress": ("stress", "stresses"),
    "virial": ("virial", "virials"),
}
_UNIT_OF = re.compile(r"(?P<before>.+?)[_ -]?units?|units?[_ -](of[_ -])?(?P<after>.+)", re.IGNORECASE)
PER_ATOM = re.compile(r"(/|[_ ]*per[_ ]+)\s*atom$", re.IGNORECASE)


def _composed(value: Any) -> Any:
    """Normalises `Å`, which may be typed as the ångström sign or as A with ring."""
    return unicodedata.normalize("NFC", value) if isinstance(value, str) else value


class Units(BaseModel):
    """Units of a file. Few files state them; the energy-force slope does not detect a common factor of both."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    energy: Literal["eV", "meV", "Hartree", "Rydberg", "kcal/mol", "kJ/mol"] = "eV"
    """Unit of energies and of the virial."""
    length: Annotated[Literal["Å", "Angstrom", "bohr"], BeforeValidator(_composed)] = "Å"
    """Unit of positions and cells."""
    forces: Annotated[str | None, BeforeValidator(_composed)] = None
    """Unit of forces if it is not energy/length, e.g. `Hartree/bohr` with positions in Å."""
    stress: Annotated[Literal["eV/Å³", "eV/A^3", "GPa", "kBar", "bar", "Hartree/bohr³"], BeforeValidator(_composed)] = (
        "eV/Å³"
    )
    """Unit of the stress; `eV/A^3` is `eV/Å³`."""

    @field_validator("forces")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is not None:
            energy, _, length = value.rpartition("/")
            if energy not in ENERGY_UNITS or length not in LENGTH_UNITS:
                raise ValueError(f"'{value}' is not one of {list(ENERGY_UNITS)} over one of {list(LENGTH_UNITS)}")
        return value

    @property
    def energy_factor(self) -> float:
        """Factor to eV."""
        return ENERGY_UNITS[self.energy]

    @property
    def length_factor(self) -> float:
        """Factor to Å."""
        return LENGTH_UNITS[self.length]

    @property
    def forces_factor(self) -> float:
        """Factor to eV/Å."""
        energy, _, length = (self.forces or f"{self.energy}/{self.length}").rpartition("/")
        return ENERGY_UNITS[energy] / LENGTH_UNITS[length]

    @property
    def stress_factor(self) -> float:
        """Factor to eV/Å³."""
        return STRESS_UNITS[self.stress]


def stated_units(found: Mapping[str, Any], **keys: str | None) -> dict[str, str]:
    """Units stated by named values such as `energy_unit`, `units_of_length`, or a mapping `units: {energy: eV}`.

    Args:
        found: named values of a file or structure.
        **keys: names in the file of `energy`, `forces`, `stress`, `virial`; `dft_energy_unit` is that of `dft_energy`,
            and goes before `energy_unit`.
    """
    named: dict[str, str] = {}
    for name, value in found.items():
        lowered = name.lower()
        if "unit" not in lowered or lowered.startswith(("unit_cell", "unitcell")):
            continue
        if isinstance(value, Mapping):
            named |= {str(quantity).lower(): str(unit) for quantity, unit in value.items() if unit}
        elif (match := _UNIT_OF.fullmatch(lowered)) and isinstance(value, str | bytes) and value:
            named[match["before"] or match["after"]] = value.decode() if isinstance(value, bytes) else value
    if not named:
        return {}
    stated: dict[str, str] = {}
    for kind, usual in QUANTITIES.items():
        unit = next((named[name] for name in ((keys.get(kind) or kind).lower(), *usual) if name in named), None)
        stated |= {} if unit is None else {kind: unit}
    return stated


def units_in_names(recipe: Units, **keys: str | None) -> dict[str, str]:
    """Units in the names of labels, e.g. `stress_GPa`, `forces_eV/Å`, `energy_kcal/mol_per_atom`.

    Args:
        recipe: units of the recipe; where it sets a unit, that of the name is ignored.
        **keys: names in the file of `energy`, `forces`, `stress`.
    """
    found = {}
    for kind, key in keys.items():
        name, per_atom = PER_ATOM.subn("", key or "")
        words = re.split(r"[_\s()\[\]]+(?:per_)?", name.rstrip(")] "))[1:]  # the first is the quantity
        tried = ["/".join(words[-2:]), *words[-1:]] if kind == "forces" else words[-1:]
        unit = next((word for word in tried if known_unit(kind, word)), "")
        if kind in recipe.model_fields_set:
            unit = ""
        if unit or per_atom:
            found[kind] = unit + "/atom" * per_atom
    return found


def with_stated(
    path: Path, recipe: Units, stated: Mapping[str, str | None], *, energy_is_per_atom: bool = False
) -> Units:
    """Merges the units of the recipe with those stated in the file.

    A unit that the recipe does not set is taken from the file; if both state a unit, they must agree.

    Args:
        path: the file, for messages.
        recipe: units of the recipe.
        stated: units of `energy`, `length`, `forces`, `stress` as spelled in the file; None if not stated.
        energy_is_per_atom: whether the recipe reads energies per atom; a file may state it, as in `eV/atom`.

    Raises:
        RamifyError: the recipe contradicts the file, or the file states an unknown unit and the recipe none.
    """
    taken: dict[str, str] = {}
    for kind, spelling in stated.items():
        if spelling is None:
            continue
        if kind == "energy" and PER_ATOM.search(spelling):
            if not energy_is_per_atom:
                raise RamifyError(
                    f"{path} states its energy {'in ' + spelling if spelling[0] != '/' else 'per atom'}, the recipe "
                    "reads total energies",
                    fix="set `energy_is_per_atom: true`",
                )
            spelling = PER_ATOM.sub("", spelling)
            if not spelling:
                continue
        name = known_unit(kind, spelling)
        by_recipe = kind in recipe.model_fields_set
        if name is None and not by_recipe:
            raise RamifyError(
                f"{path} states its {kind} in {spelling!r}, which is not a known unit ({', '.join(_known(kind))})",
                fix=f"set `units: {{{kind}: ...}}` to the correct unit",
            )
        if name is None:  # the recipe defines the unit
            continue
        if not by_recipe:
            taken[kind] = name
        elif unit_factor(kind, name) != unit_factor(kind, getattr(recipe, kind)):
            raise RamifyError(
                f"{path} states that its {kind} is in {spelling}, the recipe reads it as {getattr(recipe, kind)}",
                fix=f"set `units: {{{kind}: {name}}}`, or remove the key: the unit of the file is then used",
            )
    return recipe.model_copy(update=taken) if taken else recipe


def known_unit(kind: str, spelling: str) -> str | None:
    """Recipe name of a unit of `energy`, `length`, `forces` or `stress` as spelled in a file, or None if unknown."""
    text = unicodedata.normalize("NFC", spelling).strip().lower().replace(" ", "")
    if kind == "forces":
        energy, _, length = text.rpartition("/")
        parts = _SPELLINGS["energy"].get(energy), _SPELLINGS["length"].get(length)
        return f"{parts[0]}/{parts[1]}" if all(parts) else None
    return _SPELLINGS[kind].get(text)


def unit_factor(kind: str, name: str) -> float:
    """Factor from a unit of recipes to eV, Å, eV/Å or eV/Å³."""
    return float(getattr(Units.model_validate({kind: name}), f"{kind}_factor"))


def unit_of_ratio(ratio: NDArray[np.float64]) -> str:
    """Unit other than eV whose ratio to eV is `ratio` (S,) in nearly all structures; empty if none."""
    return next((name for name, eV in ENERGY_UNITS.items() if name != "eV" and same_ratio(ratio, eV)), "")


def same_ratio(values: NDArray[np.float64], expected: float) -> bool:
    """Whether nearly all values (S,) are `expected` to `SAME_PART`."""
    low, high = np.quantile(np.nan_to_num(values / expected), (0.1, 0.9))
    return bool(low > 1 - SAME_PART and high < 1 + SAME_PART)


def _known(kind: str) -> tuple[str, ...]:
    tables: dict[str, dict[str, float]] = {"energy": ENERGY_UNITS, "length": LENGTH_UNITS, "stress": STRESS_UNITS}
    return tuple(tables[kind]) if kind in tables else tuple(f"{e}/Å" for e in ENERGY_UNITS)
