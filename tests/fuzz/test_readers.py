"""Original files, damaged in their bytes or with other content: every reader gives structures, a reason or an error.

The libraries of HDF5 and LMDB are written in C; their damaged files are read in a separate process, so that a crash
fails the test only.
"""

import contextlib
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramify.errors import RamifyError
from ramify.sources.formats import formats
from ramify.sources.quarantine import Quarantine
from ramify.structures import Structures
from tests.fuzz import samples
from tests.fuzz.mutations import MORE, as_json, changes, damages, fuzz
from tests.sources.general.test_deepmd import ENDINGS

Change = Callable[[Any], Any]
Damage = Callable[[bytes], bytes]


def read(name: str, path: Path, keys: dict[str, Any]) -> Structures:
    """All that the reader yields."""
    found = formats()[name.split(".")[0]]
    options = found.options.model_validate({"format": found.name, "path": str(path), **keys})
    return Structures.concatenate(found.read(path, options, Quarantine()))


def survives(name: str, path: Path, keys: dict[str, Any]) -> None:
    """Reads a file: a `RamifyError`, or valid `Structures`."""
    with contextlib.suppress(RamifyError):
        found = read(name, path, keys)
        assert found.numbers.min(initial=1) >= 1
        assert found.numbers.max(initial=1) <= 118


IN_C = samples.HDF5 | samples.LIBRARIES
ALL = samples.BYTES | IN_C
EACH = 30 * MORE
"""Cuts, and changed bytes, of a file of each format."""


def test_every_format_is_damaged() -> None:
    assert {name.split(".")[0] for name in ALL} == set(formats())


@pytest.mark.parametrize("name", ALL)
def test_what_is_good_is_read(tmp_path: Path, name: str) -> None:
    """Or the tests below would try nothing."""
    ending, make, keys = ALL[name]
    make(tmp_path / f"a{ending}")
    assert len(read(name, tmp_path / f"a{ending}", keys))


@pytest.mark.parametrize("name", samples.BYTES)
@given(damage=damages())
@fuzz(20)
def test_bytes(tmp_path_factory: pytest.TempPathFactory, name: str, damage: Damage) -> None:
    ending, make, keys = samples.BYTES[name]
    path = tmp_path_factory.mktemp("bytes") / f"a{ending}"
    make(path)
    path.write_bytes(damage(path.read_bytes()))
    survives(name, path, keys)


def damaged(good: bytes, rng: random.Random, cuts: int, changes: int) -> Iterator[bytes]:
    """So many copies that end early, and so many with one to four changed bytes."""
    for _ in range(cuts):
        yield good[: rng.randrange(len(good))]
    for _ in range(changes):
        data = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            # most of a file are numbers: what says how they lie stands at its beginning, or at its end
            place = rng.random()
            at = rng.randrange(len(data) if place < 0.4 else min(len(data), 4096))
            data[-1 - at if place > 0.8 else at] = rng.randrange(256)
        yield bytes(data)


@pytest.mark.parametrize("name", samples.BYTES)
def test_cuts_and_changed_bytes(tmp_path: Path, name: str) -> None:
    ending, make, keys = samples.BYTES[name]
    path = tmp_path / f"a{ending}"
    make(path)
    for data in damaged(path.read_bytes(), random.Random(0 if MORE == 1 else None), EACH, EACH):
        path.write_bytes(data)
        survives(name, path, keys)


@given(array=st.sampled_from(ENDINGS), damage=damages())
@fuzz(60)
def test_arrays_of_deepmd(tmp_path_factory: pytest.TempPathFactory, array: str, damage: Damage) -> None:
    path = tmp_path_factory.mktemp("deepmd") / "a/type.raw"
    samples.deepmd(path)
    file = path.parent / f"set.001/{array}.npy"
    file.write_bytes(damage(file.read_bytes()))
    survives("deepmd", path, {})


