"""Parser for one frame of extended XYZ: `key=value` pairs of the comment line, and columns of the atoms."""

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ramify.elements import NUMBERS
from ramify.sources.chunks import MALFORMED_STRUCTURE, UnusableError

_BRACKETS = r"\[(?:[^\[\]]|\[(?:[^\[\]]|\[[^\[\]]*\])*\])*\]"  # up to three nested levels
_PAIR = re.compile(
    r"\s*(?P<key>\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|[^\s=\"']+)"
    r"(?:\s*=\s*(?:\"(?P<double>(?:[^\"\\]|\\.)*)\"|'(?P<single>(?:[^'\\]|\\.)*)'|\{(?P<braces>[^{}]*)\}"
    rf"|(?P<brackets>{_BRACKETS})|(?P<bare>\S*)))?"
)
_FLAGS = {
    "T": True,
    "F": False,
    "true": True,
    "false": False,
    "True": True,
    "False": False,
    "TRUE": True,
    "FALSE": False,
}
_RENAMED = {"pos": "positions", "Z": "numbers", "charge": "initial_charges", "species": "symbols"}  # names in ASE
_TEXT_KEYS = {"uid"}  # never parsed as a number, as in ASE


@dataclass(frozen=True, kw_only=True, slots=True)
class XYZFrame:
    """One frame in the units of the file.

    Attributes:
        numbers: (n,) atomic numbers.
        positions: (n, 3).
        cell: (3, 3), rows are lattice vectors; zero without `Lattice`.
        pbc: (3,).
        info: values of the comment line. 9 numbers of `stress` or `virial` are (3, 3).
        arrays: columns other than species and positions, (n,) or (n, c).
    """

    numbers: NDArray[np.int64]
    positions: NDArray[np.float64]
    cell: NDArray[np.float64]
    pbc: NDArray[np.bool_]
    info: dict[str, Any]
    arrays: dict[str, NDArray[Any]]


def parse_frame(lines: list[str]) -> XYZFrame:
    """Parses the lines of a frame: the number of atoms, the comment, one line per atom.

    Raises:
        UnusableError: the frame cannot be parsed.
    """
    info = parse_comment(lines[1])
    cell, pbc = _periodicity(info)
    properties = str(info.pop("Properties", "species:S:1:pos:R:3"))
    arrays = _columns(lines[2:], _layout(properties))
    if "positions" not in arrays or arrays["positions"].shape[1:] != (3,):
        raise UnusableError(MALFORMED_STRUCTURE, f"Properties={properties} has no pos:R:3")
    numbers = arrays.pop("numbers", None)
    symbols = arrays.pop("symbols", None)
    if numbers is None:
        if symbols is None:
            raise UnusableError(MALFORMED_STRUCTURE, f"Properties={properties} has neither species nor Z")
        numbers = _numbers(symbols)
    positions = arrays.pop("positions")
    return XYZFrame(numbers=numbers, positions=positions, cell=cell, pbc=pbc, info=info, arrays=arrays)


def parse_comment(line: str) -> dict[str, Any]:
    """Parses the pairs of a comment line: integers, floats, arrays of these, booleans, JSON or text; a key without a
    value is true.

    Raises:
        UnusableError: a key occurs twice, with different values.
    """
    found: dict[str, Any] = {}
    for match in _PAIR.finditer(line.strip()):
        key = match["key"]
        if key[0] in "\"'":
            key = _unescaped(key[1:-1])
        text = next(
            (match[g] for g in ("double", "single", "braces", "brackets", "bare") if match[g] is not None), None
        )
        quoted = match["double"] is not None or match["single"] is not None
        text = "T" if text is None else _unescaped(text) if quoted else text
        value = text if key.lower() in _TEXT_KEYS else _value(key, text)
        if key in found and not np.array_equal(found[key], value):
            raise UnusableError(MALFORMED_STRUCTURE, f"{key} occurs twice, with different values")
        found[key] = value
    return found


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text) if "\\" in text else text


def _value(key: str, text: str) -> Any:
    if text.startswith("_JSON "):
        return _from_json(text.removeprefix("_JSON "))
    words = re.sub(r"[\[\]{},]", " ", text).split()
    try:
        numbers = np.array(list(map(int, words)))
    except (ValueError, OverflowError):
        try:
            numbers = np.array(list(map(float, words)))
        except ValueError:
            flags = [_FLAGS.get(word) for word in words]
            if None in flags or not flags:
                return text
            return flags[0] if len(flags) == 1 else flags
    if not words:
        return text
    if len(numbers) == 9 and key in ("stress", "virial", "Lattice"):
        return numbers.reshape(3, 3)
    return numbers[0] if len(numbers) == 1 else numbers


