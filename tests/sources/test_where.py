"""`where`: conditions on structures, by properties common to all formats and by keys of a file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from ramify.errors import RamifyError
from ramify.prepare.prepare import prepare_dataset
from ramify.sources.base import DatasetOptions
from ramify.sources.formats import formats
from ramify.sources.quarantine import Quarantine
from ramify.sources.where import select
from ramify.store.store import Store
from ramify.structures import Structures


def structures() -> Structures:
    """CH4, H2O, Cu4 (periodic) and CuO (periodic), in two groups."""
    return Structures.make(
        n_atoms=[5, 3, 4, 2],
        numbers=[6, 1, 1, 1, 1, 8, 1, 1, 29, 29, 29, 29, 29, 8],
        positions=np.arange(42).reshape(14, 3),
        cell=[np.zeros((3, 3)), np.zeros((3, 3)), np.eye(3) * 9, np.eye(3) * 9],
        pbc=[[False] * 3, [False] * 3, [True] * 3, [True, True, False]],
        energy=[-1.0, -2.0, -3.0, -4.0],
        group=[0, 0, 1, 1],
        group_names=("molecules", "metals"),
        origin_names=("a",),
    )


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ({}, [0, 1, 2, 3]),
        ({"n_atoms": {"max": 4}}, [1, 2, 3]),
        ({"n_atoms": {"min": 3, "max": 4}}, [1, 2]),
        ({"n_atoms": [2, 5]}, [0, 3]),
        ({"n_atoms": 4}, [2]),
        ({"elements": ["H", "O", "C"]}, [0, 1]),
        ({"elements": "Cu"}, [2]),
        ({"group": "metals"}, [2, 3]),
        ({"group": ["x", "molecules"]}, [0, 1]),
        ({"periodic": True}, [2, 3]),
        ({"periodic": False, "n_atoms": {"max": 3}}, [1]),
    ],
)
def test_what_every_format_knows(where: dict[str, Any], kept: list[int]) -> None:
    options = DatasetOptions.model_validate({"format": "x", "path": "x", "where": where})
    quarantine = Quarantine()
    found = select(structures(), options.where, quarantine)
    assert found.row.tolist() == kept
    assert quarantine.total == 4 - len(kept)
    assert set(quarantine.counts) <= {f"left out by where ({name})" for name in where}


@pytest.mark.parametrize(
    "where",
    [
        {"charge": 0},
        {"n_atoms": {}},
        {"n_atoms": {"above": 3}},
        {"elements": ["Q"]},
        {"n_atoms": None},
        {"n_atoms": {"max": "5"}},
    ],
)
def test_conditions_that_mean_nothing_are_refused(where: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=rf"(?s)1 validation error.*where: '?{next(iter(where))}"):
        formats()["ani1x"].options.model_validate({"format": "ani1x", "path": "x", "where": where})


FRAME = """1
Properties=species:S:1:pos:R:3:forces:R:3 energy={energy} charge={charge} {more}
H 0.0 0.0 0.0 0.0 0.0 0.0
"""


def test_names_of_the_file(tmp_path: Path, read: Any) -> None:
    path = tmp_path / "a.xyz"
    made = [(0, "kind=a"), (1, "kind=b"), (-1, "kind=a"), (0, "t=1.5"), (2, "kind=b t=2")]
    path.write_text("".join(FRAME.format(energy=-i, charge=q, more=more) for i, (q, more) in enumerate(made)))
    for where, kept in (
        ({"charge": 0}, [0, 3]),
        ({"charge": [1, 2]}, [1, 4]),
        ({"charge": {"min": 0}}, [0, 1, 3, 4]),
        ({"kind": "a"}, [0, 2]),
        ({"kind": ["a", "b"], "charge": {"max": 1}}, [0, 1, 2]),
        ({"t": {"max": 1.75}}, [3]),
        ({"charge": "0"}, []),  # a text is no number
    ):
        found, quarantine = read("extxyz", path, where=where)
        assert found.row.tolist() == kept
        assert quarantine.total == 5 - len(kept)
    with pytest.raises(RamifyError, match=r"no 'chrge' \(`where`\), did you mean 'charge'"):
        read("extxyz", path, where={"chrge": 0})


def test_what_is_left_out_is_counted_before_the_gates(tmp_path: Path) -> None:
    frames = []
    for i in range(40):
        stretch = 0.01 * i  # Å beyond the rest of a spring: (stretch)² eV
        frames.append(f"2\nProperties=species:S:1:pos:R:3:forces:R:3 energy={stretch**2} g=g{i % 20}\n")
        frames.append(f"H 0 0 0 0 0 {500 if i < 10 else 2 * stretch}\nO 0 0 {1 + stretch} 0 0 {-2 * stretch}\n")
    (tmp_path / "a.xyz").write_text("".join(frames))
    keys = {"format": "extxyz", "path": "a.xyz", "group_key": "g", "gates": {"duplicates": "keep"}}
    options = formats()["extxyz"].options.model_validate(keys | {"where": {"g": [f"g{i}" for i in range(10, 20)]}})
    manifest = prepare_dataset("d", options, tmp_path / "stores", base=tmp_path)
    assert manifest.dropped == {"left out by where (g)": 20}  # the ten large forces are among them
    assert manifest.structures == 20
    assert manifest.read == 40


def write_pairs(path: Path, count: int, origin: float = 0.0) -> None:
    """OH on a spring, each longer than the one before, in groups of two."""
    text = ""
    for i in range(count):
        stretch = origin + 0.004 * i  # Å; energy (stretch)² eV
        text += f"2\nProperties=species:S:1:pos:R:3:forces:R:3 energy={stretch**2} g=g{i // 2} n={i}\n"
        text += f"H 0 0 0 0 0 {2 * stretch}\nO 0 0 {1 + stretch} 0 0 {-2 * stretch}\n"
    path.write_text(text)


def prepared(tmp_path: Path, **keys: Any) -> tuple[Any, list[int]]:
    """The manifest, and the row of each structure in the store."""
    options = formats()["extxyz"].options.model_validate({"format": "extxyz", "group_key": "g", **keys})
    stores = tmp_path / "stores"
    manifest = prepare_dataset("d", options, stores, base=tmp_path, force=True)
    with Store.open(stores / "d") as store:
        return manifest, sorted(store.take(np.arange(len(store))).row.tolist())


def test_each_nth(tmp_path: Path) -> None:
    write_pairs(tmp_path / "a.xyz", 60)
    manifest, rows = prepared(tmp_path, path="a.xyz", every=4)
    assert rows == list(range(0, 60, 4))
    assert manifest.dropped == {"left out by every": 45}
    assert manifest.read == 60
    where = {"n": {"min": 3}}
    manifest, rows = prepared(tmp_path, path="a.xyz", every=4, where=where)
    assert rows == list(range(3, 60, 4))
    assert manifest.dropped == {"left out by where (n)": 3, "left out by every": 42}


def test_each_nth_counts_on_from_chunk_to_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ramify.sources.chunks.CHUNK_ATOMS", 14)  # chunks of seven structures
    write_pairs(tmp_path / "a.xyz", 60)
    write_pairs(tmp_path / "b.xyz", 60, origin=0.3)
    manifest, rows = prepared(tmp_path, path=["a.xyz", "b.xyz"], every=5)
    assert rows == sorted([*range(0, 60, 5), *range(0, 60, 5)])  # each file begins with its first
    assert manifest.dropped == {"left out by every": 96}


def test_limit_is_a_stated_random_subset(tmp_path: Path) -> None:
    write_pairs(tmp_path / "a.xyz", 80)
    manifest, rows = prepared(tmp_path, path="a.xyz", limit=30)
    assert len(rows) == manifest.structures == 30
    assert manifest.dropped == {"left out by limit": 50}
    assert manifest.read == 80
    assert len(set(np.array(rows) // 10)) >= 6  # from everywhere, not the first ones
    assert prepared(tmp_path, path="a.xyz", limit=30)[1] == rows
    assert prepared(tmp_path, path="a.xyz", limit=30, split_seed=1)[1] != rows
    assert set(prepared(tmp_path, path="a.xyz", limit=40)[1]) > set(rows)
    manifest, rows = prepared(tmp_path, path="a.xyz", limit=1000)
    assert rows == list(range(80))
    assert manifest.dropped == {}


@pytest.mark.parametrize("keys", [{"every": 0}, {"limit": 0}, {"every": 1.5}])
def test_numbers_that_mean_nothing_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        formats()["ani1x"].options.model_validate({"format": "ani1x", "path": "x", **keys})
