"""NumPy sets of DeePMD-kit: a folder with `type.raw`, `type_map.raw` and `set.*/coord.npy`, `energy.npy`, ...

Wang et al., Comput. Phys. Commun. 228, 178 (2018), doi:10.1016/j.cpc.2018.03.016;
https://docs.deepmodeling.com/projects/deepmd/en/stable/data/system.html. A set holds R frames: `coord` (R, 3 n) Å,
`box` (R, 9) Å with lattice vectors as rows, `energy` (R,) eV, `force` (R, 3 n) eV/Å, `virial` (R, 9) eV, which is
-dE/dε. The file `nopbc` marks systems without periodicity. In the mixed form `real_atom_types.npy` (R, n) contains the
types of every frame, padded by -1.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from ramify.elements import NUMBERS
from ramify.errors import RamifyError, nearest
from ramify.sources.base import Format
from ramify.sources.chunks import (
    MALFORMED_STRUCTURE,
    STRESS_WITHOUT_CELL,
    Record,
    UnusableError,
    as_floats,
    check_numbers,
    chunked,
)
from ramify.sources.parsing.stated import remark_unread
from ramify.sources.quarantine import Quarantine
from ramify.sources.states import StateOptions
from ramify.structures import Structures

TYPES = "type.raw"
"""The file that represents its system."""


class Options(StateOptions):
    """Recipe keys of `format: deepmd`. `charge_key` and `spin_key` name arrays of the sets: `NAME` for `NAME.npy` with
    a number for each frame, or `NAME:COLUMN` for a column of an array with several, e.g. `fparam:0`."""

    reads_states: ClassVar[bool] = True

    format: Literal["deepmd"] = "deepmd"
    """Systems in DeePMD-kit's NumPy format: `path` lists folders, or their `type.raw`."""
    type_map: list[str] | None = None
    """Elements of the types 0, 1, ... for systems without `type_map.raw`."""


def companions(path: Path, options: Options) -> list[Path]:
    """The other files of a system."""
    files = [path.parent / name for name in ("type_map.raw", "nopbc")]
    return [file for file in (*files, *array_files(path)) if file.is_file()]


def array_files(path: Path) -> list[Path]:
    """The arrays of all sets of a system, named by its folder or its `type.raw`."""
    return sorted((path.parent if path.name == TYPES else path).glob("set.*/*.npy"))


def read(path: Path, options: Options, quarantine: Quarantine) -> Iterator[Structures]:
    """Yields all frames of all sets of one system, whose folder is the group.

    Raises:
        RamifyError: no `type.raw`, no set, unknown elements, or inconsistent arrays.
    """
    folder = path.parent if path.name == TYPES else path
    if not folder.exists():
        raise RamifyError(f"{folder} does not exist", fix="correct `path`")
    if not (folder / TYPES).is_file():
        raise RamifyError(f"{folder} is not a system of DeePMD-kit: it has no {TYPES}", fix="correct `path`")
    numbers = _type_numbers(folder, options)
    sets = sorted(member for member in folder.glob("set.*") if member.is_dir())
    if not sets:
        raise RamifyError(
            f"{folder} has no folder set.*", fix="correct `path`; the form `raw` has to be converted first"
        )
    yield from chunked(
        (record for member in sets for record in _records(folder, member, numbers, options, quarantine)), quarantine
    )


