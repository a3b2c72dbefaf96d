"""LMDB of DeePMD-kit and dpdata: a folder `*.lmdb` with `data.mdb`, one record per frame, in MessagePack.

https://docs.deepmodeling.com/projects/dpdata/en/master/systems/lmdb.html; the reader of DeePMD-kit is
deepmd/dpmodel/utils/lmdb_data.py. The record `__metadata__` holds `type_map`, the elements of the types in all frames,
and `frame_system_ids`, the system that each frame is from. A frame holds `atom_types` (n,), `coords` (n, 3) Å, `cells`
(3, 3) Å with lattice vectors as rows, `energies` eV, `forces` (n, 3) eV/Å, `virials` (3, 3) eV, which is -dE/dε, and
`nopbc`. An array is `{type, shape, data}`. Older files have no `type_map`: then `atom_names` of each frame names the
types.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from ramify.elements import NUMBERS
from ramify.errors import RamifyError, nearest
from ramify.sources.base import Format
from ramify.sources.chunks import (
    MALFORMED_ENERGY,
    MALFORMED_FORCES,
    MALFORMED_STRESS,
    MALFORMED_STRUCTURE,
    STRESS_WITHOUT_CELL,
    Record,
    UnusableError,
    as_floats,
    check_numbers,
    chunked,
    composition,
)
from ramify.sources.parsing.lmdb_file import record, records
from ramify.sources.quarantine import Quarantine
from ramify.sources.states import StateOptions
from ramify.structures import Structures

DATA = "data.mdb"
"""The file that represents its folder."""
METADATA = b"__metadata__"
_SINGULAR = {"coords": "coord", "cells": "box", "energies": "energy", "forces": "force", "virials": "virial"}
"""Names that DeePMD-kit accepts besides those of dpdata."""


class Options(StateOptions):
    """Recipe keys of `format: deepmd_lmdb`. `charge_key` and `spin_key` name values of the frames: `NAME`, or
    `NAME:COLUMN` for one of several numbers, e.g. `fparam:0`."""

    reads_states: ClassVar[bool] = True

    format: Literal["deepmd_lmdb"] = "deepmd_lmdb"
    """LMDB of DeePMD-kit: `path` lists folders, or their `data.mdb`."""
    type_map: list[str] | None = None
    """Elements of the types 0, 1, ... for files that do not state them."""


def read(path: Path, options: Options, quarantine: Quarantine) -> Iterator[Structures]:
    """Yields all frames. The group is the system that a frame is from, else its composition.

    Raises:
        RamifyError: no such file, not of this layout, damaged or truncated, or unknown elements.
    """
    file = path / DATA if path.is_dir() else path
    frames = _Frames(file, options, quarantine)
    yield from chunked(frames.records(), quarantine)


def frames_of(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the values of all frames by name, damaged ones left out."""
    for key, value in records(path / DATA if path.is_dir() else path):
        if key != METADATA:
            with contextlib.suppress(UnusableError):
                yield _decoded(value)


