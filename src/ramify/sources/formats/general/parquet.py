"""Parquet as the hubs of datasets ship it: ColabFit, LeMaterial, and tables with the columns of ASE.

ColabFit (https://materials.colabfit.org/docs/configuration_schema, /docs/units): eV, eV/Å, Å; `energy` is per structure
and conjugate to `atomic_forces`; the sign of `cauchy_stress` (eV/Å³) is not stated. LeMaterial (LeMat-Traj, LeMat-Bulk;
huggingface.co/LeMaterial): the names of OPTIMADE, eV, eV/Å, Å; the files state neither unit nor sign of
`stress_tensor`. A row is a structure.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from ramify.elements import NUMBERS
from ramify.errors import RamifyError, nearest
from ramify.sources.base import Format
from ramify.sources.chunks import MALFORMED_STRUCTURE, Record, UnusableError, as_floats, chunked
from ramify.sources.labels import FILE, AtomsOptions, Labeller
from ramify.sources.parsing.parquet_columns import column_types, rows
from ramify.sources.quarantine import Quarantine
from ramify.sources.where import COLUMNS
from ramify.structures import Structures

NOT_NORMALISED = "stress not divided by the volume, left out"


@dataclass(frozen=True)
class Layout:
    """Names of the columns of a publisher."""

    numbers: str
    positions: str
    cell: str
    pbc: str
    forces: str
    group: str | None = None
    theory: str | None = None


LAYOUTS = {
    "ColabFit": Layout("atomic_numbers", "positions", "cell", "pbc", "atomic_forces", theory="method"),
    "LeMaterial": Layout(
        "species_at_sites", "cartesian_site_positions", "lattice_vectors", "dimension_types", "forces",
        group="immutable_id", theory="functional",
    ),
    "ASE": Layout("numbers", "positions", "cell", "pbc", "forces"),
}  # fmt: skip


class Options(AtomsOptions):
    """Recipe keys of `format: parquet`. Names of forces and group are by default those of the publisher."""

    format: Literal["parquet"] = "parquet"
    """Parquet files of ColabFit or LeMaterial, or with columns `numbers`, `positions`, `cell` and `pbc`."""
    stress_key: str | None = None
    """Name of the stress; null reads none. `units` and `stress_sign` must then be stated, as no file states them."""

    @model_validator(mode="after")
    def _stress_is_described(self) -> Self:
        if self.stress_key is None:
            return self
        for name, given in (("stress_sign", self.model_fields_set), ("units.stress", self.units.model_fields_set)):
            if name.removeprefix("units.") not in given:
                raise ValueError(f"stress_key: '{self.stress_key}' needs `{name}`, which the files do not state")
        return self


def read(path: Path, options: Options, quarantine: Quarantine) -> Iterator[Structures]:
    """Yields all rows with an energy, with forces and stress if present.

    Raises:
        RamifyError: no such file, not of Parquet, damaged, other columns, or several levels of theory.
    """
    columns = column_types(path)
    layout = _layout(path, columns)
    own = {"forces_key": layout.forces, "group_key": layout.group}
    unset = {key: value for key, value in own.items() if key not in options.model_fields_set}
    options = options.model_copy(update=unset)
    wanted = _wanted(path, columns, options, layout)
    yield from chunked(_records(path, wanted, options, layout, quarantine), quarantine)


def _layout(path: Path, columns: dict[str, str]) -> Layout:
    for layout in LAYOUTS.values():
        if {layout.numbers, layout.positions} <= columns.keys():
            return layout
    accepted = "; ".join(f"{layout.numbers}, {layout.positions} ({name})" for name, layout in LAYOUTS.items())
    raise RamifyError(
        f"{path} has no columns of structures: it has {', '.join(columns) or 'none'}; accepted are {accepted}",
        fix="correct `path`, e.g. `co/*.parquet` of a dataset of ColabFit",
    )


def _wanted(path: Path, columns: dict[str, str], options: Options, layout: Layout) -> list[str]:
    """Columns to read: those of the layout that exist, and all that the recipe names."""
    named = {
        f"{label}_key": getattr(options, f"{label}_key")
        for label in ("energy", "forces", "stress", "virial", "group", "charge", "spin")
    }
    named |= {f"where.{name}": name for name in options.where if name not in (*COLUMNS, *options.by_column())}
    named |= {f"labels.{label}": name for label, name in options.labels.items()}
    for key, name in named.items():
        if key == "forces_key" or (key, name) == ("group_key", FILE):
            continue
        if name is not None and name not in columns:
            raise RamifyError(
                f"{path} has no column '{name}' (`{key}`){nearest(name, columns)}; it has {', '.join(columns)}",
                fix=f"set `{key}` to the name of a column" + ("" if key == "energy_key" else ", or leave it out"),
            )
    of_layout = (layout.numbers, layout.positions, layout.cell, layout.pbc, layout.theory)
    found = [*of_layout, *named.values(), "cauchy_stress_volume_normalized" if options.stress_key else None]
    return list(dict.fromkeys(name for name in found if name is not None and name in columns))


def _records(
    path: Path, wanted: list[str], options: Options, layout: Layout, quarantine: Quarantine
) -> Iterator[Record]:
    labeller = Labeller(path, options, quarantine)
    theory: Any = None
    for row, found in enumerate(rows(path, wanted)):
        try:
            geometry = _geometry(found, layout)
        except UnusableError as error:
            quarantine.add(f"{path.name}[{row}]", error.reason, error.detail)
            continue
        if (
            found.get("cauchy_stress_volume_normalized") is False
            and found.pop(str(options.stress_key), None) is not None
        ):
            quarantine.remark(f"{path.name}[{row}]", NOT_NORMALISED)
        record = labeller.record(found, **geometry, row=row)
        if record is None:
            continue
        stated = found.get(layout.theory) if layout.theory else None
        theory = stated if theory is None else theory
        if stated is not None and stated != theory:
            raise RamifyError(
                f"{path} has energies of '{theory}' and '{stated}' (`{layout.theory}`), which cannot be compared",
                fix=f"make one dataset of each: `where: {{{layout.theory}: {theory}}}`",
            )
        yield record
    labeller.check()


def _geometry(found: dict[str, Any], layout: Layout) -> dict[str, Any]:
    """Numbers, positions, cell and periodic axes of a row, which are taken out of it."""
    kinds = found.pop(layout.numbers)
    positions, cell, pbc = (found.pop(name, None) for name in (layout.positions, layout.cell, layout.pbc))
    if kinds is None or positions is None:
        raise UnusableError(MALFORMED_STRUCTURE, "no atoms")
    if len(kinds) and isinstance(kinds[0], str):
        numbers: NDArray[Any] = np.array([NUMBERS.get(symbol, 0) for symbol in kinds], np.int64)
    else:
        numbers = as_floats(kinds, MALFORMED_STRUCTURE, layout.numbers)
        if (numbers != np.floor(numbers)).any() or (np.abs(numbers) > 1000).any():
            raise UnusableError(MALFORMED_STRUCTURE, f"{layout.numbers} are not atomic numbers")
        numbers = numbers.astype(np.int64)
    box = np.zeros((3, 3)) if cell is None else as_floats(cell, MALFORMED_STRUCTURE, layout.cell)
    axes = np.zeros(3) if pbc is None else as_floats(np.asarray(pbc, np.float64), MALFORMED_STRUCTURE, layout.pbc)
    if box.size != 9 or axes.size != 3:
        raise UnusableError(MALFORMED_STRUCTURE, f"cell of {box.size} numbers, pbc of {axes.size}")
    return {
        "numbers": numbers,
        "positions": as_floats(positions, MALFORMED_STRUCTURE, layout.positions),
        "cell": np.nan_to_num(box.reshape(3, 3)),  # OPTIMADE: null along axes without periodicity
        "pbc": axes.reshape(3) > 0.5,
    }


FORMAT = Format(name="parquet", options=Options, read=read)
