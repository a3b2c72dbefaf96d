"""Merely parsing files: what the library below a reader does, without any conversion or check.

HDF5: h5py reads every array. JSON: the pieces of the file are parsed. Extended XYZ: the numbers of all rows are
converted. numpy: every array is read. TFRecord: records are decoded, checksums included. LMDB of DeePMD-kit:
MessagePack. Parquet: pyarrow reads every batch. ASE's databases and trajectories, and outputs of VASP and pw.x: ASE
reads every row.
"""

import lzma
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import h5py
import lmdb
import numpy as np
from ase.db import connect
from ase.io import Trajectory, iread

from ramify.sources.parsing.json_stream import items
from ramify.sources.parsing.tfrecord import parse_example, records

OUTPUTS = {"vasp.xml": "vasp-xml", "vasp.OUTCAR": "vasp-out", "espresso": "espresso-out"}
"""ASE's names of the outputs of programs."""


def parse(kind: str, path: Path) -> int:
    """Parses a file; returns a number of records."""
    if path.suffix == ".h5":
        return _hdf5(path)
    if path.suffix == ".json" and kind != "ase_db.json":
        return sum(1 for _ in items(path))
    if "extxyz" in path.name:
        return _xyz(path)
    if kind == "npz":
        with np.load(path) as arrays:
            return sum(len(arrays[name]) for name in arrays)
    if kind == "deepmd":
        return sum(len(np.load(file)) for file in path.parent.rglob("*.npy"))
    if kind == "deepmd_lmdb":
        return _messages(path)
    if kind == "parquet":
        import pyarrow.parquet

        return sum(len(b) for b in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1000, use_threads=False))
    if kind == "qcml":
        return sum(len(parse_example(data)) for data in records(path))
    if kind == "ase_traj":
        return sum(len(atoms) for atoms in Trajectory(str(path)))
    if kind in OUTPUTS:
        return sum(len(atoms) for atoms in iread(str(path), ":", format=OUTPUTS[kind]))
    database: Any = connect(str(path), use_lock_file=False)
    if path.suffix in (".db", ".json"):
        return sum(1 for _ in database.select())
    return sum(1 for k in database.ids if database.get(id=k))


def _hdf5(path: Path) -> int:
    count = 0

    def take(name: str, item: Any) -> None:
        nonlocal count
        if isinstance(item, h5py.Dataset):
            count += np.size(item[()])

    with h5py.File(path) as file:
        file.visititems(take)
    return count


@contextmanager
def _lines(path: Path) -> Iterator[IO[str]]:
    with lzma.open(path, "rt") if path.suffix == ".xz" else path.open() as file:
        yield file


def _xyz(path: Path) -> int:
    count = 0
    with _lines(path) as file:
        for line in file:
            next(file)
            for _ in range(int(line)):
                words = next(file).split()
                count += len([float(word) for word in words[1:4] + words[-3:]])
    return count


def _messages(path: Path) -> int:
    import msgpack

    with lmdb.open(str(path), subdir=False, readonly=True, lock=False) as environment, environment.begin() as rows:
        return sum(len(msgpack.unpackb(value)) for _, value in rows.cursor())