class _Frames:
    """The frames of a file, as records."""

    def __init__(self, path: Path, options: Options, quarantine: Quarantine) -> None:
        self._path, self._options, self._quarantine = path, options, quarantine
        self._origin = path.parent.name if path.name == DATA else path.name
        self._systems: NDArray[Any] = np.zeros(0, np.int64)
        self._names: list[str] | None = None
        self._seen: set[str] = set()

    def records(self) -> Iterator[Record]:
        """Yields the usable frames; the others are added to the quarantine."""
        self._read_metadata()
        row = -1
        for key, value in records(self._path):
            if key == METADATA:
                continue
            row += 1
            try:
                frame = _decoded(value)
                self._seen |= frame.keys()
                yield self._record(frame, row)
            except UnusableError as error:
                self._quarantine.add(f"{self._origin}[{row}]", error.reason, error.detail)
        for state in ("charge", "spin"):
            key = getattr(self._options, f"{state}_key")
            if key is not None and (name := key.partition(":")[0]) not in self._seen:
                raise RamifyError(
                    f"{self._path} has no '{name}' (`{state}_key`){nearest(name, self._seen)}; it has "
                    f"{', '.join(sorted(self._seen)) or 'no frame'}",
                    fix=f"set `{state}_key` to the name in the file, or to null to read none",
                )

    def _read_metadata(self) -> None:
        """Takes the elements of the types, and the systems of the frames."""
        found = record(self._path, METADATA)
        if found is None:
            raise RamifyError(f"{self._path} is not of DeePMD-kit: it has no record __metadata__", fix="correct `path`")
        try:
            metadata = _decoded(found)
        except UnusableError as error:
            raise RamifyError(
                f"{self._path} is damaged at __metadata__: {error.detail}", fix="copy it again"
            ) from error
        stated, systems = metadata.get("type_map"), metadata.get("frame_system_ids")
        names = [str(name) for name in stated] if isinstance(stated, list) else None
        if names is not None and self._options.type_map not in (None, names):
            raise RamifyError(
                f"{self._path} names the types {names}, the recipe {self._options.type_map} (`type_map`)",
                fix="leave `type_map` out",
            )
        self._names = names or self._options.type_map
        if isinstance(systems, list | np.ndarray):
            self._systems = np.asarray(systems).reshape(-1)

    def _record(self, frame: Mapping[str, Any], row: int) -> Record:
        def value(name: str, reason: str) -> NDArray[np.float64] | None:
            found = frame.get(name, frame.get(_SINGULAR[name]))
            return None if found is None else as_floats(found, reason, name)

        types = as_floats(frame.get("atom_types", frame.get("atype", [])), MALFORMED_STRUCTURE, "atom_types").reshape(
            -1
        )
        numbers, present = self._numbers(types, frame)
        coordinates, box = value("coords", MALFORMED_STRUCTURE), value("cells", MALFORMED_STRUCTURE)
        energy, forces, virial = (
            value(name, reason)
            for name, reason in (
                ("energies", MALFORMED_ENERGY), ("forces", MALFORMED_FORCES), ("virials", MALFORMED_STRESS),
            )
        )  # fmt: skip
        if energy is not None and energy.size != 1:
            raise UnusableError(MALFORMED_ENERGY, f"{energy.size} numbers instead of 1")
        cell = None if box is None or np.any(frame.get("nopbc", False)) else _of_shape(box, (3, 3), "cells")
        return Record(
            numbers=numbers,
            positions=_of_shape(coordinates, (len(types), 3), "coords")[present],
            energy=None if energy is None else float(energy.reshape(-1)[0]),
            forces=None if forces is None else _of_shape(forces, (len(types), 3), "forces", MALFORMED_FORCES)[present],
            stress=self._stress(virial, cell, row),
            charge=self._options.charge_of(self._state(frame, self._options.charge_key)),
            spin=self._options.spin_of(self._state(frame, self._options.spin_key)),
            cell=cell,
            pbc=None if cell is None else np.ones(3, np.bool_),
            group=f"{self._origin}/{self._systems[row]}" if row < len(self._systems) else composition(numbers),
            origin=self._origin,
            row=row,
        )

    def _numbers(self, types: NDArray[np.float64], frame: Mapping[str, Any]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Atomic numbers, and which atoms exist: type -1 pads frames."""
        stated = frame.get("atom_names")
        names = self._names or ([str(name) for name in stated] if isinstance(stated, list) else None)
        if names is None:
            raise RamifyError(
                f"{self._path} does not state the elements of its types", fix="state them, e.g. `type_map: [O, H]`"
            )
        present = types >= 0
        kinds = types[present]
        if not ((kinds < len(names)) & (kinds == np.floor(kinds))).all() or (types < -1).any():
            raise UnusableError(MALFORMED_STRUCTURE, f"types {types.min()} to {types.max()} of {len(names)}")
        numbers = np.array([NUMBERS.get(name, 0) for name in names], np.int64)[kinds.astype(np.int64)]
        check_numbers(numbers)
        return numbers, present

    def _stress(
        self, virial: NDArray[np.float64] | None, cell: NDArray[np.float64] | None, row: int
    ) -> NDArray[np.float64] | None:
        if virial is None:
            return None
        volume = 0.0 if cell is None else abs(float(np.linalg.det(cell)))
        if not volume:
            if np.any(virial):
                self._quarantine.remark(f"{self._origin}[{row}]", STRESS_WITHOUT_CELL, "virial")
            return None
        return -_of_shape(virial, (3, 3), "virials", MALFORMED_STRESS) / volume

    @staticmethod
    def _state(frame: Mapping[str, Any], key: str | None) -> Any:
        """The number under `NAME` or `NAME:COLUMN`; None where a frame has none."""
        name, _, column = (key or "").partition(":")
        found = frame.get(name)
        if found is None or not column:
            return found
        flat = np.asarray(found).reshape(-1)
        return flat[int(column)] if column.isdecimal() and int(column) < flat.size else None


def _decoded(value: bytes) -> dict[str, Any]:
    """A record with its arrays.

    Raises:
        UnusableError: damaged.
    """
    try:
        import msgpack
    except ImportError as error:
        raise RamifyError(
            "LMDB of DeePMD-kit needs the package msgpack", fix="pip install 'ramify[formats]'"
        ) from error
    try:
        found = msgpack.unpackb(value, raw=False, strict_map_key=False)
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__} instead of a mapping")
        return {str(name): _array(entry) for name, entry in found.items()}
    except (ValueError, TypeError, msgpack.UnpackException, UnicodeDecodeError) as error:
        raise UnusableError(MALFORMED_STRUCTURE, f"{type(error).__name__}: {error}") from error


def _array(entry: Any) -> Any:
    """The array of `{type, shape, data}`, whose names may be bytes (msgpack-numpy); other values unchanged."""
    if not isinstance(entry, dict):
        return entry
    parts = {name.decode() if isinstance(name, bytes) else name: part for name, part in entry.items()}
    if not {"type", "data"} <= parts.keys():
        return entry
    kind = np.dtype(str(parts["type"]))
    if kind.kind not in "iufb":
        raise ValueError(f"an array of {kind}")
    array = np.frombuffer(parts["data"], kind)
    return array.reshape(parts.get("shape", array.shape))


def _of_shape(
    array: NDArray[np.float64] | None, shape: tuple[int, int], name: str, reason: str = MALFORMED_STRUCTURE
) -> NDArray[np.float64]:
    if array is None or array.size != shape[0] * shape[1]:
        raise UnusableError(reason, f"{name} {'absent' if array is None else array.shape} instead of {shape}")
    return array.reshape(shape)


FORMAT = Format(name="deepmd_lmdb", options=Options, read=read, folder=DATA)
