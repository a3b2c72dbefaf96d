"""QM7-X: HDF5 files `1000.hdf5` to `8000.hdf5` with `/<molecule>/<conformer>/<property>`.

Hoja et al., Scientific Data 8, 43 (2021), doi:10.1038/s41597-021-00812-2. Conformers are `Geom-m<M>-i<I>-c<C>-opt`
(equilibrium) and `...-d<1..100>` (displaced). `DupMols.dat` lists duplicate equilibria; each entry also applies to the
100 displaced conformers.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from ramify.errors import RamifyError
from ramify.sources.base import DatasetOptions, Format
from ramify.sources.chunks import NOT_COMPUTED, Record, chunked
from ramify.sources.parsing.hdf5 import names_in_parts, open_hdf5
from ramify.sources.quarantine import Quarantine
from ramify.structures import Structures

PAIRS = {"pbe0+mbd": ("ePBE0+MBD", "totFOR"), "pbe0": ("ePBE0", "pbe0FOR")}
"""Energy and the consistent forces. Any other pair has forces of another potential energy surface."""

_MEMORY: dict[type[np.generic], Any] = {np.float64: h5py.h5t.NATIVE_DOUBLE, np.int64: h5py.h5t.NATIVE_INT64}
_STEM = re.compile(r"(Geom-m\d+-i\d+-c\d+)-(opt|d\d+)")


class Options(DatasetOptions):
    """Recipe keys of `format: qm7x`."""

    format: Literal["qm7x"] = "qm7x"
    """Unpacked HDF5 files of QM7-X (the published `.xz` contain a tar archive)."""
    labels: Literal["pbe0+mbd", "pbe0"] = "pbe0+mbd"
    """`pbe0+mbd`: `ePBE0+MBD` with `totFOR`; `pbe0`: `ePBE0` with `pbe0FOR`, without dispersion."""
    duplicates: str | None = None
    """Path of `DupMols.dat`, whose conformers are left out; by default the one in the folder of the file, if any."""


def cut(path: Path, options: Options) -> Iterator[tuple[str, ...]]:
    """Yields names of molecules in parts.

    Raises:
        RamifyError: the file is not of this layout, is damaged, or lacks the selected labels.
    """
    _duplicates(path, options.duplicates)
    with open_hdf5(path, "qm7x") as file:
        _require_labels(file, path, options.labels)
        yield from names_in_parts(file)


def read_part(path: Path, options: Options, quarantine: Quarantine, names: tuple[str, ...]) -> Iterator[Structures]:
    """Yields the conformers of some molecules, without listed duplicates; the group is the number of the molecule.

    Raises:
        RamifyError: the file is damaged.
    """
    duplicates = _duplicates(path, options.duplicates)
    with open_hdf5(path, "qm7x") as file:
        molecules = {name: file[name] for name in names}
        yield from chunked(_records(molecules, path.name, duplicates, PAIRS[options.labels], quarantine), quarantine)


def _records(
    molecules: Mapping[str, h5py.Group],
    name: str,
    duplicates: frozenset[str],
    pair: tuple[str, str],
    quarantine: Quarantine,
) -> Iterator[Record]:
    energy_key, forces_key = (key.encode() for key in pair)
    for molecule, conformers in molecules.items():
        for conformer in conformers:
            match = _STEM.fullmatch(conformer)
            if match and match[1] in duplicates:
                quarantine.add(f"{name}/{molecule}/{conformer}", "listed in DupMols.dat", match[1])
                continue
            group = h5py.h5g.open(conformers.id, conformer.encode())
            if energy_key not in group or forces_key not in group:
                quarantine.add(f"{name}/{molecule}/{conformer}", NOT_COMPUTED, " or ".join(pair))
                continue
            # row: 0 for -opt, k for -dk, so that the name of a structure identifies its conformer
            stem, kind = (match[1], match[2]) if match else (conformer, "opt")
            yield Record(
                numbers=_array(group, b"atNUM", np.int64),
                positions=_array(group, b"atXYZ"),
                energy=float(_array(group, energy_key).reshape(-1)[0]),
                forces=_array(group, forces_key),
                group=molecule,
                origin=f"{name}/{molecule}/{stem}",
                row=0 if kind == "opt" else int(kind[1:]),
            )


def _array(group: h5py.h5g.GroupID, key: bytes, kind: type[np.generic] = np.float64) -> NDArray[Any]:
    """Reads a whole array by low-level HDF5 calls: the overhead of `group[key][()]` exceeds the time of reading."""
    found = h5py.h5d.open(group, key)
    array = np.empty(found.shape, kind)
    found.read(h5py.h5s.ALL, h5py.h5s.ALL, array, _MEMORY[kind])
    return array


def _require_labels(file: h5py.File, path: Path, labels: str) -> None:
    """Raises an error with the available labels if the first conformer lacks the selected ones."""
    first = next(conformer for molecule in file.values() for conformer in molecule.values())
    if all(key in first for key in PAIRS[labels]):
        return
    other = next((name for name, pair in PAIRS.items() if all(key in first for key in pair)), None)
    raise RamifyError(
        f"{path}{first.name} has no {' and '.join(PAIRS[labels])} (`labels: {labels}`); it has {', '.join(first)}",
        fix=f"set `labels: {other}` to read {' with '.join(PAIRS[other])}" if other else "correct `path`",
    )


def _duplicates(path: Path, listed: str | None) -> frozenset[str]:
    """Prefixes `Geom-m-i-c` of the conformers to leave out."""
    file = Path(listed) if listed else path.with_name("DupMols.dat")
    if not file.exists():
        if listed is None:
            return frozenset()
        raise RamifyError(f"`duplicates: {listed}` does not exist", fix="correct the path or remove the key")
    stems = frozenset(re.findall(r"Geom-m\d+-i\d+-c\d+", file.read_text(encoding="utf-8", errors="replace")))
    if not stems:
        raise RamifyError(
            f"{file} lists no conformer (lines like Geom-m1-i1-c1-opt)",
            fix="download DupMols.dat of QM7-X again, or remove it",
        )
    return stems


FORMAT = Format.in_parts(
    name="qm7x",
    options=Options,
    cut=cut,
    read_part=read_part,
    theory="PBE0+MBD (labels pbe0: without MBD), FHI-aims tight",
)
