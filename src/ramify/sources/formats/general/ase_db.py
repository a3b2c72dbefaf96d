"""ASE databases: SQLite (`.db`), JSON (`.json`, also compressed) and LMDB (`.aselmdb`: OMat24, OMol25), read-only.

https://wiki.fysik.dtu.dk/ase/ase/db/db.html; LMDB: https://gitlab.com/ase/ase-db-backends. Labels are read from the
results of the calculator, the key-value pairs and the row's `data` (as written by SchNetPack and fairchem). The row of
a structure is its id in the database; ids begin at 1 and may have gaps.
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
from ramify.sources.parsing.ase_json import json_metadata, json_rows
from ramify.sources.parsing.lmdb_file import require_whole
from ramify.sources.quarantine import Quarantine
from ramify.sources.units import stated_units, with_stated
from ramify.structures import Structures

ROWS = 500
"""Rows per SQLite query: ASE fetches all rows of a query before it returns the first."""

_TYPES = {".db": "db", ".json": "json", ".aselmdb": "aselmdb"}


class Options(AtomsOptions):
    """Recipe keys of `format: ase_db`."""

    format: Literal["ase_db"] = "ase_db"
    """ASE database: .db, .json or .aselmdb."""


def read(path: Path, options: Options, quarantine: Quarantine) -> Iterator[Structures]:
    """Yields all rows with an energy, with forces and stress if present.

    Raises:
        RamifyError: no such file, not an ASE database, a missing key, or units that contradict those stated in it.
    """
    database, metadata = _open(path)
    try:
        stated = _stated_units(metadata, options)
        units = with_stated(path, options.units, stated, energy_is_per_atom=options.energy_is_per_atom)
        labeller = Labeller(path, options, quarantine, units)
        yield from chunked(_records(path, database, labeller, quarantine), quarantine)
    finally:
        _close(path, database)


def _records(path: Path, database: Any, labeller: Labeller, quarantine: Quarantine) -> Iterator[Record]:
    for row in _rows(path, database, quarantine):
        try:
            found, geometry = _values(row)
        except Exception as error:  # ASE decodes parts of a row on access and may raise any exception
            quarantine.add(f"{path.name}[{row.id}]", MALFORMED_STRUCTURE, f"{type(error).__name__}: {error}")
            continue
        record = labeller.record(found, **geometry, row=int(row.id))
        if record is not None:
            yield record
    labeller.check()


def database_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yields all named values of each row of a database, without its geometry.

    Raises:
        RamifyError: no such file, or not an ASE database.
    """
    database, _ = _open(path)
    try:
        for row in _rows(path, database, Quarantine()):
            yield _values(row)[0]
    finally:
        _close(path, database)


def database_units(path: Path) -> dict[str, str]:
    """Units that the metadata of a database state, by quantity, with the default names of labels.

    Raises:
        RamifyError: no such file, or not an ASE database.
    """
    database, metadata = _open(path)
    _close(path, database)
    return _stated_units(metadata, Options(path=str(path)))


def _values(row: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """All named values of a row, and its geometry."""
    results = {name: row[name] for name in all_properties if name in row}
    geometry = {
        "numbers": np.asarray(row.numbers, np.int64),
        "positions": np.asarray(row.positions, np.float64).reshape(-1, 3),
        "cell": np.asarray(row.cell, np.float64).reshape(3, 3),
        "pbc": np.asarray(row.pbc, np.bool_),
    }
    data = {str(name): value for name, value in row.data.items()}  # ASE makes integers of names in digits
    return {**data, **row.key_value_pairs, **results}, geometry


def _rows(path: Path, database: Any, quarantine: Quarantine) -> Iterator[Any]:
    """Yields all rows in the order of their ids, with bounded memory."""
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
                except KeyError:  # a gap in the ids
                    continue
                except ValueError as error:  # an array whose shape is not that of its numbers
                    quarantine.add(f"{path.name}[{index}]", MALFORMED_STRUCTURE, str(error))
        else:
            yield from json_rows(path, quarantine)
    except (OSError, sqlite3.Error, zlib.error, ValueError, KeyError) as error:
        raise _damaged(path, error) from error


def _close(path: Path, database: Any) -> None:
    """Closes a database in LMDB, which opens a file once per process only."""
    if path.suffix == ".aselmdb":
        database.close()


def _open(path: Path) -> tuple[Any, dict[str, Any]]:
    """Opens a database; returns it (None for JSON, which is read without it) with its metadata."""
    packed = len(path.suffixes) > 1 and path.suffix not in _TYPES and path.suffixes[-2] == ".json"
    kind = "json" if packed else _TYPES.get(path.suffix)
    if kind is None:
        raise RamifyError(
            f"{path} has no extension of ASE databases ({', '.join(_TYPES)})",
            fix="correct `path` or `format`",
        )
    if not path.is_file():  # ASE would create it
        raise RamifyError(f"{path} does not exist", fix="correct `path`")
    try:
        options = {}
        if kind == "json":
            return None, json_metadata(path)
        if kind == "db":
            _require_tables(path)
        elif kind == "aselmdb":
            require_whole(path)
            options["readonly"] = True
        database = connect(str(path), type=kind, use_lock_file=False, **options)
        return database, database.metadata or {}
    except (ImportError, AttributeError) as error:
        raise RamifyError(f"{path} needs the package ase-db-backends", fix="pip install ase-db-backends") from error
    except RamifyError:
        raise
    except Exception as error:  # the errors of sqlite3, lmdb and ASE have no common base class
        raise _damaged(path, error) from error


def _require_tables(path: Path) -> None:
    """Raises an error before ASE opens the file, because ASE adds its tables to an SQLite file without them."""
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if "systems" not in tables:
        raise RamifyError(
            f"{path} is an SQLite file but not an ASE database: it has no table 'systems'",
            fix="correct `path` or `format`",
        )


def _stated_units(metadata: dict[str, Any], options: Options) -> dict[str, str]:
    """Units stated in the metadata of the database: as by SchNetPack, by ASE's descriptions of keys, or by any name."""
    descriptions = metadata.get("key_descriptions")  # https://wiki.fysik.dtu.dk/ase/ase/db/db.html
    described = {
        f"{key}_unit": str(given[2])
        for key, given in (descriptions.items() if isinstance(descriptions, dict) else ())
        if isinstance(given, list | tuple) and len(given) == 3 and given[2]
    }
    properties = metadata.get("_property_unit_dict")
    packed = (
        {f"{key}_unit": str(unit) for key, unit in properties.items() if unit} if isinstance(properties, dict) else {}
    )
    if metadata.get("_distance_unit"):
        packed["distance_unit"] = str(metadata["_distance_unit"])
    plain = {name: value for name, value in metadata.items() if not name.startswith("_")}
    names = {"energy": options.energy_key, "forces": options.forces_key}
    stated = stated_units({**described, **plain, **packed}, **names, stress=options.stress_key)
    stated.pop("virial", None)
    return stated


def _damaged(path: Path, error: Exception) -> RamifyError:
    return RamifyError(
        f"{path} cannot be read as an ASE database: {type(error).__name__}: {error}",
        fix="correct `path` or `format`, or compare its checksum and download it again",
    )


FORMAT = Format(name="ase_db", options=Options, read=read)
