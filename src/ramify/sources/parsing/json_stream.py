"""Streaming parser for the objects of a JSON file, with memory bounded by the largest object.

The text is split where its brace depth returns to that of the outermost container, which is computed for a whole block
at once; each piece is parsed by orjson, which does not support streams, or by the standard library if it contains NaN.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from ramify.errors import RamifyError
from ramify.sources.parsing.compressed import cut_short, open_bytes

BLOCK = 1 << 20
"""Bytes per read."""

_QUOTE, _OPEN, _CLOSE = ord('"'), ord("{"), ord("}")


@dataclass(frozen=True, slots=True)
class Item:
    """One JSON object of a stream.

    Attributes:
        key: member of the outermost object that it is, or is part of; empty if the outermost container is an array.
        index: position in the array of `key` (or in the outermost array); None outside an array.
        value: the parsed object.
    """

    key: str
    index: int | None
    value: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Text:
    """One unparsed JSON object of a stream: plain data that can be sent to another process.

    Attributes:
        key, index: as in `Item`.
        text: text of the object.
        at: position of the object in the decompressed text of the file.
    """

    key: str
    index: int | None
    text: bytes
    at: int

    def parse(self, path: Path) -> Item:
        """Parses the object; error messages include `path`.

        Raises:
            RamifyError: invalid JSON.
        """
        return Item(self.key, self.index, _parse(self.text, self.at, path))


def items(path: Path) -> Iterator[Item]:
    """Yields the objects directly inside the outermost object or array, or inside an array directly in it.

    So `{"a": {..}, "b": {..}}` gives a and b, `{"entries": [{..}, {..}]}` gives entries 0 and 1, and
    `{"a": [{..}], "b": [{..}, {..}]}` gives a 0, b 0, b 1. Compressed files are decompressed (see `compressed`).

    Raises:
        RamifyError: no such file, not JSON of this structure, damaged, or truncated.
    """
    for key, index, piece in _keyed_pieces(path):
        yield Item(key, index, _parse(piece.text, piece.at, path))


def texts(path: Path, size: int) -> Iterator[tuple[Text, ...]]:
    """Like `items`, unparsed, in parts of about `size` bytes."""
    portion: list[Text] = []
    held = 0
    for key, index, piece in _keyed_pieces(path):
        portion.append(Text(key, index, bytes(piece.text), piece.at))
        held += len(piece.text)
        if held >= size:
            yield tuple(portion)
            portion, held = [], 0
    if portion:
        yield tuple(portion)


def _keyed_pieces(path: Path) -> Iterator[tuple[str, int | None, "_Piece"]]:
    key, index = "", None
    for number, piece in enumerate(_pieces(path)):
        opened = _last_key(piece, path, first=number == 0)
        if opened is not None:
            key, index = opened
        elif index is not None:
            index += 1
        else:
            raise _other_shape(piece, path)
        yield key, index, piece


class _Piece(NamedTuple):
    before: bytes  # the text between the previous object and this one
    text: memoryview
    at: int  # position in the decompressed text


@dataclass
class _Scan:
    """State of the scan between blocks."""

    inside_string: bool = False
    escaped: bool = False
    depth: int = 0

    def braces(self, block: bytes) -> tuple[NDArray[np.intp], NDArray[np.int8], NDArray[np.int32]]:
        """Positions of the braces of `block` outside strings, +1 or -1 for each, and the depth after each."""
        array = np.frombuffer(block, np.uint8)
        quotes = array == _QUOTE
        if self.escaped or b"\\" in block:
            self._unmark_escaped(block, quotes)
        at = np.flatnonzero((array == _OPEN) | (array == _CLOSE))
        # parity of the quotes before each brace, counted for eight positions at once
        bits = np.packbits(quotes)
        before = np.cumsum(np.bitwise_count(bits), dtype=np.int64)
        byte, bit = at >> 3, (at & 7).astype(np.uint8)
        quotes_before = np.concatenate([[0], before])[byte] + np.bitwise_count(bits[byte] >> (8 - bit))
        at = at[(quotes_before + self.inside_string) % 2 == 0]
        step = (124 - array[at].astype(np.int16)).astype(np.int8)  # { is 123, } is 125
        depth = self.depth + np.cumsum(step, dtype=np.int32)
        self.depth = int(depth[-1]) if len(depth) else self.depth
        self.inside_string ^= bool(before[-1] % 2)
        return at, step, depth

    def _unmark_escaped(self, block: bytes, quotes: NDArray[np.bool_]) -> None:
        start = 0
        if self.escaped:
            quotes[0], start, self.escaped = False, 1, False
        for match in re.compile(rb"\\(.?)", re.DOTALL).finditer(block, start):
            if match[1]:
                quotes[match.start() + 1] = False
            else:
                self.escaped = True


def _pieces(path: Path) -> Iterator[_Piece]:
    """Splits the text of `path` at the objects of the outermost container."""
    scan, pending, at, level = _Scan(), b"", 0, None
    opened = -1  # start in `pending` of the open object, if any
    for block in _blocks(path):
        if level is None:
            block = block.lstrip() if not pending else block
            if not block:
                continue
            level = _level(block, path)
        base = len(pending)
        pending += block
        positions, step, depth = scan.braces(block)
        starts = positions[(step == 1) & (depth == level + 1)] + base
        ends = positions[(step == -1) & (depth == level)] + base
        view, last = memoryview(pending), 0
        starts_list = ([opened] if opened >= 0 else []) + starts.tolist()
        for start, end in zip(starts_list, ends.tolist(), strict=False):
            yield _Piece(pending[last:start], view[start : end + 1], at + start)
            last = end + 1
        opened = starts_list[-1] - last if len(starts_list) > len(ends) else -1
        pending, at = pending[last:], at + last
    if level is None or scan.depth or scan.inside_string or (level == 0 and not pending.rstrip().endswith(b"]")):
        raise cut_short(path)


def _blocks(path: Path) -> Iterator[bytes]:
    with open_bytes(path) as stream:
        while block := stream.read(BLOCK):
            yield block


def _level(block: bytes, path: Path) -> int:
    """Brace depth around the objects: 1 inside an outermost object, 0 inside an outermost array."""
    if block[:1] not in (b"{", b"["):
        raise RamifyError(f"{path} is not JSON: it begins with {block[:20]!r}", fix="correct `path` or `format`")
    return 1 if block[:1] == b"{" else 0


def _last_key(piece: _Piece, path: Path, *, first: bool) -> tuple[str, int | None] | None:
    """Member that begins in the text before an object, with index 0 if an array begins there; None if none begins."""
    text = piece.before.strip()
    if first and text == b"[":
        return "", 0
    text = text[1:] if first else text
    text = text.lstrip(b"], \t\r\n")
    if not text:
        return None
    array = text.endswith(b"[")
    try:
        members = orjson.loads(b"{" + text + (b"null]}" if array else b"null}"))
    except orjson.JSONDecodeError as error:
        raise _other_shape(piece, path) from error
    return next(reversed(members)), (0 if array else None)


def _parse(text: bytes | memoryview, at: int, path: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = orjson.loads(text)
    except orjson.JSONDecodeError:
        try:
            value = json.loads(bytes(text))  # accepts NaN and Infinity, unlike orjson
        except ValueError as error:
            raise RamifyError(
                f"{path} holds invalid JSON in the object at byte {at}: {error}",
                fix="check its checksum and download it again",
            ) from error
    return value


def _other_shape(piece: _Piece, path: Path) -> RamifyError:
    return RamifyError(
        f"{path} is not a JSON object of objects, or of arrays of objects: {piece.before[-80:]!r} at byte {piece.at}",
        fix="correct `path` or `format`",
    )
