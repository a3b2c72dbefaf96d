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
from ramify.sources.base import Format
from ramify.sources.chunks import MALFORMED_STRUCTURE, Record, chunked
from ramify.sources.labels import AtomsOptions, Labeller
from ramify.sources.quarantine import Quarantine
from ramify.sources.units import with_stated
from ramify.structures import Structures

ROWS = 500
"""Rows asked of SQLite at a time: ASE fetches all it asks for before it gives the first."""

_TYPES = {".db": "db", ".json": "json", ".aselmdb": "aselmdb"}


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
        units = with_stated(path, options.units, _stated_units(metadata, options))
        labeller = Labeller(path, options, quarantine, units)
        yield from chunked(_records(path, database, labeller, quarantine), quarantine)
    finally:
        if path.suffix == ".aselmdb":  # LMDB opens a file once per process only
            database.close()


def _records(path: Path, database: Any, labeller: Labeller, quarantine: Quarantine) -> Iterator[Record]:
    for row in _rows(path, database):
        try:
            found, geometry = _values(row)
        except Exception as error:  # ASE decodes a row's parts when they are asked for, and raises what it comes upon
            quarantine.add(f"{path.name}[{row.id}]", MALFORMED_STRUCTURE, f"{type(error).__name__}: {error}")
            continue
        record = labeller.record(found, **geometry, row=int(row.id))
        if record is not None:
            yield record
    labeller.check()


def database_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Everything that each row of a database names, apart from its geometry.

    Raises:
        RamifyError: no such file, or no ASE database.
    """
    database, _ = _open(path)
    try:
        for row in _rows(path, database):
            yield _values(row)[0]
    finally:
        if path.suffix == ".aselmdb":
            database.close()


def _values(row: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Everything that a row names, and its geometry."""
    results = {name: row[name] for name in all_properties if name in row}
    geometry = {
        "numbers": np.asarray(row.numbers, np.int64),
        "positions": np.asarray(row.positions, np.float64).reshape(-1, 3),
        "cell": np.asarray(row.cell, np.float64).reshape(3, 3),
        "pbc": np.asarray(row.pbc, np.bool_),
    }
    return {**row.data, **row.key_value_pairs, **results}, geometry


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


def _stated_units(metadata: dict[str, Any], options: Options) -> dict[str, str | None]:
    """Units that the database states of itself, as SchNetPack does."""
    properties = metadata.get("_property_unit_dict")
    properties = properties if isinstance(properties, dict) else {}
    keys = {"energy": options.energy_key, "forces": options.forces_key, "stress": options.stress_key}
    stated = {kind: properties.get(key) for kind, key in keys.items()} | {"length": metadata.get("_distance_unit")}
    return {kind: None if unit in (None, "") else str(unit) for kind, unit in stated.items()}


def _damaged(path: Path, error: Exception) -> RamifyError:
    return RamifyError(
        f"{path} cannot be read as an ASE database: {type(error).__name__}: {error}",
        fix="correct `path` or `format`, or compare its checksum and download it again",
    )


FORMAT = Format(name="ase_db", options=Options, read=read)
