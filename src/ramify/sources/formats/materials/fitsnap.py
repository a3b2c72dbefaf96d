"""FitSNAP: a JSON file for each configuration, often after a line that begins with `#`.

Rohskopf et al., J. Open Source Softw. 8, 5118 (2023), doi:10.21105/joss.05118; https://fitsnap.github.io. The object
`Dataset` holds `Data` (a list of `Positions`, `Energy`, `Forces`, `Stress`, `Lattice`, `AtomTypes`) and the units of
each as `EnergyStyle`, ... Stresses follow LAMMPS's pressure, which is positive in compression.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ramify.elements import NUMBERS
from ramify.errors import RamifyError
from ramify.sources.base import DatasetOptions, Format
from ramify.sources.chunks import (
    MALFORMED_ENERGY,
    MALFORMED_FORCES,
    MALFORMED_STRESS,
    MALFORMED_STRUCTURE,
    Record,
    UnusableError,
    as_floats,
    chunked,
)
from ramify.sources.parsing.compressed import cut_short, open_bytes
from ramify.sources.parsing.stated import Stated
from ramify.sources.quarantine import Quarantine
from ramify.sources.units import STRESS_UNITS, known_unit
from ramify.structures import Structures

LARGEST = 32 << 20
"""Maximum bytes of a file; one configuration needs some thousands."""

_STYLES = {  # accepted styles of units by label
    "Energy": ("electronvolt", "ev"),
    "Forces": ("electronvoltperangstrom", "ev/angstrom", "ev/a"),
    "Positions": ("angstrom",),
    "Lattice": ("angstrom",),
}


class Options(DatasetOptions):
    """Recipe keys of `format: fitsnap`."""

    format: Literal["fitsnap"] = "fitsnap"
    """JSON files of FitSNAP: `path: JSON/*/*.json`."""
    stress_sign: Literal[1, -1] = -1
    """-1: compression is positive, as in the pressure of LAMMPS and VASP; 1: tension is positive."""


def read(path: Path, options: Options, quarantine: Quarantine) -> Iterator[Structures]:
    """Yields the configurations of one file; the group is the folder of the file, as in FitSNAP.

    Raises:
        RamifyError: the file is not of this layout, is damaged or truncated, or has unknown units.
    """
    dataset = load(path)
    styles = {name.lower(): value for name, value in dataset.items()}
    stress = STRESS_UNITS[_stress_unit(path, styles)] * options.stress_sign
    _check_styles(path, styles)
    stated = Stated(path, options, quarantine)
    yield from chunked(_records(path, dataset["Data"], stress, stated, quarantine), quarantine)
    stated.remark()


def load(path: Path) -> dict[str, Any]:
    """Returns the dataset of a file, whose `Data` is a list of configurations.

    Raises:
        RamifyError: the file is not of this layout, is damaged or truncated.
    """
    with open_bytes(path) as stream:
        text = stream.read(LARGEST + 1)
    if len(text) > LARGEST:
        raise RamifyError(
            f"{path} has more than {LARGEST >> 20} MiB, too large for one configuration", fix="correct `path`"
        )
    if text.lstrip().startswith(b"#"):
        text = text.lstrip().partition(b"\n")[2]
    try:
        whole = json.loads(text, object_pairs_hook=_without_repeats)
    except ValueError as error:
        if text.lstrip()[:1] == b"{" and not text.rstrip().endswith(b"}"):
            raise cut_short(path) from error
        raise RamifyError(
            f"{path} is not JSON, or ambiguous: {error}", fix="correct `path` or `format`, or download it again"
        ) from error
    dataset = whole.get("Dataset") if isinstance(whole, dict) else None
    data = dataset.get("Data") if isinstance(dataset, dict) else None
    if not isinstance(data, list) or not all(isinstance(entry, dict) for entry in data) or not data:
        keys = sorted(whole)[:6] if isinstance(whole, dict) else type(whole).__name__
        raise RamifyError(
            f"{path} is not of format 'fitsnap' ({{Dataset: {{Data: [{{Positions, Energy, ...}}]}}}}): it holds {keys}",
            fix="correct `path` or `format`",
        )
    assert isinstance(dataset, dict)
    return dataset


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; a key that occurs twice is an error, since parsers keep the last of its values."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
    return found


def _check_styles(path: Path, styles: dict[str, Any]) -> None:
    for label, accepted in _STYLES.items():
        stated = str(styles.get(f"{label}style".lower(), accepted[0])).lower()
        if stated not in accepted:
            raise RamifyError(
                f"{path} states {label}Style {stated!r}; read are {', '.join(accepted)}",
                fix=f"convert the file to {accepted[0]} first",
            )


def _stress_unit(path: Path, styles: dict[str, Any]) -> str:
    stated = str(styles.get("stressstyle", "bar"))
    unit = known_unit("stress", stated)
    if unit is None:
        raise RamifyError(f"{path} states StressStyle {stated!r}; known are bar, kB, GPa", fix="convert the file first")
    return unit


def _records(
    path: Path, data: list[dict[str, Any]], stress: float, stated: Stated, quarantine: Quarantine
) -> Iterator[Record]:
    origin = f"{path.resolve().parent.name}/{path.name}"
    for row, entry in enumerate(data):
        stated.see({name.lower(): value for name, value in entry.items()} | _states(entry), row)
        try:
            yield _record(entry, stress, path.resolve().parent.name, origin, row)
        except UnusableError as error:
            quarantine.add(f"{origin}[{row}]", error.reason, error.detail)


def _states(entry: dict[str, Any]) -> dict[str, float]:
    """Charge of the charges of all atoms, and 0 as the multiplicity of any spins, which is none."""
    charges = entry.get("Charges")
    known = isinstance(charges, list) and all(type(charge) in (int, float) for charge in charges)
    return {"charge": round(float(sum(charges)), 2) if known and charges is not None else 0.0} | (
        {"spin": 0.0} if entry.get("Spins") is not None else {}
    )


def _record(entry: dict[str, Any], stress: float, group: str, origin: str, row: int) -> Record:
    def numbers_of(key: str, reason: str) -> NDArray[np.float64] | None:
        return None if entry.get(key) is None else as_floats(entry[key], reason, key)

    symbols = entry.get("AtomTypes")
    if not isinstance(symbols, list) or not symbols or any(symbol not in NUMBERS for symbol in map(str, symbols)):
        raise UnusableError(MALFORMED_STRUCTURE, f"AtomTypes {str(symbols)[:60]} are not element symbols")
    positions, cell = numbers_of("Positions", MALFORMED_STRUCTURE), numbers_of("Lattice", MALFORMED_STRUCTURE)
    if positions is None or cell is None or cell.shape != (3, 3):
        raise UnusableError(MALFORMED_STRUCTURE, "no Positions, or no Lattice of 3x3")
    if entry.get("NumAtoms", len(symbols)) != len(symbols):
        raise UnusableError(MALFORMED_STRUCTURE, f"NumAtoms is {entry['NumAtoms']}, AtomTypes has {len(symbols)}")
    energy, pressure = numbers_of("Energy", MALFORMED_ENERGY), numbers_of("Stress", MALFORMED_STRESS)
    if energy is not None and energy.size != 1:
        raise UnusableError(MALFORMED_ENERGY, f"{energy.size} numbers instead of 1")
    return Record(
        numbers=np.array([NUMBERS[symbol] for symbol in map(str, symbols)]),
        positions=positions,
        energy=None if energy is None else float(energy.reshape(-1)[0]),
        forces=numbers_of("Forces", MALFORMED_FORCES),
        stress=None if pressure is None else pressure * stress,
        cell=cell,  # rows are lattice vectors
        pbc=np.ones(3, np.bool_),
        group=group,
        origin=origin,
        row=row,
    )


FORMAT = Format(name="fitsnap", options=Options, read=read)
