"""NumPy archives with one row per structure, padded to the largest: QM7-X, MD17, rMD17 and sGDML datasets.

Arrays: energies (R,) or (R, 1), forces and positions (R, n, 3), atomic numbers (R, n), or (n,) for all rows; a cell
(3, 3) or (R, 3, 3), periodic along all axes unless an array `pbc` (3,) or (R, 3) states others. Atoms of number 0 pad
the rows of smaller molecules and are removed. All arrays are read together, block by block.

Datasets of sGDML (Chmiela et al., Comput. Phys. Commun. 240, 38 (2019), github.com/stefanch/sGDML) may state `e_unit`,
`r_unit` and `lattice`. MD17 (sgdml.org) and rMD17 (doi:10.24435/materialscloud:wy-kn) are in kcal/mol but do not state
it.
"""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ramify.errors import RamifyError, nearest
from ramify.sources.base import CHUNK_ATOMS, Format
from ramify.sources.labels import LabelledOptions
from ramify.sources.parsing.npz_rows import Block, Rows
from ramify.sources.parsing.stated import remark_unread
from ramify.sources.quarantine import Quarantine
from ramify.sources.units import Units, stated_units, with_stated
from ramify.structures import Structures

KNOWN = (  # numbers, positions, energy, forces; pairs of QM7-X are never mixed
    ("atNUM", "atXYZ", "ePBE0+MBD", "totFOR"),
    ("atNUM", "atXYZ", "ePBE0", "pbe0FOR"),
    ("z", "R", "E", "F"),
    ("nuclear_charges", "coords", "energies", "forces"),
)


UNSTATED = (KNOWN[2][:3], KNOWN[3][:3])
"""The layouts of MD17 and rMD17, whose files are in kcal/mol but do not state it."""

Role = Literal["numbers", "positions", "energy", "forces", "cell"]


class Options(LabelledOptions):
    """Recipe keys of `format: npz`. `charge_key` and `spin_key` name arrays (R,) or (R, 1), or one number."""

    reads_states: ClassVar[bool] = True

    format: Literal["npz"] = "npz"
    """NumPy archive with padded rows."""
    keys: dict[Role, str] | None = None
    """Names of the arrays (`forces` and `cell` are optional); by default those of QM7-X, MD17, rMD17 or sGDML."""
    lattice: Literal["rows", "columns"] | None = None
    """Whether lattice vectors are the rows or the columns of the cell; required for cells that are not symmetric,
    because the converters of sGDML write rows, but its documentation defines columns."""
    group_key: str | None = None
    """Name of an array (R,) with the group of each row; by default, groups are compositions."""


