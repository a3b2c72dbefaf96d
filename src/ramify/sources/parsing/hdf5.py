"""Code common to the HDF5 formats: opening, detection of layouts, reading of conformers in blocks."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ramify.elements import MAX_NUMBER
from ramify.errors import RamifyError
from ramify.sources.base import CHUNK_ATOMS, PART_ATOMS
from ramify.sources.chunks import MALFORMED_STRUCTURE, NOT_COMPUTED, composition, index_names
from ramify.sources.quarantine import Quarantine, ranges
from ramify.sources.units import known_unit, unit_factor
from ramify.structures import Split, Structures

Floats = NDArray[np.floating]

CHUNK_CACHE = 64 << 20
"""Bytes of HDF5's cache per array: consecutive blocks must not decompress the same HDF5 chunk twice."""

METADATA_CACHE = 4 << 20
"""Bytes of HDF5's cache for object headers as counted by HDF5; they use about 14 times as much memory, and the default
of 32 MiB needs 450 MB for the millions of small arrays of QM7-X."""

PART_MOLECULES = 500
"""Molecules per part where each is a group: QM7-X has one hundred to a few hundred conformers of about 15 atoms in a
group, SPICE mostly 50 of 20 to 60 atoms."""

_LAYOUTS = {  # arrays in one group that identify each layout
    "ani1x": {"atomic_numbers", "coordinates"},
    "ani1": {"species", "coordinates", "energies"},
    "ani2x": {"species", "coordinates", "energies"},  # species per row: see `_layout`
    "qm7x": {"atNUM", "atXYZ"},
    "transition1x": {"atomic_numbers", "positions"},
    "spice": {"atomic_numbers", "conformations"},
}


@contextmanager
def open_hdf5(path: Path, layout: str) -> Iterator[h5py.File]:
    """Opens an HDF5 file for reading and checks that it has `layout`, a key of the known layouts.

    Raises:
        RamifyError: no such file, a packed archive, not HDF5, truncated, or of another layout.
    """
    _refuse_archives(path)
    try:
        file = h5py.File(path, "r", rdcc_nbytes=CHUNK_CACHE)
        cache = file.id.get_mdc_config()
        cache.max_size = METADATA_CACHE
        file.id.set_mdc_config(cache)
    except OSError as error:
        raise RamifyError(
            f"{path} cannot be opened as HDF5: {error}",
            fix="compare its size and checksum with the published ones and download it again, or correct `format`",
        ) from error
    with file:
        try:
            _require(file, path, layout)
            yield file
        except (
            OSError,
            RuntimeError,
            LookupError,
            TypeError,
            ValueError,
        ) as error:  # h5py does not define an error type
            raise RamifyError(
                f"{path} is damaged or incomplete: {error}",
                fix="compare its size and checksum with the published ones and download it again",
            ) from error


