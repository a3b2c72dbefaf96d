"""QCML, the feature group `dft_force_field`: TFRecord files of molecules at PBE0.

Ganscha et al., Scientific Data 12, 406 (2025), doi:10.1038/s41597-025-04720-7. A record holds `atomic_numbers`,
`positions`, `pbe0_energy`, `pbe0_formation_energy`, `pbe0_forces` (Hartree, Hartree/bohr), `charge`, `multiplicity` and
`is_outlier`. Numbers are float32, whose spacing at a total energy of 2,400 Hartree is 7 meV: by default the formation
energy is read, which differs from the total by constants per element and is consistent with the same forces.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from ase.units import Bohr, Hartree
from numpy.typing import NDArray

from ramify.errors import RamifyError
from ramify.sources.base import DatasetOptions, Format
from ramify.sources.chunks import (
    MALFORMED_STRUCTURE,
    NOT_COMPUTED,
    Record,
    UnusableError,
    check_numbers,
    chunked,
    composition,
)
from ramify.sources.parsing.tfrecord import Feature, WireError, parse_example, records
from ramify.sources.quarantine import Quarantine
from ramify.sources.units import LENGTH_UNITS
from ramify.structures import Structures

ENERGIES = {"formation": "pbe0_formation_energy", "total": "pbe0_energy"}
NEEDED = ("atomic_numbers", "positions")


class Options(DatasetOptions):
    """Recipe keys of `format: qcml`."""

    reads_states: ClassVar[bool] = True

    format: Literal["qcml"] = "qcml"
    """TFRecord files of `qcml/dft_force_field`: `path: dft_force_field/1.0.0/*.tfrecord-*`."""
    length: Literal["Å", "bohr"]
    """Unit of the positions. The files do not state it: a C-H bond is 1.1 Å, or 2.1 bohr."""
    energy: Literal["formation", "total"] = "formation"
    """`formation`: relative to atoms; `total`: as computed, accurate only to some meV in float32."""
    outliers: Literal["drop", "keep"] = "drop"
    """Whether to keep or drop records marked by the publisher (`is_outlier`)."""


def read(path: Path, options: Options, quarantine: Quarantine) -> Iterator[Structures]:
    """Yields all molecules; the group is the composition.

    Raises:
        RamifyError: no such file, not a TFRecord file of this feature group, damaged, or truncated.
    """
    yield from chunked(_records(path, options, quarantine), quarantine)


def _records(path: Path, options: Options, quarantine: Quarantine) -> Iterator[Record]:
    for row, data in enumerate(records(path)):
        try:
            found = parse_example(data)
        except WireError as error:
            raise _other_layout(path, row, str(error)) from error
        if row == 0 and not {*NEEDED, ENERGIES[options.energy], "pbe0_forces"} <= found.keys():
            raise _other_layout(path, row, f"it holds {', '.join(sorted(found)[:12]) or 'nothing'}")
        if options.outliers == "drop" and _integer(found, "is_outlier"):
            quarantine.add(f"{path.name}[{row}]", "marked as an outlier by the publisher (outliers)")
            continue
        try:
            yield _record(found, options, path.name, row)
        except UnusableError as error:
            quarantine.add(f"{path.name}[{row}]", error.reason, error.detail)


def _record(found: Mapping[str, Feature], options: Options, origin: str, row: int) -> Record:
    stated = _numbers(found, "atomic_numbers")
    check_numbers(stated)
    numbers = stated.astype(np.int64)
    positions, forces = _numbers(found, "positions"), _numbers(found, "pbe0_forces")
    energy = _numbers(found, ENERGIES[options.energy])
    if positions.size != 3 * len(numbers):
        raise UnusableError(MALFORMED_STRUCTURE, f"{len(numbers)} atoms, {positions.size} numbers of positions")
    if energy.size != 1 or not forces.size:
        raise UnusableError(NOT_COMPUTED, f"{energy.size} energies, {forces.size} numbers of forces")
    return Record(
        numbers=numbers,
        positions=positions.astype(np.float64).reshape(-1, 3) * LENGTH_UNITS[options.length],
        energy=float(energy[0]) * Hartree,
        forces=forces.astype(np.float64).reshape(-1, 3 if forces.size % 3 == 0 else 1) * (Hartree / Bohr),
        charge=_stated(found, "charge"),
        spin=_stated(found, "multiplicity"),
        group=composition(numbers),
        origin=origin,
        row=row,
    )


def _numbers(found: Mapping[str, Feature], name: str) -> NDArray[Any]:
    value = found.get(name)
    return value if isinstance(value, np.ndarray) else np.zeros(0)


def _integer(found: Mapping[str, Feature], name: str) -> int:
    value = _numbers(found, name)
    return int(value[0]) if value.size else 0


def _stated(found: Mapping[str, Feature], name: str) -> float | None:
    """A number of a record; None where it is absent."""
    value = _numbers(found, name)
    return float(value[0]) if value.size else None


def _other_layout(path: Path, row: int, what: str) -> RamifyError:
    return RamifyError(
        f"{path}: record {row} is not of format 'qcml' ({', '.join((*NEEDED, *ENERGIES.values(), 'pbe0_forces'))}): "
        f"{what}",
        fix="correct `path`: the feature group dft_force_field is required",
    )


FORMAT = Format(name="qcml", options=Options, read=read, theory="PBE0, FHI-aims")
