"""TFRecord files with `tf.train.Example` records, read without TensorFlow, in bounded memory.

A record consists of its length (8 bytes, little endian), the masked CRC-32C of the length, the data, and the masked
CRC-32C of the data (tensorflow.org/tutorials/load_data/tfrecord). An Example is a protocol buffer: a map from names to
lists of bytes, float32 or int64 (tensorflow/core/example/{example,feature}.proto;
protobuf.dev/programming-guides/encoding).
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ramify.errors import RamifyError
from ramify.sources.parsing.compressed import cut_short, open_bytes

LARGEST = 64 << 20
"""Maximum bytes of a record; a molecule needs a few thousand."""

Feature = NDArray[np.float32] | NDArray[np.int64] | list[bytes]


class WireError(ValueError):
    """The bytes are not a valid Example."""


def _table() -> list[int]:
    """CRC-32C (Castagnoli, reflected polynomial 0x82F63B78; RFC 3720, appendix B.4) of each byte."""
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_CRC = _table()


def masked_crc(data: bytes) -> int:
    """Checksum that follows `data` in a TFRecord file."""
    crc, table = 0xFFFFFFFF, _CRC
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def records(path: Path) -> Iterator[bytes]:
    """Yields the data of every record, after verification of its checksum.

    Raises:
        RamifyError: no such file, not a TFRecord file, damaged, or truncated.
    """
    with open_bytes(path) as stream:
        number = 0
        while head := stream.read(12):
            if len(head) < 12:
                raise cut_short(path)
            (length, crc) = struct.unpack("<QI", head)
            if masked_crc(head[:8]) != crc or length > LARGEST:
                raise (
                    _damaged(path, number)
                    if number
                    else RamifyError(
                        f"{path} is not a TFRecord file: it begins with {head!r}",
                        fix="correct `path` or `format`",
                    )
                )
            data = stream.read(length + 4)
            if len(data) < length + 4:
                raise cut_short(path)
            if masked_crc(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
                raise _damaged(path, number)
            yield data[:-4]
            number += 1


def parse_example(data: bytes) -> dict[str, Feature]:
    """Parses the features of one Example.

    Raises:
        WireError: not a valid Example.
    """
    found: dict[str, Feature] = {}
    for features in _messages(data, 1):
        for entry in _messages(features, 1):
            names = list(_messages(entry, 1))
            values = list(_messages(entry, 2))
            if len(names) != 1 or len(values) > 1:
                raise WireError("an entry without one name and one value")
            found[names[0].decode("utf-8", "replace")] = _feature(values[0] if values else b"")
    return found


def _feature(data: bytes) -> Feature:
    for number, kind, value in _fields(data):
        if kind != 2:
            continue
        if number == 1:
            return list(_messages(value, 1))
        if number == 2:
            return _floats(value)
        if number == 3:
            return _integers(value)
    return []


def _floats(data: bytes) -> NDArray[np.float32]:
    parts = [value for number, kind, value in _fields(data) if number == 1 and kind in (2, 5)]  # packed or repeated
    joined = b"".join(parts)
    if len(joined) % 4:
        raise WireError("floats of other than four bytes")
    return np.frombuffer(joined, "<f4")


def _integers(data: bytes) -> NDArray[np.int64]:
    values: list[int] = []
    for number, kind, value in _fields(data):
        if number != 1:
            continue
        if kind == 0:
            values.append(value)
        elif kind == 2:
            at = 0
            while at < len(value):
                integer, at = _varint(value, at)
                values.append(integer)
    return np.array(values, np.uint64).astype(np.int64)  # two's complement


def _messages(data: bytes, wanted: int) -> Iterator[bytes]:
    """Yields the length-delimited values of one field."""
    return (value for number, kind, value in _fields(data) if number == wanted and kind == 2)


def _fields(data: bytes) -> Iterator[tuple[int, int, Any]]:
    """Yields number, wire type and value of every field of a message."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield number, kind, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise WireError(f"wire type {kind}")
        if at + size > len(data):
            raise WireError("a field that is longer than its message")
        yield number, kind, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Decodes an integer of up to 64 bits, seven per byte; returns it with the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
    raise WireError("a number without an end")


def _damaged(path: Path, number: int) -> RamifyError:
    return RamifyError(
        f"{path}: record {number} is damaged, its checksum does not match",
        fix="compare the checksum of the file with the published one and download it again",
    )