@dataclass(frozen=True, kw_only=True)
class Conformers:
    """R conformers of one molecule or composition of n atoms, with arrays as in the file.

    Attributes:
        numbers: (n,) atomic numbers, the same for all rows; or (R, n).
        positions: (R, n, 3).
        energy: (R,) or (R, 1); None if the file has none: then no row is usable.
        forces: (R, n, 3); None if the file has none.
        energy_unit: factor to eV.
        forces_unit: factor to eV/Å; negative if the file contains gradients.
        positions_unit: factor to Å.
        group: name of the group of all rows; None for the composition of each.
        origin: the file and the path inside it.
        split: official split of all rows.
        charge: e, of all rows; None if the file states none.
        expect_forces: whether rows are unusable without forces.
    """

    numbers: NDArray[np.integer] | h5py.Dataset
    positions: h5py.Dataset
    energy: h5py.Dataset | None
    forces: h5py.Dataset | None
    energy_unit: float
    forces_unit: float
    group: str | None
    origin: str
    positions_unit: float = 1.0
    split: Split = Split.NONE
    charge: float | None = None
    expect_forces: bool = True

    def blocks(self, quarantine: Quarantine) -> Iterator[Structures]:
        """Yields the rows in chunks; rows with a NaN in a requested label are added to the quarantine.

        Raises:
            RamifyError: the arrays are inconsistent.
        """
        R = len(self.positions)
        self._check_units()
        if self.energy is None or (self.forces is None and self.expect_forces):
            quarantine.add(f"{self.origin}[{ranges(np.arange(R))}]", NOT_COMPUTED, "the array is not there", count=R)
            return
        self._check_shapes()
        step = max(1, CHUNK_ATOMS // self.numbers.shape[-1])
        for start in range(0, R, step):
            rows = np.arange(start, min(start + step, R))
            block = slice(start, start + step)
            pos, e = self.positions[block], self.energy[block].reshape(-1)
            f = None if self.forces is None else self.forces[block]
            numbers = self.numbers[block] if self.numbers.ndim == 2 else np.tile(self.numbers[()], (len(rows), 1))
            missing = np.isnan(e)
            if f is not None and np.isnan(f.sum()):  # a fast check first: most blocks have no NaN
                missing |= np.isnan(f.reshape(len(f), -1)).any(axis=1)
            wrong = ((numbers < 1) | (numbers > MAX_NUMBER) | (numbers != np.floor(numbers))).any(axis=1)
            for left_out, reason, detail in (
                (wrong, MALFORMED_STRUCTURE, f"an atomic number that is not one of 1 to {MAX_NUMBER}"),
                (missing & ~wrong, NOT_COMPUTED, ""),
            ):
                if left_out.any():
                    quarantine.add(
                        f"{self.origin}[{ranges(rows[left_out])}]", reason, detail, count=left_out.sum().item()
                    )
            if (missing | wrong).any():
                keep = ~(missing | wrong)
                pos, e, f, rows, numbers = pos[keep], e[keep], None if f is None else f[keep], rows[keep], numbers[keep]
            if len(rows):
                yield self._structures(numbers, pos, e, f, rows)

    def _structures(
        self, numbers: NDArray[np.integer], pos: Floats, energy: Floats, forces: Floats | None, rows: NDArray[np.int64]
    ) -> Structures:
        if forces is not None:
            forces = forces.reshape(-1, 3).astype(np.float64) * self.forces_unit
        group, group_names = (None, (self.group,)) if self.group is not None else index_names(map(composition, numbers))
        return Structures.make(
            n_atoms=np.full(len(rows), numbers.shape[1]),
            numbers=numbers.reshape(-1),
            positions=pos.reshape(-1, 3) * self.positions_unit if self.positions_unit != 1 else pos.reshape(-1, 3),
            energy=energy.astype(np.float64) * self.energy_unit,
            forces=forces,
            charge=None if self.charge is None else np.full(len(rows), self.charge),
            split=np.full(len(rows), self.split),
            group=group,
            row=rows,
            group_names=group_names,
            origin_names=(self.origin,),
        )

    def _check_units(self) -> None:
        """Checks units in the attributes of the arrays (as in SPICE) against the expected ones."""
        for kind, array, factor in (
            ("energy", self.energy, self.energy_unit),
            ("forces", self.forces, self.forces_unit),
            ("length", self.positions, self.positions_unit),
        ):
            stated = None if array is None else array.attrs.get("units", array.attrs.get("unit"))
            if stated is None or not _text(stated).strip():
                continue
            name = known_unit(kind, _text(stated))
            if name is None or not np.isclose(unit_factor(kind, name), abs(factor), rtol=1e-4):
                raise RamifyError(
                    f"{self.origin} states that its {kind} is in {_text(stated)}, which this format does not expect"
                    + ("" if name else " (an unknown unit)"),
                    fix="this is another version of the dataset: convert it to the published units",
                )

    def _check_shapes(self) -> None:
        R, n = len(self.positions), self.numbers.shape[-1]
        sizes: dict[str, tuple[Any, int]] = {
            "positions": (self.positions, R * n * 3),
            "energy": (self.energy, R),
            "forces": (self.forces, R * n * 3),
            "atomic numbers": (self.numbers, R * n if self.numbers.ndim == 2 else n),
        }
        for name, (array, size) in sizes.items():
            if array is not None and array.dtype.kind not in "iuf":
                raise RamifyError(
                    f"{self.origin}: {name} has type {array.dtype}, not numbers",
                    fix="the file is damaged or of another format: download it again, or correct `format`",
                )
            rows = (R,) if array is not self.numbers or self.numbers.ndim == 2 else (n,)
            if array is not None and (array.shape[:1] != rows or array.size != size or n == 0):
                raise RamifyError(
                    f"{self.origin}: {name} has shape {array.shape}, which does not fit {R} rows of {n} atoms",
                    fix="the file is damaged or of another format: download it again, or correct `format`",
                )


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def groups(group: h5py.Group) -> Iterator[h5py.Group]:
    """Yields the groups directly inside `group`, in the order of their names."""
    return (member for member in group.values() if isinstance(member, h5py.Group))


def names_in_parts(file: h5py.File) -> Iterator[tuple[str, ...]]:
    """Names of the groups at the top of a file, in parts of `PART_MOLECULES`."""
    molecules = iter(file)
    while names := tuple(islice(molecules, PART_MOLECULES)):
        yield names


def groups_by_atoms(found: Iterable[tuple[str, tuple[int, ...]]]) -> Iterator[tuple[str, ...]]:
    """Yields names in parts of about `PART_ATOMS` atoms, from names and shapes (conformers, atoms, 3)."""
    names: list[str] = []
    atoms = 0
    for name, shape in found:
        names.append(name)
        atoms += int(np.prod(shape[:2]))
        if atoms >= PART_ATOMS:
            yield tuple(names)
            names, atoms = [], 0
    if names:
        yield tuple(names)


def dataset(group: h5py.Group, key: str) -> h5py.Dataset | None:
    """Returns the array `key` of `group`, or None."""
    found: Any = group.get(key)
    return found if isinstance(found, h5py.Dataset) else None


def _require(file: h5py.File, path: Path, layout: str) -> None:
    arrays = first_arrays(file)
    found = _layout(arrays)
    if found == layout:
        return
    holds = f"the layout of format '{found}'" if found else f"arrays {sorted(arrays)[:8]}" if arrays else "no arrays"
    marks = ", ".join(sorted(_LAYOUTS[layout]))
    raise RamifyError(
        f"{path} is not of format '{layout}' (arrays {marks} in one group): it holds {holds}",
        fix=f"set `format: {found}`" if found else "correct `format` or `path`",
    )


def hdf5_layout(path: Path) -> str | None:
    """Name of the format with the layout of an HDF5 file; None if unknown, or not an HDF5 file."""
    try:
        with h5py.File(path, "r") as file:
            return _layout(first_arrays(file))
    except (OSError, RuntimeError, KeyError):
        return None


def _layout(arrays: Mapping[str, h5py.Dataset]) -> str | None:
    found = next((name for name, marks in _LAYOUTS.items() if marks <= arrays.keys()), None)
    if found == "ani1" and arrays["species"].ndim == 2:
        return "ani2x"
    return found


def first_arrays(group: h5py.Group, depth: int = 5) -> dict[str, h5py.Dataset]:
    """Arrays of the first group that contains any (depth-first search over the first 50 members of each group)."""
    members = {name: group[name] for name in islice(group, 50)}
    arrays = {name: member for name, member in members.items() if isinstance(member, h5py.Dataset)}
    if arrays or depth == 0:
        return arrays
    inside = (first_arrays(member, depth - 1) for member in members.values())
    return next((found for found in inside if found), {})


def _refuse_archives(path: Path) -> None:
    """Raises an error with the unpacking command for a packed file. HDF5 opens even a plain tar archive, because it
    skips a header of 512 bytes."""
    if path.is_dir():
        raise RamifyError(f"{path} is a folder, not a file", fix=f"path: {path}/*")
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except FileNotFoundError as error:
        raise RamifyError(f"{path} does not exist", fix="correct `path`") from error
    except OSError as error:
        raise RamifyError(f"{path} cannot be read: {error}", fix="check its permissions") from error
    if head[257:262] == b"ustar":
        raise RamifyError(f"{path} is a tar archive, not HDF5", fix=f"unpack it: tar xf {path}")
    packed = {b"\xfd7zXZ\x00": "tar xJf", b"BZh": "tar xjf", b"\x1f\x8b": "tar xzf", b"PK\x03\x04": "unzip"}
    for magic, command in packed.items():
        if head.startswith(magic):
            raise RamifyError(f"{path} is a compressed archive, not HDF5", fix=f"unpack it: {command} {path}")
