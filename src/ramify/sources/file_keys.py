"""Names in a file of any format, with types and shapes, as far as they are known before it is read."""

import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np
from ase import Atoms

from ramify.sources.formats.general import ase_traj
from ramify.sources.formats.general.ase_db import database_rows, database_units
from ramify.sources.formats.general.deepmd import array_files
from ramify.sources.formats.general.deepmd_lmdb import frames_of
from ramify.sources.formats.general.extxyz import parsed_frames
from ramify.sources.formats.materials import espresso, vasp
from ramify.sources.formats.materials.fitsnap import load
from ramify.sources.parsing.ase_frames import named_values
from ramify.sources.parsing.hdf5 import first_arrays
from ramify.sources.parsing.json_stream import items
from ramify.sources.parsing.parquet_columns import column_types
from ramify.sources.parsing.tfrecord import parse_example, records
from ramify.sources.quarantine import Quarantine

FRAMES = 100
"""Frames or rows whose keys are listed."""

FRAME_READERS: dict[str, Callable[[Path], Iterable[Atoms]]] = {
    "ase_traj": ase_traj.frames,
    "vasp": vasp.frames,
    "espresso": espresso.frames,
}
"""By format, a reader of ASE's frames."""


def keys_of(path: Path, name: str) -> Iterator[tuple[str, str]]:
    """Yields the names in a file, with type and shape; of one number or text, with its value.

    Args:
        path: the file, or folder of DeePMD-kit.
        name: of its format.

    Raises:
        RamifyError: the file is damaged at its beginning.
    """
    if name in ("extxyz", "oc20"):
        frames = islice(parsed_frames(path, Quarantine()), FRAMES)
        yield from _described({**frame.info, **frame.arrays} for _, frame in frames)
    elif name in FRAME_READERS:
        yield from _described(named_values(atoms) for atoms in islice(FRAME_READERS[name](path), FRAMES))
    elif name == "ase_db":
        yield from _described(islice(database_rows(path), FRAMES))
        yield from ((f"unit of {kind}", unit) for kind, unit in database_units(path).items())
    elif name == "parquet":
        yield from column_types(path).items()
    elif name == "deepmd_lmdb":
        yield from _described(islice(frames_of(path), FRAMES))
    elif name == "deepmd":
        for file in array_files(path):
            with file.open("rb") as stream:
                yield file.stem, _array(stream)
    elif name == "fitsnap":
        dataset = load(path)
        yield from _described([{key: value for key, value in dataset.items() if key != "Data"}, dataset["Data"][0]])
    elif name == "npz":
        with zipfile.ZipFile(path) as archive:
            for entry in archive.namelist():
                with archive.open(entry) as stream:
                    yield entry.removesuffix(".npy"), _array(stream)
    elif name in ("mptrj", "alexandria", "matpes", "jarvis", "mlearn"):
        item = next(items(path))
        inner = next(iter(item.value.values()), None)
        yield from _described([inner if name == "mptrj" and isinstance(inner, dict) else item.value])
    elif name == "qcml":
        yield from _described([parse_example(next(records(path)))])
    elif name in ("ani1", "ani1x", "ani2x", "spice", "qm7x", "transition1x"):
        with h5py.File(path, "r") as file:
            for key, array in first_arrays(file).items():
                text = array.size == 1 and (array.dtype.kind == "S" or h5py.check_string_dtype(array.dtype) is not None)
                yield key, _kind(np.asarray(array[()])) if text else f"{array.dtype} {array.shape}"


def _array(stream: IO[bytes]) -> str:
    """Type and shape of an array of numpy; of one text, the text."""
    version = np.lib.format.read_magic(stream)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, kind = header(stream)
    if kind.kind in "US" and np.prod(shape) == 1 and kind.itemsize < 1000:
        return _kind(np.frombuffer(stream.read(kind.itemsize), kind))
    return f"{kind} {shape}"


def _described(found: Any) -> Iterator[tuple[str, str]]:
    """Each name in a sequence of mappings once, with type and shape of its first value."""
    seen: set[str] = set()
    for values in found:
        for name, value in values.items():
            if name not in seen:
                seen.add(name)
                yield str(name), _kind(value)


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"mapping of {', '.join(list(map(str, value))[:6])}"
    if isinstance(value, list | tuple | np.ndarray):
        try:
            array = np.asarray(value)
        except ValueError:
            return f"list of {len(value)}"
        if array.size != 1:
            return f"{array.dtype} {array.shape}"
        value = array.reshape(-1)[0]
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    kind = "str" if isinstance(value, str) else type(value).__name__
    return f"{kind} {str(value)[:40]}"
