"""ASE databases: SQLite (`.db`), JSON (`.json`) and LMDB (`.aselmdb`: OMat24, OMol25, ODAC25, sAlex), read-only.

Labels are looked for among the results of the calculator, the key-value pairs and the row's `data` (where SchNetPack
keeps them). The row of a structure is its id in the database, which begins at 1 and may have holes.
"""

import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ase.calculators.calculator import all_properties
from ase.db import connect

from ramify.errors import RamifyError
from ramify.quarantine import Quarantine
from ramify.sources.base import Format
from ramify.sources.chunks import Record, chunked
from ramify.sources.labels import ENERGY_UNITS, LENGTH_UNITS, AtomsOptions, Labeller
from ramify.structures import Structures

ROWS = 500
"""Rows asked of SQLite at a time: ASE fetches all it asks for before it gives the first."""

_TYPES = {".db": "db", ".json": "json", ".aselmdb": "aselmdb"}
_SCHNETPACK = {"Ang": "Å", "Angstrom": "Å", "A": "Å", "Bohr": "bohr", "Ha": "Hartree"}


class Options(AtomsOptions):
    """Recipe keys of `format: ase_db`."""

    format: Literal["ase_db"] = "ase_db"
    """ASE database: .db, .json or .aselmdb."""


def read(path: Path, options: Options, quarantine: Quarantine) -> Iterator[Structures]:
    """Yields every row with an energy; forces and stress where they are given.

    Raises:
        RamifyError: no such file, no ASE database, a key that it does not have, or units that contradict its own.
    """
    database, metadata = _open(path)
    try:
        _require_units(path, metadata, options)
        yield from chunked(_records(path, database, options), quarantine)
    finally:
        if path.suffix == ".aselmdb":  # LMDB opens a file once per process only
            database.close()


def _records(path: Path, database: Any, options: Options) -> Iterator[Record]:
    labeller = Labeller(path, options)
    for row in _rows(path, database):
        results = {name: row[name] for name in all_properties if name in row}
        yield labeller.record(
            {**row.data, **row.key_value_pairs, **results},
            numbers=np.asarray(row.numbers),
            positions=np.asarray(row.positions),
            cell=np.asarray(row.cell).reshape(3, 3),
            pbc=np.asarray(row.pbc, np.bool_),
            row=int(row.id),
        )
    labeller.check()


def _rows(path: Path, database: Any) -> Iterator[Any]:
    """Every row in the order of the ids, with bounded memory (a JSON database is held whole by ASE)."""
    try:
        if path.suffix == ".db":
            last = 0
            while rows := list(database.select(f"id>{last}", limit=ROWS)):
                yield from rows
                last = rows[-1].id
        elif path.suffix == ".aselmdb":
            for index in database.ids:
                try:
                    yield database.get(id=index)
                except KeyError:  # a hole in the ids is no row
                    continue
        else:
            yield from database.select()
    except (OSError, sqlite3.Error, zlib.error, ValueError, KeyError) as error:
        raise _damaged(path, error) from error


def _open(path: Path) -> tuple[Any, dict[str, Any]]:
    """The database and what it says of itself."""
    kind = _TYPES.get(path.suffix)
    if kind is None:
        raise RamifyError(
            f"{path} has no ending of an ASE database ({', '.join(_TYPES)})", fix="correct `path` or `format`"
        )
    if not path.is_file():  # ASE would create it
        raise RamifyError(f"{path} does not exist", fix="correct `path`")
    try:
        options = {}
        if kind == "db":
            _require_tables(path)
        elif kind == "aselmdb":
            _require_whole_lmdb(path)
            options["readonly"] = True
        database = connect(str(path), type=kind, use_lock_file=False, **options)
        return database, database.metadata or {}
    except (ImportError, AttributeError) as error:
        raise RamifyError(f"{path} needs the package ase-db-backends", fix="pip install ase-db-backends") from error
    except RamifyError:
        raise
    except Exception as error:  # the errors of sqlite3, lmdb and ASE have no base in common
        raise _damaged(path, error) from error


def _require_tables(path: Path) -> None:
    """Raises before ASE opens the file, because ASE writes its tables into an SQLite file that has none."""
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if "systems" not in tables:
        raise RamifyError(
            f"{path} is an SQLite file but no ASE database: it has no table 'systems'",
            fix="correct `path` or `format`",
        )


def _require_whole_lmdb(path: Path) -> None:
    """Raises if pages are missing: LMDB maps the file into memory, and reading beyond its end kills the process."""
    import lmdb

    with lmdb.open(str(path), subdir=False, readonly=True, lock=False) as environment:
        pages, page_size = environment.info()["last_pgno"] + 1, environment.stat()["psize"]
    if path.stat().st_size < pages * page_size:
        raise RamifyError(
            f"{path} is cut short: {path.stat().st_size} of {pages * page_size} bytes",
            fix="compare its size and checksum with the publisher's and download it again",
        )


def _require_units(path: Path, metadata: dict[str, Any], options: Options) -> None:
    """Units that the database states (SchNetPack does) are those of the recipe."""
    stated = metadata.get("_property_unit_dict") or {}
    energy, length = stated.get(options.energy_key), metadata.get("_distance_unit")
    for key, unit, known, said in (
        ("energy", energy, ENERGY_UNITS, options.units.energy),
        ("length", length, LENGTH_UNITS, options.units.length),
    ):
        name = _SCHNETPACK.get(str(unit), str(unit))
        if unit is not None and known.get(name) != known[said]:
            raise RamifyError(
                f"{path} states that its {key} is in {unit}, the recipe reads it as {said}",
                fix=f"set `units: {{{key}: {name}}}`" if name in known else f"convert the {key} to {said} first",
            )


def _damaged(path: Path, error: Exception) -> RamifyError:
    return RamifyError(
        f"{path} cannot be read as an ASE database: {type(error).__name__}: {error}",
        fix="correct `path` or `format`, or compare its checksum and download it again",
    )


FORMAT = Format(name="ase_db", options=Options, read=read)
