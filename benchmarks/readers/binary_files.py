"""Binary files: HDF5, numpy, TFRecord, LMDB, Parquet and ASE's own."""

import json
import sqlite3
import struct
import zlib
from collections.abc import Callable
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import h5py
import lmdb
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from ase.db.row import AtomsRow
from ase.io import Trajectory
from ase.io.jsonio import encode
from benchmarks.readers.pool import CELL, POOL, Sample, pool

from ramify.sources.parsing.tfrecord import masked_crc

ROWS = 2000
"""Conformations of a group of HDF5."""


def write_hdf5(name: str, path: Path, size: float) -> dict[str, Any]:
    """Writes groups of `ROWS` conformations (qm7x: groups of single ones) until the file has about `size` bytes."""
    rng, written = np.random.default_rng(0), 0.0
    with h5py.File(path, "w") as file:
        for k in count():
            if written >= size:
                return {"labels": "pbe0"} if name == "qm7x" else {}
            n = 6 + k % 25
            numbers = rng.choice([1, 6, 7, 8], n)
            if name == "qm7x":
                written += _qm7x_molecule(file, str(k), numbers, rng)
                continue
            arrays = _conformations(name, numbers, rng)
            group = file.create_group(_group_name(name, k))
            for key, value in arrays.items():
                group[key] = value
                written += np.asarray(value).nbytes
    raise AssertionError


def _group_name(name: str, k: int) -> str:
    return {"transition1x": f"train/f{k}/rxn{k:05d}", "ani1": f"set/mol-{k}"}.get(name, f"m{k}")


def _conformations(name: str, numbers: Any, rng: np.random.Generator) -> dict[str, Any]:
    n = len(numbers)
    positions = rng.normal(0, 2, (ROWS, n, 3)).astype(np.float32)
    forces = rng.normal(0, 0.05, (ROWS, n, 3)).astype(np.float32)
    energies = rng.normal(-80, 1, ROWS)
    if name == "ani1x":
        return {"atomic_numbers": numbers.astype(np.uint8), "coordinates": positions}  | {
            "wb97x_dz.energy": energies, "wb97x_dz.forces": forces,
        }  # fmt: skip
    if name == "ani1":
        letters = np.array([{1: b"H", 6: b"C", 7: b"N", 8: b"O"}[z] for z in numbers.tolist()])
        return {"species": letters, "coordinates": positions, "energies": energies, "forces": forces}
    if name == "ani2x":
        return {"species": np.tile(numbers, (ROWS, 1)), "coordinates": positions} | {
            "energies": energies, "forces": forces,
        }  # fmt: skip
    if name == "spice":
        arrays = {"atomic_numbers": numbers.astype(np.int16), "conformations": positions}
        arrays |= {"dft_total_energy": energies, "dft_total_gradient": forces}
        return arrays | {"subset": [b"PubChem 1"], "smiles": [b"[H:1][O:2][H:3]"]}
    kind = "wB97x_6-31G(d)"
    return {"atomic_numbers": numbers, "positions": positions, f"{kind}.energy": energies, f"{kind}.forces": forces}


def _qm7x_molecule(file: h5py.File, name: str, numbers: Any, rng: np.random.Generator) -> float:
    """A molecule with 101 copies of a conformer; returns its size in bytes, which is mostly HDF5's own."""
    first = file.create_group(f"{name}/Geom-m{name}-i1-c1-opt")
    first["atNUM"], first["atXYZ"] = numbers, rng.normal(0, 2, (len(numbers), 3))
    first["ePBE0"], first["pbe0FOR"] = rng.normal(-9000, 1, 1), rng.normal(0, 1, (len(numbers), 3))
    for k in range(1, 101):
        h5py.h5o.copy(first.id, b".", file[name].id, f"Geom-m{name}-i1-c1-d{k}".encode())
    return 101 * 2600.0


def write_npz(path: Path, size: float) -> dict[str, Any]:
    """Writes padded molecules of up to 40 atoms."""
    rng, rows = np.random.default_rng(0), int(size / (40 * (24 + 24 + 8) + 8))
    z = rng.choice([1, 6, 7, 8], (rows, 40))
    z[:, 32:] = 0
    arrays = {"z": z, "R": rng.normal(0, 3, (rows, 40, 3)), "F": rng.normal(0, 1, (rows, 40, 3))}
    np.savez(path, **arrays, E=rng.normal(-90, 1, (rows, 1)))
    return {"units": {"energy": "eV"}}


