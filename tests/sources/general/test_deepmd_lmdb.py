"""LMDB of DeePMD-kit, in the layout of its documentation (docs.deepmodeling.com, dpdata, LMDB Format)."""

from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest

from ramify.errors import RamifyError
from ramify.prepare.inputs import source_files
from ramify.sources.formats import formats
from ramify.sources.look import look

msgpack = pytest.importorskip("msgpack")

KINDS = ["O", "H"]


def encoded(array: Any, *, as_bytes: bool = False) -> dict[Any, Any]:
    """An array as DeePMD-kit writes it, or as msgpack-numpy does."""
    array = np.asarray(array)
    if as_bytes:
        return {b"nd": True, b"type": array.dtype.str, b"kind": b"", b"shape": array.shape, b"data": array.tobytes()}
    return {"type": str(array.dtype), "shape": list(array.shape), "data": array.tobytes()}


def frames(count: int = 5) -> list[dict[str, np.ndarray]]:
    """Frames of one to three molecules of water."""
    rng = np.random.default_rng(4)
    made = []
    for k in range(count):
        n = 1 + k % 3
        made.append(
            {
                "atom_types": np.array([0, 1, 1] * n),
                "coords": rng.normal(0, 3, (3 * n, 3)),
                "cells": np.array([[9.0, 0, 0], [1, 8, 0], [0, 0, 7]]) + rng.normal(0, 0.1, (3, 3)),
                "energies": np.array(-450.0 * n + rng.normal()),
                "forces": rng.normal(0, 1, (3 * n, 3)).astype(np.float32),
                "virials": (lambda v: v + v.T)(rng.normal(0, 5, (3, 3))),
                "fparam": np.array([k % 2, 1.0 + k % 2]),
            }
        )
    return made


def write_lmdb(
    folder: Path, made: list[dict[str, Any]], metadata: dict[str, Any] | None = None, *, as_bytes: bool = False
) -> Path:
    """Writes frames with their metadata; returns the folder."""
    stated = {"nframes": len(made), "frame_idx_fmt": "012d", "type_map": KINDS, "frame_system_ids": [0, 0, 1, 1, 2]}
    with lmdb.open(str(folder), map_size=2**22) as environment, environment.begin(write=True) as rows:
        for k, frame in enumerate(made):
            kept = {n: encoded(v, as_bytes=as_bytes) if isinstance(v, np.ndarray) else v for n, v in frame.items()}
            rows.put(format(k, "012d").encode(), msgpack.packb(kept, use_bin_type=True))
        rows.put(b"__metadata__", msgpack.packb(stated if metadata is None else metadata, use_bin_type=True))
    return folder


@pytest.mark.parametrize("as_bytes", [False, True])
def test_frames(tmp_path: Path, read: Any, as_bytes: bool) -> None:
    made = frames()
    folder = write_lmdb(tmp_path / "water.lmdb", made, as_bytes=as_bytes)
    found, quarantine = read("deepmd_lmdb", folder, charge_key="fparam:0", spin_key="fparam:1")
    assert quarantine.total == 0
    assert found.numbers.tolist() == [8, 1, 1] * (1 + 2 + 3 + 1 + 2)
    np.testing.assert_array_equal(found.energy, [frame["energies"] for frame in made])
    np.testing.assert_array_equal(found.positions, np.concatenate([frame["coords"] for frame in made]))
    np.testing.assert_array_equal(found.forces, np.concatenate([frame["forces"] for frame in made]))
    cells = np.array([frame["cells"] for frame in made])
    np.testing.assert_array_equal(found.cell, cells)
    volumes = [abs(np.dot(c[0], np.cross(c[1], c[2]))) for c in cells]
    np.testing.assert_allclose(found.stress, [-f["virials"] / v for f, v in zip(made, volumes, strict=True)])
    assert found.pbc.all()
    assert found.group_names == ("water.lmdb/0", "water.lmdb/1", "water.lmdb/2")
    assert found.group.tolist() == [0, 0, 1, 1, 2]
    assert (found.charge.tolist(), found.spin.tolist()) == ([0, 1, 0, 1, 0], [1, 2, 1, 2, 1])
    assert found.name(4) == "water.lmdb[4]"


def test_older_files_and_single_frames(tmp_path: Path, read: Any) -> None:
    """Without `type_map`; padded; without cells; damaged frames alone are left out."""
    made: list[dict[str, Any]] = [dict(frame) | {"atom_names": KINDS} for frame in frames()]
    made[1] |= {"nopbc": True}
    made[2]["atom_types"] = np.array([0, 1, 1, -1, -1, -1, 0, 1, 1])
    made[3]["forces"] = made[3]["forces"][:2]
    made[4]["atom_types"] = np.array([0, 1, 7])
    folder = write_lmdb(tmp_path / "a.lmdb", made, {"nframes": 5, "system_info": {}})
    found, quarantine = read("deepmd_lmdb", folder / "data.mdb")
    assert found.n_atoms.tolist() == [3, 6, 6]
    np.testing.assert_array_equal(found.positions[-3:], made[2]["coords"][-3:])
    assert found.pbc.any(axis=1).tolist() == [True, False, True]
    assert np.isnan(found.stress[1]).all()
    assert quarantine.counts == {"malformed forces": 1, "malformed structure": 1}
    assert list(quarantine.remarks) == ["stress without a cell, left out"]
    assert found.group_names == ("H2O", "H4O2")
    with pytest.raises(RamifyError, match=r"type_map: \[O, H\]"):
        read("deepmd_lmdb", write_lmdb(tmp_path / "b.lmdb", frames(), {"nframes": 5}))
    assert len(read("deepmd_lmdb", tmp_path / "b.lmdb", type_map=["O", "H"])[0]) == 5
    with pytest.raises(RamifyError, match=r"no 'fparm'.*did you mean 'fparam'"):
        read("deepmd_lmdb", tmp_path / "b.lmdb", type_map=["O", "H"], charge_key="fparm:0")


def test_folders_are_found_and_looked_at(tmp_path: Path) -> None:
    (tmp_path / "all").mkdir()
    write_lmdb(tmp_path / "all/water.lmdb", frames())
    options = formats()["deepmd_lmdb"].options.model_validate({"format": "deepmd_lmdb", "path": "all"})
    assert [file for file, _ in source_files("water", options, tmp_path)] == [tmp_path / "all/water.lmdb/data.mdb"]
    found = look(tmp_path / "all/water.lmdb")
    assert found.format == "deepmd_lmdb"
    assert found.structures == 5
    assert found.keys["forces"] == "float32 (3, 3)"


def test_other_files(tmp_path: Path, read: Any) -> None:
    with lmdb.open(str(tmp_path / "a.lmdb"), map_size=2**20) as environment, environment.begin(write=True) as rows:
        rows.put(b"1", b"x")
    with pytest.raises(RamifyError, match="no record __metadata__"):
        read("deepmd_lmdb", tmp_path / "a.lmdb")
    whole = (write_lmdb(tmp_path / "b.lmdb", frames(40)) / "data.mdb").read_bytes()
    (tmp_path / "cut.mdb").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RamifyError, match="truncated"):
        read("deepmd_lmdb", tmp_path / "cut.mdb")
