"""numpy archives with one row per structure, padded to the largest: QM7-X and MD17 extracts.

Arrays: energies (R,) or (R, 1), forces and positions (R, n, 3), atomic numbers (R, n), or (n,) for all rows. Atoms of
number 0 fill up the rows of smaller molecules and are left out. The arrays are read side by side, block by block.
"""

import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ramify.errors import RamifyError, nearest
from ramify.quarantine import Quarantine
from ramify.sources.base import CHUNK_ATOMS, Format
from ramify.sources.chunks import MALFORMED_STRUCTURE, NOT_COMPUTED, composition, index_names
from ramify.sources.labels import LabelledOptions
from ramify.structures import Structures

KNOWN = (  # numbers, positions, energy, forces; QM7-X pairs are never mixed
    ("atNUM", "atXYZ", "ePBE0+MBD", "totFOR"),
    ("atNUM", "atXYZ", "ePBE0", "pbe0FOR"),
    ("z", "R", "E", "F"),
    ("nuclear_charges", "coords", "energies", "forces"),
)


class Options(LabelledOptions):
    """Recipe keys of `format: npz`."""

    format: Literal["npz"] = "npz"
    """numpy archive with padded rows."""
    keys: dict[Literal["numbers", "positions", "energy", "forces"], str] | None = None
    """Names of the arrays (`forces` may be left out); without this key those of QM7-X, MD17 or rMD17."""
    group_key: str | None = None
    """Array (R,) that says which rows belong together; without it, the composition."""