@pytest.mark.parametrize("name", samples.JSON)
@given(change=changes())
@fuzz(60)
def test_json(tmp_path_factory: pytest.TempPathFactory, name: str, change: Change) -> None:
    ending, make, keys = samples.JSON[name]
    folder = tmp_path_factory.mktemp("json")
    make(folder / f"good{ending}")
    content = json.loads((folder / f"good{ending}").read_text())
    (folder / f"a{ending}").write_bytes(as_json(change(content)))
    survives(name, folder / f"a{ending}", keys)


ARRAYS: tuple[Callable[[np.ndarray], Any], ...] = (
    lambda a: a[:-1],
    lambda a: a[:0],
    lambda a: a[None],
    lambda a: a.reshape(-1),
    lambda a: a.astype(np.float32) * np.nan if a.dtype.kind in "fiu" else a,
    lambda a: a.astype(np.float64) * 1e300 if a.dtype.kind in "fiu" else a,
    lambda a: -a if a.dtype.kind in "fi" else a,
    lambda a: a.astype(np.complex128) if a.dtype.kind in "fiu" else a,
    lambda a: np.array(b"text"),
    lambda a: np.array([b"\xff\xfe"] * max(1, len(np.atleast_1d(a)))),
    lambda a: np.array(1.0),
    lambda a: np.zeros((0, 3)),
    lambda a: a.astype(np.int64) + 200 if a.dtype.kind in "iu" else a,
    lambda a: None,
)
"""What an array may be replaced by; None leaves it out."""
CHANGED = st.lists(st.tuples(st.floats(0, 1), st.sampled_from(ARRAYS)), min_size=1, max_size=2)


@given(changed=CHANGED)
@fuzz(60)
def test_arrays_of_npz(tmp_path: Path, changed: list[tuple[float, Callable[[np.ndarray], Any]]]) -> None:
    content: dict[str, Any] = dict(samples.arrays())
    for where, change in changed:
        names = sorted(content)
        name = names[int(where * (len(names) - 1))]
        content[name] = change(np.atleast_1d(content[name]))
        if content[name] is None:
            del content[name]
        if not content:
            return
    np.savez(tmp_path / "a.npz", **content)
    survives("npz", tmp_path / "a.npz", samples.BYTES["npz"][2])


@pytest.mark.parametrize("name", samples.HDF5)
@given(changed=CHANGED)
@fuzz(40)
def test_datasets_of_hdf5(
    tmp_path_factory: pytest.TempPathFactory, name: str, changed: list[tuple[float, Callable[[np.ndarray], Any]]]
) -> None:
    ending, make, keys = samples.HDF5[name]
    path = tmp_path_factory.mktemp("hdf5") / f"a{ending}"
    make(path)
    with h5py.File(path, "a") as file:
        found: list[str] = []
        file.visititems(lambda key, item: found.append(key) if isinstance(item, h5py.Dataset) else None)
        for where, change in changed:
            key = found[int(where * (len(found) - 1))]
            if key not in file:
                continue
            new = change(np.atleast_1d(file[key][()]))
            del file[key]
            if new is not None:
                file[key] = new
    survives(name, path, keys)


def damaged_in_c(name: str, seed: int, files: int, folder: Path) -> None:
    """Reads so many cut files, and as many with changed bytes; run in a process of its own."""
    ending, make, keys = IN_C[name]
    make(folder / f"good{ending}")
    good = (folder / f"good{ending}").read_bytes()
    for k, data in enumerate(damaged(good, random.Random(seed), files, files)):
        path = folder / f"{k}{ending}"
        path.write_bytes(data)
        survives(name, path, keys)
        path.unlink()


@pytest.mark.parametrize("name", IN_C)
def test_bytes_below_c(tmp_path: Path, name: str) -> None:
    program = "import sys; from pathlib import Path; from tests.fuzz.test_readers import damaged_in_c; "
    program += "damaged_in_c(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))"
    command = [sys.executable, "-c", program, name, "0" if MORE == 1 else str(random.randrange(10**6)), str(EACH)]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-2000:]
