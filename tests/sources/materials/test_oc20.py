"""OC20 S2EF: frames with text files, in the layout of its archives."""

import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ramify.errors import RamifyError
from ramify.prepare.inputs import with_companions
from ramify.sources.formats import formats
from ramify.structures import Split

PROPERTIES = "species:S:1:pos:R:3:move_mask:L:1:tags:I:1:forces:R:3"
FRAME = f"""2
Lattice="9 0 0 0 9 0 0 0 20" Properties={PROPERTIES} energy={{}} free_energy={{}} pbc="T T T"
Cu 0.0 0.0 {{}} F 0 0.1 0.0 -0.3
O 0.0 0.0 1.8 T 2 -0.1 0.0 0.3
"""


def write(folder: Path, frames: int = 6, packed: bool = True) -> Path:
    text = "".join(FRAME.format(-100.0 - i, -100.0 - i, 0.01 * i) for i in range(frames))
    lines = "".join(f"random{i // 3},frame{i % 3 * 10},{-90.0 - i // 3}\n" for i in range(frames))
    for name, content in (("0.extxyz", text), ("0.txt", lines)):
        if packed:
            (folder / f"{name}.xz").write_bytes(lzma.compress(content.encode()))
        else:
            (folder / name).write_text(content)
    return folder / ("0.extxyz.xz" if packed else "0.extxyz")


@pytest.mark.parametrize("packed", [True, False])
def test_frames_with_their_systems(tmp_path: Path, read: Any, packed: bool) -> None:
    path = write(tmp_path, packed=packed)
    found, quarantine = read("oc20", path)
    assert quarantine.total == 0
    assert found.energy.tolist() == [-100.0 - i for i in range(6)]
    np.testing.assert_array_equal(found.forces[:2], [[0.1, 0.0, -0.3], [-0.1, 0.0, 0.3]])  # of the fixed atom too
    assert [found.group_names[g] for g in found.group] == ["random0"] * 3 + ["random1"] * 3
    assert found.pbc.all()
    found, _ = read("oc20", path, energy="adsorption")
    assert found.energy.tolist() == [-10.0, -11.0, -12.0, -12.0, -13.0, -14.0]
    options = formats()["oc20"].options.model_validate({"format": "oc20", "path": str(path)})
    beside = path.with_name(path.name.replace("extxyz", "txt"))
    assert with_companions(options, [(path, Split.NONE)]) == [path, beside]


@pytest.mark.parametrize("lines", [5, 7])
def test_lengths_that_differ(tmp_path: Path, read: Any, lines: int) -> None:
    path = write(tmp_path, packed=False)
    (tmp_path / "0.txt").write_text("random0,frame0,-1.0\n" * lines)
    with pytest.raises(RamifyError, match=rf"6 frames, .*0\.txt has {lines} lines"):
        read("oc20", path)


def test_texts_that_are_missing_or_wrong(tmp_path: Path, read: Any) -> None:
    path = write(tmp_path, packed=False)
    for line in ("random0,frame0", "random0,frame0,x", ",frame0,1", "1,2,3,4"):
        (tmp_path / "0.txt").write_text("random0,frame0,-1.0\n" + line)
        with pytest.raises(RamifyError, match=r"0\.txt, line 2"):
            read("oc20", path)
    (tmp_path / "0.txt").unlink()
    with pytest.raises(RamifyError, match=r"no 0\.txt\.xz or 0\.txt in its folder"):
        read("oc20", path)


def test_a_spoiled_frame_keeps_the_others_in_step(tmp_path: Path, read: Any) -> None:
    path = write(tmp_path, packed=False)
    path.write_text(path.read_text().replace("energy=-101.0 ", "energy=None ", 1))
    found, quarantine = read("oc20", path)
    assert [found.group_names[g] for g in found.group] == ["random0"] * 2 + ["random1"] * 3
    assert quarantine.counts == {"malformed energy": 1}
    assert "random0 frame10" in quarantine.first["malformed energy"].detail


def test_cut_archives(tmp_path: Path, read: Any) -> None:
    path = write(tmp_path)
    for file in (path, tmp_path / "0.txt.xz"):
        whole = file.read_bytes()
        for size in (len(whole) // 2, len(whole) - 1):
            file.write_bytes(whole[:size])
            with pytest.raises(RamifyError, match="truncated"):
                read("oc20", path)
        file.write_bytes(whole)