def read(path: Path, options: Options, quarantine: Quarantine) -> Iterator[Structures]:
    """Yields all rows without their padding.

    Raises:
        RamifyError: no such file, not npz, damaged, without the required arrays, or with unknown units.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
            keys = _keys(path, names, options)
            units = _units(archive, path, names, keys, options)
            yield from _blocks(archive, path, keys, options, units, quarantine)
            remark_unread(path.name, names - set(keys.values()), quarantine)
    except FileNotFoundError as error:
        raise RamifyError(f"{path} does not exist", fix="correct `path`") from error
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, OSError, ValueError, zlib.error) as error:
        raise RamifyError(
            f"{path} cannot be read as npz: {error}", fix="correct `path` or `format`, or download it again"
        ) from error


def _keys(path: Path, names: set[str], options: Options) -> dict[str, str]:
    """Names of the arrays by role."""
    roles = ("numbers", "positions", "energy", "forces")
    if options.keys is None:
        fitting = [dict(zip(roles, known, strict=True)) for known in KNOWN if names >= set(known)]
        if len(fitting) != 1:
            why = "several known sets of labels" if fitting else "no known set of arrays"
            raise RamifyError(
                f"{path} holds {why} (e.g. {' '.join(KNOWN[0])}): it has {', '.join(sorted(names))}",
                fix="set `keys: {numbers: ..., positions: ..., energy: ..., forces: ...}`",
            )
        keys = fitting[0] | ({"cell": "lattice"} if "lattice" in names else {})
    else:
        keys = {str(role): name for role, name in options.keys.items()}
        if missing := {"numbers", "positions", "energy"} - keys.keys():
            raise RamifyError(f"`keys` lacks {', '.join(sorted(missing))}", fix="set all but forces and cell")
    mixed = {keys["energy"], keys.get("forces")}
    if mixed in ({"ePBE0+MBD", "pbe0FOR"}, {"ePBE0", "totFOR"}):
        raise RamifyError(
            f"`keys` pairs {keys['energy']} with {keys['forces']}, which are not its gradient",
            fix="pair ePBE0+MBD with totFOR, or ePBE0 with pbe0FOR",
        )
    further = {"group": options.group_key, "charge": options.charge_key, "spin": options.spin_key}
    stated = {role: name for role, name in further.items() if name is not None}
    recipe_keys = dict.fromkeys(keys.values(), "keys") | {name: f"{role}_key" for role, name in stated.items()}
    for name, key in recipe_keys.items():
        if name not in names:
            raise RamifyError(
                f"{path} has no array '{name}' (`{key}`){nearest(name, names)}; it has {', '.join(sorted(names))}",
                fix=f"correct `{key}`",
            )
    periodic = {"pbc": "pbc"} if "cell" in keys and "pbc" in names else {}
    return keys | periodic | stated


def _units(archive: zipfile.ZipFile, path: Path, names: set[str], keys: dict[str, str], options: Options) -> Units:
    """Units of the recipe, or else those stated in the file."""
    texts = {name: _text(archive, name) for name in sorted(names) if "unit" in name.lower()}
    stated = stated_units(texts, energy=keys["energy"], forces=keys.get("forces"))  # e_unit and r_unit in sGDML
    stated.pop("virial", None)
    units = with_stated(path, options.units, stated, energy_is_per_atom=options.energy_is_per_atom)
    layout = tuple(keys[role] for role in ("numbers", "positions", "energy"))
    one_molecule = len(_shape(archive, keys["numbers"])) == 1
    if layout in UNSTATED and one_molecule and not units.model_fields_set & {"energy"} and "energy" not in stated:
        raise RamifyError(
            f"{path} has the arrays of MD17 or rMD17 ({', '.join(map(str, layout))}). The published files are in "
            "kcal/mol, but this file does not state its units",
            fix="set `units: {energy: kcal/mol}`, or the unit of a converted file, e.g. `units: {energy: eV}`",
        )
    return units


def _text(archive: zipfile.ZipFile, name: str) -> str:
    """Reads an array that contains one text; empty if it contains anything else."""
    if len(_shape(archive, name)) > 1:
        return ""
    with archive.open(f"{name}.npy") as stream:
        value = npy.read_array(stream, allow_pickle=False).reshape(-1)
    return str(value.astype("U")[0]) if value.size == 1 and value.dtype.kind in "SU" else ""


def _shape(archive: zipfile.ZipFile, name: str) -> tuple[int, ...]:
    with archive.open(f"{name}.npy") as stream:
        return Rows(stream).shape


def _blocks(
    archive: zipfile.ZipFile,
    path: Path,
    keys: dict[str, str],
    options: Options,
    units: Units,
    quarantine: Quarantine,
) -> Iterator[Structures]:
    with ExitStack() as stack:
        arrays = {role: Rows(stack.enter_context(archive.open(f"{name}.npy"))) for role, name in keys.items()}
        if len(arrays["positions"].shape) != 3:
            raise RamifyError(
                f"{path}: the array of positions has shape {arrays['positions'].shape}, expected (rows, atoms, 3)",
                fix="correct `keys`",
            )
        R, n = arrays["positions"].shape[:2]
        shared = {
            role: arrays.pop(role).read_all()
            for role, shapes in (("numbers", [1]), ("cell", [2]), ("pbc", [1]), ("charge", [0]), ("spin", [0]))
            if role in arrays and len(arrays[role].shape) in shapes
        }
        _check_shapes(path, arrays, R, n, shared)
        step = max(1, CHUNK_ATOMS // max(n, 1))
        for start in range(0, R, step):
            block = {role: array.read(min(step, R - start)) for role, array in arrays.items()}
            for role, values in shared.items():
                block[role] = np.broadcast_to(values, (len(block["energy"]), *values.shape))
            yield Block(path, block, start, units, options).structures(quarantine)


def _check_shapes(path: Path, arrays: dict[str, "Rows"], rows: int, n: int, shared: dict[str, NDArray[Any]]) -> None:
    expected = {
        "numbers": (rows, n),
        "positions": (rows, n, 3),
        "energy": (rows,),
        "forces": (rows, n, 3),
        "cell": (rows, 3, 3),
        "pbc": (rows, 3),
        "group": (rows,),
        "charge": (rows,),
        "spin": (rows,),
    }
    for role, array in arrays.items():
        if role in ("positions", "forces", "cell", "charge", "spin") and array.kind not in "iuf":
            raise RamifyError(
                f"{path}: the array of {role} has values of type '{array.kind}', not numbers", fix="correct `keys`"
            )
        per_row = role in ("energy", "charge", "spin") and array.shape == (rows, 1)
        per_row |= role == "spin" and len(array.shape) == 2  # moments of atoms
        shape = array.shape[:1] if per_row else array.shape
        if shape != expected[role]:
            raise RamifyError(
                f"{path}: the array of {role} has shape {array.shape}, expected {expected[role]} for {rows} rows",
                fix="correct `keys`",
            )
    if "numbers" in shared and shared["numbers"].shape != (n,):
        raise RamifyError(
            f"{path}: {len(shared['numbers'])} atomic numbers for positions of {n} atoms", fix="correct `keys`"
        )
    if "pbc" in shared and shared["pbc"].shape != (3,):
        raise RamifyError(f"{path}: pbc of shape {shared['pbc'].shape}, expected (3,)", fix="correct the file")
    if "cell" in shared and shared["cell"].shape != (3, 3):
        raise RamifyError(f"{path}: a cell of shape {shared['cell'].shape}, expected (3, 3)", fix="correct `keys`")


FORMAT = Format(name="npz", options=Options, read=read)
