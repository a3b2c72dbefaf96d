"""Opening of plain and compressed files (gzip, xz, bzip2, Zstandard), detected by their first bytes."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ramify.errors import RamifyError

_ZSTANDARD = b"\x28\xb5\x2f\xfd"  # RFC 8878, section 3.1.1
_OPENERS: dict[bytes, Any] = {b"BZh": bz2.open, b"\x1f\x8b": gzip.open, b"\xfd7zXZ\x00": lzma.open}
_BOM = b"\xef\xbb\xbf"


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """Opens the decompressed bytes of a file, without a UTF-8 byte order mark.

    Raises:
        RamifyError: no such file, a folder, damaged, truncated, or Zstandard without the package for it.
    """
    try:
        with path.open("rb") as raw:
            magic = raw.read(6)
            raw.seek(0)
            stream = io.BufferedReader(_unpacked(raw, magic, path), 1 << 16)
            if stream.peek(3)[:3] == _BOM:
                stream.read(3)
            yield stream
    except EOFError as error:
        raise cut_short(path) from error
    except FileNotFoundError as error:
        raise RamifyError(f"{path} does not exist", fix="correct `path`") from error
    except (OSError, lzma.LZMAError, zlib.error) as error:
        raise RamifyError(f"{path} cannot be read: {error}", fix="check its checksum and download it again") from error


@contextmanager
def open_text(path: Path) -> Iterator[IO[str]]:
    """Opens the decompressed UTF-8 text of a file.

    Raises:
        RamifyError: as `open_bytes`, or the content is not text.
    """
    with open_bytes(path) as stream:
        try:
            yield io.TextIOWrapper(stream, encoding="utf-8")
        except UnicodeDecodeError as error:
            raise RamifyError(f"{path} cannot be read as text: {error}", fix="correct `path` or `format`") from error


def cut_short(path: Path) -> RamifyError:
    """Creates the error for a truncated file."""
    return RamifyError(
        f"{path} is truncated: it ends in the middle of a record",
        fix="compare its size and checksum with the published ones and download it again",
    )


def _unpacked(raw: IO[bytes], magic: bytes, path: Path) -> Any:
    if magic.startswith(_ZSTANDARD):
        return _Zstandard(raw, path)
    opener = next((o for start, o in _OPENERS.items() if magic.startswith(start)), None)
    return opener(raw) if opener else raw


class _Zstandard(io.RawIOBase):
    """A stream of Zstandard frames; unlike the reader of the package, it detects a truncated last frame."""

    def __init__(self, raw: IO[bytes], path: Path) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise RamifyError(
                f"{path} is compressed by Zstandard, which needs another package",
                fix="pip install 'ramify[zstd]', or unpack it: unzstd FILE",
            ) from error
        self._raw, self._module = raw, zstandard
        self._decompress = zstandard.ZstdDecompressor().decompressobj()
        self._left, self._begun = b"", False

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills `buffer`; 0 at the end.

        Raises:
            EOFError: the last frame is truncated.
        """
        while not self._left:
            block = self._decompress.unused_data if self._decompress.eof else b""
            if self._decompress.eof:
                self._decompress, self._begun = self._module.ZstdDecompressor().decompressobj(), False
            block = block or self._raw.read(1 << 17)
            if not block:
                if self._begun:
                    raise EOFError
                return 0
            self._begun = True
            try:
                self._left = self._decompress.decompress(block)
            except self._module.ZstdError as error:
                raise OSError(str(error)) from error
        size = min(len(buffer), len(self._left))
        buffer[:size], self._left = self._left[:size], self._left[size:]
        return size