def write_deepmd(path: Path, size: float) -> dict[str, Any]:
    """Writes sets of 5000 frames of 64 molecules of water; `path` is a `type.raw`."""
    rng, frames, folder = np.random.default_rng(0), 500, path.parent
    path.write_text("\n".join(["0", "1", "1"] * 64))
    (folder / "type_map.raw").write_text("O\nH\n")
    for k in range(max(1, int(size / (frames * (6 * 192 + 19) * 8)))):
        (folder / f"set.{k:05d}").mkdir()
        for name, width in (("coord", 576), ("force", 576), ("energy", 1), ("virial", 9)):
            np.save(folder / f"set.{k:05d}/{name}.npy", rng.normal(0, 3, (frames, width)))
        np.save(folder / f"set.{k:05d}/box.npy", np.tile(12 * np.eye(3).reshape(-1), (frames, 1)))
    return {}


def write_deepmd_lmdb(path: Path, size: float) -> dict[str, Any]:
    """Writes frames of DeePMD-kit; `path` is a `data.mdb`."""
    import msgpack

    def encoded(array: Any) -> dict[str, Any]:
        array = np.asarray(array)
        return {"type": str(array.dtype), "shape": list(array.shape), "data": array.tobytes()}

    kinds = {1: 0, 6: 1, 7: 2, 8: 3, 14: 4, 29: 5}
    values = [
        msgpack.packb(
            {
                "atom_types": encoded([kinds[z] for z in s.numbers.tolist()]),
                "coords": encoded(s.positions),
                "cells": encoded(CELL),
                "energies": encoded(s.energy),
                "forces": encoded(s.forces),
                "virials": encoded(-s.stress * 729),
            }
        )
        for s in pool()
    ]
    metadata = msgpack.packb({"frame_idx_fmt": "012d", "type_map": ["H", "C", "N", "O", "Si", "Cu"]})
    entry = lambda k: (format(k, "012d").encode(), values[k % len(values)])  # noqa: E731
    _fill_lmdb(path, size, entry, lambda: {b"__metadata__": metadata})
    return {}


def _fill_lmdb(
    path: Path, size: float, entry: Callable[[int], tuple[bytes, bytes]], last: Callable[[], dict[bytes, bytes]]
) -> None:
    with lmdb.open(str(path), subdir=False, map_size=int(2 * size) + 2**24, sync=False) as environment:
        k = 0
        while path.stat().st_size < size or k == 0:
            with environment.begin(write=True) as rows:
                for _ in range(1000):
                    rows.put(*entry(k))
                    k += 1
        with environment.begin(write=True) as rows:
            for key, value in last().items():
                rows.put(key, value)


def write_parquet(path: Path, size: float) -> dict[str, Any]:
    """Writes rows of ColabFit."""
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist([_row(sample) for sample in pool()])
    with pyarrow.parquet.ParquetWriter(str(path), table.schema, use_dictionary=False) as writer:
        together = pyarrow.concat_tables([table] * 25)
        while not path.exists() or path.stat().st_size < size:
            writer.write_table(together)
    return {}


def _row(s: Sample) -> dict[str, Any]:
    geometry = {"atomic_numbers": s.numbers.tolist(), "positions": s.positions.tolist(), "cell": CELL.tolist()}
    labels = {"energy": s.energy, "atomic_forces": s.forces.tolist(), "cauchy_stress": s.stress.tolist()}
    return {"configuration_id": "CO", "method": "DFT-PBE", "pbc": [True] * 3} | geometry | labels


def write_qcml(path: Path, size: float) -> dict[str, Any]:
    """Writes records of QCML."""
    packed = [_example(s) for s in pool()]
    records = [
        head + struct.pack("<I", masked_crc(head)) + data + struct.pack("<I", masked_crc(data))
        for data in packed
        for head in [struct.pack("<Q", len(data))]
    ]
    with path.open("wb") as file:
        while file.tell() < size:
            file.write(b"".join(records))
    return {"length": "Å"}