def _from_json(text: str) -> Any:
    try:
        value = json.loads(text)
        array = np.array(value)
    except ValueError:
        return text
    return array if array.dtype.kind in "ifb" and array.ndim else value


def _periodicity(info: dict[str, Any]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Removes cell and periodic axes from the values of the comment line and returns them."""
    lattice, pbc = info.pop("Lattice", None), info.pop("pbc", None)
    cell = np.zeros((3, 3))
    if lattice is not None:
        if not isinstance(lattice, np.ndarray) or lattice.size != 9:
            raise UnusableError(MALFORMED_STRUCTURE, f"Lattice is not nine numbers: {str(lattice)[:60]!r}")
        cell = lattice.astype(np.float64).reshape(3, 3)
    if pbc is None:
        return cell, np.full(3, lattice is not None)
    flags = list(pbc) if isinstance(pbc, list | np.ndarray) else [pbc] * 3
    if len(flags) != 3 or not all(isinstance(f, bool | np.bool_ | np.integer) and int(f) in (0, 1) for f in flags):
        raise UnusableError(MALFORMED_STRUCTURE, f"pbc is not one or three of T and F (or 1 and 0): {str(pbc)[:60]!r}")
    return cell, np.array(flags, np.bool_)


class _Column(NamedTuple):
    name: str
    kind: str  # R, I, S, L
    start: int
    stop: int


@lru_cache(maxsize=256)
def _layout(properties: str) -> tuple[_Column, ...]:
    """Columns described by `Properties`: a sequence of name:type:number."""
    fields, columns, start = properties.split(":"), [], 0
    for name, kind, width in zip(fields[::3], fields[1::3], fields[2::3], strict=False):
        if kind not in ("R", "I", "S", "L") or not width.isdecimal():
            raise UnusableError(MALFORMED_STRUCTURE, f"Properties={properties} has an unknown type at '{name}'")
        columns.append(_Column(_RENAMED.get(name, name), kind, start, start + int(width)))
        start += int(width)
    if twice := {column.name for column in columns if [c.name for c in columns].count(column.name) > 1}:
        raise UnusableError(MALFORMED_STRUCTURE, f"Properties={properties} names {', '.join(sorted(twice))} twice")
    if len(fields) % 3:
        raise UnusableError(MALFORMED_STRUCTURE, f"Properties={properties} is not name:type:number, repeated")
    return tuple(columns)


def _columns(rows: list[str], layout: tuple[_Column, ...]) -> dict[str, NDArray[Any]]:
    width = layout[-1].stop if layout else 0
    words = [row.split() for row in rows]
    for index, row in enumerate(words):
        if len(row) < width:
            raise UnusableError(MALFORMED_STRUCTURE, f"row {index} has {len(row)} of {width} columns")
    arrays = {}
    for name, kind, start, stop in layout:
        flat = [word for row in words for word in row[start:stop]]
        try:
            array = _typed(flat, kind)
        except (ValueError, KeyError, OverflowError) as error:
            raise UnusableError(MALFORMED_STRUCTURE, f"column {name}: {error}") from error
        arrays[name] = array if stop - start == 1 else array.reshape(len(rows), stop - start)
    return arrays


def _typed(words: list[str], kind: str) -> NDArray[Any]:
    if kind == "R":
        return np.array(list(map(float, words)), np.float64)
    if kind == "I":
        return np.array(list(map(int, words)), np.int64)
    if kind == "L":
        return np.array([_FLAGS[word] for word in words], np.bool_)
    return np.array(words, np.str_) if words else np.zeros(0, "<U1")


def _numbers(symbols: NDArray[np.str_]) -> NDArray[np.int64]:
    found = [NUMBERS.get(symbol.capitalize()) for symbol in symbols.tolist()]
    if None in found:
        unknown = sorted({s for s, z in zip(symbols.tolist(), found, strict=True) if z is None})
        raise UnusableError(MALFORMED_STRUCTURE, f"{unknown[:5]} in the column species are not element symbols")
    return np.array(found, np.int64)
