"""Missing files, files of another format and truncated files: every reader raises one error with a fix."""

from pathlib import Path
from typing import Any

import pytest

from ramify.errors import RamifyError
from ramify.sources.formats import formats

CORPUS = {
    "ani1x": "ani1x_mini/ani1x-mini.h5",
    "qm7x": "qm7x_mini/1000.hdf5",
    "transition1x": "transition1x_mini/Transition1x-mini.h5",
    "mptrj": "mptrj_mini/MPtrj_mini.json",
    "alexandria": "alexandria_mini/alexandria_mini_000.json.bz2",
}
ALL = (
    "alexandria",
    "ani1",
    "ani1x",
    "ani2x",
    "ase_db",
    "ase_traj",
    "deepmd",
    "extxyz",
    "fitsnap",
    "jarvis",
    "matpes",
    "mlearn",
    "mptrj",
    "npz",
    "oc20",
    "qcml",
    "qm7x",
    "spice",
    "transition1x",
    "vasp",
)
HDF5 = ("ani1x", "qm7x", "transition1x")
KEYS: dict[str, dict[str, Any]] = {"qm7x": {"labels": "pbe0"}, "qcml": {"length": "bohr"}}


def test_every_format_is_registered_and_documented() -> None:
    assert set(formats()) >= set(ALL)
    for name in ALL:
        found = formats()[name]
        assert found.name == name
        assert found.options.model_validate({"format": name, "path": "x", **KEYS.get(name, {})}).format == name
        assert found.read.__doc__


@pytest.mark.parametrize("name", ALL)
def test_missing_file(tmp_path: Path, read: Any, name: str) -> None:
    ending = {"ase_db": ".db"}.get(name, ".h5")
    with pytest.raises(RamifyError, match=r"does not exist.*\n  fix: "):
        read(name, tmp_path / f"none{ending}", **KEYS.get(name, {}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "corpus"), [(n, c) for n in ALL for c in CORPUS if n != c])
def test_every_other_format_is_refused(corpora: Path, read: Any, name: str, corpus: str) -> None:
    with pytest.raises(RamifyError, match=r"\n  fix: "):
        read(name, corpora / CORPUS[corpus], **KEYS.get(name, {}))


@pytest.mark.parametrize(("name", "corpus"), [(n, c) for n in HDF5 for c in HDF5 if n != c])
def test_hdf5_layouts_name_one_another(corpora: Path, read: Any, name: str, corpus: str) -> None:
    with pytest.raises(RamifyError, match=f"set `format: {corpus}`"):
        read(name, corpora / CORPUS[corpus])


@pytest.mark.parametrize("name", CORPUS)
@pytest.mark.parametrize("part", [0.3, 0.9])
def test_cut_short(corpora: Path, tmp_path: Path, read: Any, name: str, part: float) -> None:
    original = corpora / CORPUS[name]
    content = original.read_bytes()
    (tmp_path / original.name).write_bytes(content[: int(len(content) * part)])
    with pytest.raises(RamifyError, match=r"\n  fix: .*(download|checksum)"):
        read(name, tmp_path / original.name, **KEYS.get(name, {}))


@pytest.mark.parametrize("name", HDF5)
def test_damaged_inside(corpora: Path, tmp_path: Path, read: Any, name: str) -> None:
    """Zeros in the middle of the file, its length kept: an error, not other numbers in silence."""
    original = corpora / CORPUS[name]
    content = bytearray(original.read_bytes())
    start, stop = len(content) // 10, len(content) * 9 // 10
    content[start:stop] = bytes(stop - start)
    (tmp_path / original.name).write_bytes(content)
    with pytest.raises(RamifyError, match=r"\n  fix: "):
        read(name, tmp_path / original.name, **KEYS.get(name, {}))


def test_damaged_bzip2(corpora: Path, tmp_path: Path, read: Any) -> None:
    content = bytearray((corpora / CORPUS["alexandria"]).read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "a.json.bz2").write_bytes(content)
    with pytest.raises(RamifyError, match="cannot be read"):
        read("alexandria", tmp_path / "a.json.bz2")


@pytest.mark.parametrize("name", [n for n in ALL if n != "ase_db"])
def test_a_folder_is_no_file(tmp_path: Path, read: Any, name: str) -> None:
    with pytest.raises(RamifyError):
        read(name, tmp_path, **KEYS.get(name, {}))