def _example(s: Sample) -> bytes:
    """`tf.train.Example` in the wire format of protocol buffers (protobuf.dev/programming-guides/encoding)."""

    def field(number: int, data: bytes) -> bytes:
        return bytes([number << 3 | 2]) + _varint(len(data)) + data

    def floats(values: Any) -> bytes:
        return field(2, field(1, np.asarray(values, "<f4").tobytes()))

    def integers(values: Any) -> bytes:
        return field(3, field(1, b"".join(map(_varint, values))))

    features = {
        "atomic_numbers": integers(s.numbers.tolist()),
        "positions": floats(s.positions.reshape(-1)),
        "pbe0_formation_energy": floats([s.energy]),
        "pbe0_forces": floats(s.forces.reshape(-1)),
        "charge": integers([0]),
        "multiplicity": integers([1 + int(s.numbers.sum()) % 2]),
        "is_outlier": integers([0]),
    }
    return field(1, b"".join(field(1, field(1, name.encode()) + field(2, value)) for name, value in features.items()))


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def _atoms() -> list[Atoms]:
    made = []
    for s in pool():
        atoms = Atoms(s.numbers, s.positions, cell=CELL, pbc=True)
        atoms.calc = SinglePointCalculator(atoms, energy=s.energy, forces=s.forces, stress=s.stress.reshape(-1)[:6])
        made.append(atoms)
    return made


def write_ase_db(path: Path, size: float) -> dict[str, Any]:
    """Writes an ASE database, SQLite, JSON or LMDB by the ending; ASE writes `POOL` rows, the others are copies."""
    first = path.with_name(f"first{path.suffix}")
    if path.suffix == ".json":
        _write_json_rows(path, size)
        return {}
    with connect(str(first)) as database:
        for k, image in enumerate(_atoms()):
            database.write(image, data={"sid": k})
    if path.suffix == ".db":
        first.rename(path)
        _copy_rows(path, size)
        return {}
    with lmdb.open(str(first), subdir=False, readonly=True, lock=False) as opened, opened.begin() as rows:
        values = [bytes(rows.get(str(k + 1).encode())) for k in range(POOL)]
    first.unlink()
    count = 0

    def entry(k: int) -> tuple[bytes, bytes]:
        nonlocal count
        count = k + 1
        return str(k + 1).encode(), values[k % POOL]

    _fill_lmdb(path, size, entry, lambda: {b"nextid": _packed(count + 1), b"deleted_ids": _packed([])})
    return {}


def _write_json_rows(path: Path, size: float) -> None:
    """Writes rows as `ase/db/jsondb.py`, which writes the whole file for every row."""
    texts = []
    for k, image in enumerate(_atoms()):
        row = AtomsRow(image)
        members = {name: row[name] for name in row if name != "id"} | {"mtime": 26.0, "ctime": 26.0, "user": "a"}
        members |= {"data": {"sid": k}}
        texts.append(",\n ".join(f'"{name}": {encode(members[name])}' for name in sorted(members)))
    with path.open("w") as file:
        file.write("{")
        count = 0
        while file.tell() < size:
            count += 1
            file.write(f'"{count}": {{\n {texts[count % POOL]}}},\n')
        file.write(f'"ids": {list(range(1, count + 1))},\n"nextid": {count + 1}}}\n')


def _packed(value: Any) -> bytes:
    """A value as ase-db-backends stores it."""
    return zlib.compress(json.dumps(value).encode())


def _copy_rows(path: Path, size: float) -> None:
    with closing(sqlite3.connect(path)) as database:
        names = [name for _, name, *_ in database.execute("PRAGMA table_info(systems)") if name != "id"]
        others = ", ".join(name for name in names if name != "unique_id")
        copy = (
            f"INSERT INTO systems (unique_id, {others}) SELECT hex(randomblob(16)), {others} FROM systems WHERE id <= ?"
        )
        while path.stat().st_size < size:
            for _ in range(10):
                database.execute(copy, (POOL,))
            database.commit()


def write_ase_traj(path: Path, size: float) -> dict[str, Any]:
    """Writes frames of an ASE trajectory."""
    images, k = _atoms(), 0
    with Trajectory(path, "w") as file:
        while k % 100 or not path.exists() or path.stat().st_size < size:
            file.write(images[k % len(images)])
            k += 1
    return {}