def _type_numbers(folder: Path, options: Options) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(n,) types of the atoms, and the atomic number of each type."""
    try:
        types = np.array((folder / TYPES).read_text().split(), np.int64)
    except (ValueError, OSError, OverflowError) as error:
        raise _damaged(folder / TYPES, error) from error
    listed = folder / "type_map.raw"
    names = listed.read_text().split() if listed.is_file() else options.type_map
    if options.type_map is not None and names != options.type_map:
        raise RamifyError(
            f"{listed} names the types {names}, the recipe {options.type_map} (`type_map`)", fix="leave `type_map` out"
        )
    if names is None:
        raise RamifyError(
            f"{folder} has no type_map.raw: the elements of its types {sorted(set(types.tolist()))} are unknown",
            fix="state them in order, e.g. `type_map: [O, H]`",
        )
    unknown = [name for name in names if name not in NUMBERS]
    if unknown or (len(types) and not 0 <= types.min() <= types.max() < len(names)):
        raise RamifyError(
            f"{folder}: the types {sorted(set(types.tolist()))} do not fit the names {names}"
            + (f", of which {unknown} are not element symbols" if unknown else ""),
            fix="correct type_map.raw, or the system",
        )
    return types, np.array([NUMBERS[name] for name in names], np.int64)


def _records(
    folder: Path,
    member: Path,
    kinds: tuple[NDArray[np.int64], NDArray[np.int64]],
    options: Options,
    quarantine: Quarantine,
) -> Iterator[Record]:
    types, numbers = kinds
    arrays = _arrays(member, len(types), periodic=not (folder / "nopbc").exists())
    states = {
        name: None if key is None else _frame_values(member, name, key, len(arrays["coord"]))
        for name, key in (("charge", options.charge_key), ("spin", options.spin_key))
    }
    origin = f"{folder.name}/{member.name}"
    named = {str(key).partition(":")[0] for key in (options.charge_key, options.spin_key)}
    remark_unread(origin, {file.stem for file in member.glob("*.npy")} - arrays.keys() - named - {"box"}, quarantine)
    for row in range(len(arrays["coord"])):
        try:
            z = numbers[types]
            present = np.ones(len(types), np.bool_)
            if "real_atom_types" in arrays:
                real = arrays["real_atom_types"][row].astype(np.int64)
                present = real >= 0
                if real.max(initial=-1) >= len(numbers) or real.min(initial=0) < -1:
                    raise UnusableError(MALFORMED_STRUCTURE, f"types {real.min()} to {real.max()} of {len(numbers)}")
                z = numbers[real[present]]
            check_numbers(z)
            record = _record(arrays, row, z, present, folder.name, origin, quarantine)
            charge, spin = (None if values is None else values[row] for values in states.values())
            yield replace(record, charge=options.charge_of(charge), spin=options.spin_of(spin))
        except UnusableError as error:
            quarantine.add(f"{origin}[{row}]", error.reason, error.detail)


def _record(
    arrays: dict[str, NDArray[Any]],
    row: int,
    numbers: NDArray[np.int64],
    present: NDArray[np.bool_],
    group: str,
    origin: str,
    quarantine: Quarantine,
) -> Record:
    def taken(name: str) -> NDArray[np.float64] | None:
        return as_floats(arrays[name][row], MALFORMED_STRUCTURE, name) if name in arrays else None

    box, energy, force, virial = (taken(name) for name in ("box", "energy", "force", "virial"))
    cell = None if box is None else box.reshape(3, 3)
    stress = None
    if virial is not None:
        volume = 0.0 if cell is None else abs(float(np.linalg.det(cell)))
        if volume:
            stress = -virial.reshape(3, 3) / volume
        else:
            quarantine.remark(f"{origin}[{row}]", STRESS_WITHOUT_CELL, "virial")
    return Record(
        numbers=numbers,
        positions=np.asarray(arrays["coord"][row], np.float64).reshape(-1, 3)[present],
        energy=None if energy is None else float(energy.reshape(-1)[0]),
        forces=None if force is None else force.reshape(-1, 3)[present],
        stress=stress,
        cell=cell,
        pbc=None if cell is None else np.ones(3, np.bool_),
        group=group,
        origin=origin,
        row=row,
    )


def _arrays(member: Path, n_atoms: int, *, periodic: bool) -> dict[str, NDArray[Any]]:
    """Maps the arrays of a set, and checks their shapes."""
    widths = {"coord": 3 * n_atoms, "energy": 1, "force": 3 * n_atoms, "virial": 9, "real_atom_types": n_atoms}
    widths |= {"box": 9} if periodic else {}
    arrays: dict[str, NDArray[Any]] = {}
    for name, width in widths.items():
        file = member / f"{name}.npy"
        if not file.is_file():
            continue
        try:
            array = np.load(file, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise _damaged(file, error) from error
        rows = len(arrays["coord"]) if "coord" in arrays else len(array)
        if array.size != rows * width or array.dtype.kind not in "iuf":
            raise RamifyError(
                f"{file} has shape {array.shape} and type {array.dtype}, expected ({rows}, {width}) numbers",
                fix="the set is damaged, or `type.raw` belongs to another system",
            )
        arrays[name] = array.reshape(rows, width)
    missing = [name for name in ("coord", "energy", *(["box"] if periodic else [])) if name not in arrays]
    if missing:
        raise RamifyError(
            f"{member} has no {', '.join(f'{name}.npy' for name in missing)}",
            fix="correct `path`; a system without cells has a file `nopbc`",
        )
    return arrays


def _frame_values(member: Path, state: str, key: str, frames: int) -> NDArray[Any]:
    """(R,) or (R, n) values of each frame from the array that a key of the recipe names.

    Raises:
        RamifyError: no such array or column, or another number of rows.
    """
    name, _, column = key.partition(":")
    file = member / f"{name}.npy"
    has = sorted(other.stem for other in member.glob("*.npy"))
    if name not in has:
        raise RamifyError(
            f"{member} has no {name}.npy (`{state}_key: {key}`){nearest(name, has)}; it has {', '.join(has)}",
            fix=f"set `{state}_key` to the name of an array, or to null to read none",
        )
    try:
        values = np.load(file, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise _damaged(file, error) from error
    values = values.reshape(frames, -1) if values.size and values.size % frames == 0 else values
    if len(values) != frames or (column and not (column.isdecimal() and int(column) < values.shape[1])):
        raise RamifyError(
            f"{file} has shape {values.shape} for {frames} frames (`{state}_key: {key}`)",
            fix="name an array with a row for each frame, and with `:COLUMN` one of its columns, from 0",
        )
    return np.asarray(values[:, int(column)] if column else values)


def _damaged(file: Path, error: Exception) -> RamifyError:
    return RamifyError(f"{file} cannot be read: {error}", fix="copy it again from the original")


FORMAT = Format(name="deepmd", options=Options, read=read, companions=companions, folder=TYPES)
