"""Detection of the format of a file from its content."""

from pathlib import Path

from ramify.errors import RamifyError
from ramify.sources.parsing.ase_frames import refuse_cp2k
from ramify.sources.parsing.compressed import open_bytes
from ramify.sources.parsing.hdf5 import hdf5_layout
from ramify.sources.parsing.json_stream import items
from ramify.sources.parsing.tfrecord import masked_crc

_HDF5 = b"\x89HDF\r\n\x1a\n"
_SQLITE = b"SQLite format 3\x00"
_ULM = b"- of Ulm"
_ZIP = b"PK\x03\x04"
_PARQUET = b"PAR1"
_LMDB = b"\xde\xc0\xef\xbe"  # at 16 bytes: MDB_MAGIC of lmdb.h, little endian
HEAD = 1 << 16


def recognize(path: Path) -> str:
    """Detects the format of a file, or of a folder of DeePMD-kit (sets or LMDB).

    Raises:
        RamifyError: no such file, or an unknown format.
    """
    if path.is_dir():
        if (path / "type.raw").is_file():
            return "deepmd"
        if (path / "data.mdb").is_file():
            return "deepmd_lmdb"
        raise RamifyError(f"{path} is a folder", fix="name one of its files")
    if path.suffix == ".mdb":
        return "deepmd_lmdb"
    if path.suffix == ".aselmdb":
        return "ase_db"
    with open_bytes(path) as stream:
        head = stream.read(HEAD)
    found = _by_magic(path, head) or _by_text(path, head)
    if found is None:
        raise RamifyError(
            f"{path} has no known format: it begins with {head[:40]!r}",
            fix="`docs/sources.md` lists the formats; ASE converts many others: `ase convert FILE data.extxyz`",
        )
    return found


def _by_magic(path: Path, head: bytes) -> str | None:
    if head.startswith(_HDF5):
        found = hdf5_layout(path)
        if found is None:
            raise RamifyError(f"{path} is an HDF5 file of unknown layout", fix="convert it, or write a module for it")
        return found
    if head.startswith(_SQLITE):
        return "ase_db"
    if head.startswith(_ULM):
        return "ase_traj"
    if head.startswith(_ZIP):
        return "npz"
    if head.startswith(_PARQUET):
        return "parquet"
    if head[16:20] == _LMDB:
        raise RamifyError(
            f"{path} is an LMDB file, but neither an ASE database (`.aselmdb`) nor in a folder of DeePMD (`data.mdb`)",
            fix="rename an ASE database to `.aselmdb`; LMDBs of pickles, which run code when they are read, are not "
            "supported: convert them with the program that wrote them",
        )
    if len(head) >= 12 and masked_crc(head[:8]) == int.from_bytes(head[8:12], "little"):
        return "qcml"
    return None


def _by_text(path: Path, head: bytes) -> str | None:
    text = head.lstrip()
    if b"<modeling>" in head or text[:5].lower() == b"vasp.":
        return "vasp"
    if b"Program PWSCF" in head[:4096]:
        return "espresso"
    refuse_cp2k(path, head[:4096])
    if path.name == "type.raw":
        return "deepmd"
    if text.startswith(b"#") and b"{" in text:
        return "fitsnap"
    if text[:1] in (b"{", b"["):
        return _json(path, head)
    first = text.partition(b"\n")[0].strip()
    if first.isdigit():
        beside = path.with_name(path.name.split(".extxyz")[0] + ".txt.xz")
        return "oc20" if ".extxyz" in path.name and beside.is_file() else "extxyz"
    return None


def _json(path: Path, head: bytes) -> str | None:
    """Detects the format of a JSON file from its first object."""
    if b'"Dataset"' in head[:200]:
        return "fitsnap"
    item = next(items(path), None)
    if item is None:
        return None
    keys, inner = item.value.keys(), next(iter(item.value.values()), None)
    if "matpes_id" in keys:
        return "matpes"
    if {"atoms", "total_energy"} <= keys:
        return "jarvis"
    if {"structure", "outputs"} <= keys:
        return "mlearn"
    if "steps" in keys or item.key == "entries":
        return "alexandria"
    if {"numbers", "positions"} <= keys:
        return "ase_db"
    if isinstance(inner, dict) and "structure" in inner:
        return "mptrj"
    return None