def read(path: Path, options: Options, quarantine: Quarantine) -> Iterator[Structures]:
    """Yields every row; the padding is gone.

    Raises:
        RamifyError: no such file, not npz, damaged, or without the arrays it needs.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
            yield from _blocks(archive, path, _keys(path, names, options), options, quarantine)
    except FileNotFoundError as error:
        raise RamifyError(f"{path} does not exist", fix="correct `path`") from error
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, OSError, ValueError) as error:
        raise RamifyError(
            f"{path} cannot be read as npz: {error}", fix="correct `path` or `format`, or download it again"
        ) from error


def _keys(path: Path, names: set[str], options: Options) -> dict[str, str]:
    """Array names by what they hold."""
    roles = ("numbers", "positions", "energy", "forces")
    if options.keys is None:
        fitting = [dict(zip(roles, known, strict=True)) for known in KNOWN if names >= set(known)]
        if len(fitting) != 1:
            why = "several sets of labels" if fitting else "no known set of arrays"
            raise RamifyError(
                f"{path} holds {why} (e.g. {' '.join(KNOWN[0])}): it has {', '.join(sorted(names))}",
                fix="name them: `keys: {numbers: ..., positions: ..., energy: ..., forces: ...}`",
            )
        keys = fitting[0]
    else:
        keys = {str(role): name for role, name in options.keys.items()}
        if missing := {"numbers", "positions", "energy"} - keys.keys():
            raise RamifyError(f"`keys` lacks {', '.join(sorted(missing))}", fix="name all but forces")
    mixed = {keys["energy"], keys.get("forces")}
    if mixed in ({"ePBE0+MBD", "pbe0FOR"}, {"ePBE0", "totFOR"}):
        raise RamifyError(
            f"`keys` pairs {keys['energy']} with {keys['forces']}, which are no gradient of it",
            fix="pair ePBE0+MBD with totFOR, or ePBE0 with pbe0FOR",
        )
    for name in [*keys.values(), *([options.group_key] if options.group_key else [])]:
        if name not in names:
            raise RamifyError(
                f"{path} has no array '{name}'{nearest(name, names)}; it has {', '.join(sorted(names))}",
                fix="correct `keys` or `group_key`",
            )
    return keys | ({"group": options.group_key} if options.group_key else {})


def _blocks(
    archive: zipfile.ZipFile, path: Path, keys: dict[str, str], options: Options, quarantine: Quarantine
) -> Iterator[Structures]:
    with ExitStack() as stack:
        arrays = {role: _Rows(stack.enter_context(archive.open(f"{name}.npy"))) for role, name in keys.items()}
        R, n = arrays["positions"].shape[:2]
        shared = arrays.pop("numbers").read_all() if len(arrays["numbers"].shape) == 1 else None
        _check_shapes(path, arrays, R, n, shared)
        step = max(1, CHUNK_ATOMS // n)
        for start in range(0, R, step):
            block = {role: array.read(min(step, R - start)) for role, array in arrays.items()}
            if shared is not None:
                block["numbers"] = np.tile(shared, (len(block["energy"]), 1))
            yield _structures(path, block, start, options, quarantine)


def _structures(
    path: Path, block: dict[str, NDArray[Any]], start: int, options: Options, quarantine: Quarantine
) -> Structures:
    numbers = block["numbers"].astype(np.int64)
    present = numbers != 0
    n_atoms = present.sum(axis=1)
    energy = block["energy"].reshape(-1).astype(np.float64) * options.units.energy_factor
    if options.energy_is_per_atom:
        energy *= n_atoms
    forces = block["forces"][present] * options.units.forces_factor if "forces" in block else None
    parts = np.split(numbers[present], np.cumsum(n_atoms)[:-1])
    group, names = index_names(block["group"].astype(str) if "group" in block else map(composition, parts))
    found = Structures.make(
        n_atoms=n_atoms,
        numbers=numbers[present],
        positions=block["positions"][present] * options.units.length_factor,
        energy=energy,
        forces=forces,
        group=group,
        row=np.arange(start, start + len(n_atoms)),
        group_names=names,
        origin_names=(path.name,),
    )
    unlabelled = np.isnan(energy)
    if forces is not None:
        unlabelled[found.structure_of_atom[np.isnan(forces).any(axis=1)]] = True
    for index in np.flatnonzero((n_atoms == 0) | unlabelled):
        quarantine.add(found.name(int(index)), NOT_COMPUTED if n_atoms[index] else MALFORMED_STRUCTURE)
    return found.take(np.flatnonzero((n_atoms > 0) & ~unlabelled))


def _check_shapes(
    path: Path, arrays: dict[str, "_Rows"], rows: int, n: int, shared: NDArray[np.integer] | None
) -> None:
    expected = {
        "numbers": (rows, n),
        "positions": (rows, n, 3),
        "energy": (rows,),
        "forces": (rows, n, 3),
        "group": (rows,),
    }
    for role, array in arrays.items():
        shape = array.shape[:1] if role == "energy" and array.shape == (rows, 1) else array.shape
        if shape != expected[role]:
            raise RamifyError(
                f"{path}: the array of {role} has shape {array.shape}, expected {expected[role]} beside {rows} rows",
                fix="correct `keys`",
            )
    if shared is not None and shared.shape != (n,):
        raise RamifyError(f"{path}: {len(shared)} atomic numbers for positions of {n} atoms", fix="correct `keys`")


class _Rows:
    """An array inside the archive, read row by row from its stream.

    Attributes:
        shape: the shape of the whole array.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        header = npy.read_array_header_1_0 if npy.read_magic(stream) == (1, 0) else npy.read_array_header_2_0
        self.shape, column_major, self._dtype = header(stream)
        if self._dtype.hasobject or (column_major and len(self.shape) > 1):
            raise ValueError("an array of objects or in column-major order; save it as plain C-ordered numbers")
        self._stream = stream

    def read(self, rows: int) -> NDArray[Any]:
        """The next `rows` rows."""
        shape = (rows, *self.shape[1:])
        size = int(np.prod(shape)) * self._dtype.itemsize
        data = self._stream.read(size)
        if len(data) != size:
            raise EOFError("an array is cut short")
        return np.frombuffer(data, self._dtype).reshape(shape)

    def read_all(self) -> NDArray[Any]:
        """Every row."""
        return self.read(self.shape[0])


FORMAT = Format(name="npz", options=Options, read=read)
