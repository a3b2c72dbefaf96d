"""Facts that records state in formats whose units are fixed and that read no charge or spin."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ramify.errors import RamifyError
from ramify.sources.base import DatasetOptions
from ramify.sources.quarantine import Quarantine
from ramify.sources.states import CHARGES, SPINS, UNREAD, states_unusual
from ramify.sources.units import PER_ATOM, known_unit, stated_units, unit_factor

FIXED = {"energy": "eV", "length": "Å", "forces": "eV/Å", "stress": "kBar"}
"""Units in which these formats are read; the stress where it is read."""


def remark_unread(place: str, names: Iterable[str], quarantine: Quarantine) -> None:
    """Records a remark for each array, among those that are not read, that may be a label, a cell, charge or spin.

    Args:
        place: of the arrays, for messages.
        names: of the arrays that are not read.
        quarantine: receives the remarks.
    """
    words = ("stress", "virial", "lattice", "cell", "pbc", "box")
    for name in sorted(names):
        if any(word in name.lower() for word in words) or name.lower() in (*CHARGES, *SPINS):
            quarantine.remark(f"{place}/{name}", f"array '{name}' not read")


class Stated:
    """Compares the facts of each record with the format, and counts charges and spins that are not read.

    Args:
        path: the file.
        options: recipe entry of the dataset.
        quarantine: receives the remark.
    """

    def __init__(self, path: Path, options: DatasetOptions, quarantine: Quarantine) -> None:
        self._path, self._options, self._quarantine = path, options, quarantine
        self._unread = 0

    def see(self, found: Mapping[str, Any], row: int | str, *, per_atom: bool = False, charge: Any = None) -> None:
        """Compares one record.

        Args:
            found: its named values.
            row: its place in the file, for messages.
            per_atom: whether its energy is read as an energy per atom.
            charge: charge that it states elsewhere.

        Raises:
            RamifyError: it states another unit than that of the format.
        """
        for kind, spelling in stated_units(found).items():
            unit = PER_ATOM.sub("", spelling) if per_atom and kind == "energy" else spelling
            known = known_unit(kind, unit) if kind in FIXED else None
            if kind in FIXED and (known is None or unit_factor(kind, known) != unit_factor(kind, FIXED[kind])):
                raise RamifyError(
                    f"{self._path}: record {row} states {spelling} as the unit of its {kind}; format "
                    f"'{self._options.format}' is read in {FIXED[kind]}",
                    fix="convert the file, or write it in a format with the key `units`, e.g. extxyz",
                )
        read = {"charge": self._options.charge is not None, "spin": self._options.spin is not None}
        self._unread += states_unusual(found if charge is None else {**found, "charge": charge}, read)

    def remark(self) -> None:
        """Records the number of structures whose charge or spin is not read."""
        if self._unread:
            text = "`charge` and `spin` of the recipe state those of a whole dataset; extxyz those of each structure"
            self._quarantine.remark(self._path.name, UNREAD, text, count=self._unread)
