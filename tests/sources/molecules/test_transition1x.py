"""Transition1x: official splits, `data` never on top of them, repeated frames, thinned bands."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ramify.structures import Split
from tests.corpora import HELD, stated_energies

ENERGY, FORCES = "wB97x_6-31G(d).energy", "wB97x_6-31G(d).forces"


def fill(group: h5py.Group, positions: np.ndarray, energy: np.ndarray) -> None:
    group["atomic_numbers"] = np.array([6, 1, 7])
    group["positions"] = positions
    group[ENERGY] = energy
    group[FORCES] = positions * 0.1


def write(path: Path, parts: dict[str, list[str]], *, iterations: int = 3, ts_repeats: bool = False) -> None:
    rng = np.random.default_rng(0)
    frames = 10 + 8 * iterations
    with h5py.File(path, "w") as file:
        for part, reactions in parts.items():
            for reaction in reactions:
                group = file.create_group(f"{part}/{reaction}")
                positions = rng.normal(0, 1, (frames, 3, 3))
                fill(group, positions, np.arange(frames, dtype=float))
                fill(group.create_group("reactant"), positions[:1], np.zeros(1))
                fill(group.create_group("product"), positions[9:10], np.full(1, 9.0))
                saddle = positions[-3:-2] if ts_repeats else positions[-3:-2] + 1e-9
                fill(group.create_group("transition_state"), saddle, np.full(1, 77.0))


def test_official_parts_and_never_data_as_well(tmp_path: Path, read: Any) -> None:
    write(tmp_path / "t1x.h5", {"data": ["CHN/rxn0", "CHN/rxn1"], "train": ["CHN/rxn0"], "test": ["CHN/rxn1"]})
    found, quarantine = read("transition1x", tmp_path / "t1x.h5")
    assert len(found) == 2 * (34 + 1)
    assert set(found.split.tolist()) == {Split.TRAIN, Split.TEST}
    assert [found.group_names[g] for g in found.group] == ["CHN/rxn0"] * 35 + ["CHN/rxn1"] * 35
    assert (found.split == np.where(found.group == 0, Split.TRAIN, Split.TEST)).all()
    assert quarantine.counts == {"repeats a frame of its reaction": 4}


def test_data_alone_is_read_without_split(tmp_path: Path, read: Any) -> None:
    write(tmp_path / "t1x.h5", {"data": ["CHN/rxn0"]})
    found, _ = read("transition1x", tmp_path / "t1x.h5")
    assert len(found) == 35
    assert set(found.split.tolist()) == {Split.NONE}
    assert found.name(34) == "t1x.h5/data/CHN/rxn0/transition_state[0]"
    assert found.energy[34] == 77.0


@pytest.mark.parametrize(("ts_repeats", "count"), [(False, 35), (True, 34)])
def test_repeats_are_dropped_to_the_last_bit(tmp_path: Path, read: Any, ts_repeats: bool, count: int) -> None:
    write(tmp_path / "t1x.h5", {"train": ["CHN/rxn0"]}, ts_repeats=ts_repeats)
    found, quarantine = read("transition1x", tmp_path / "t1x.h5")
    assert len(found) == count
    assert quarantine.total == 2 + ts_repeats


def test_every_thins_the_iterations(tmp_path: Path, read: Any) -> None:
    write(tmp_path / "t1x.h5", {"train": ["CHN/rxn0"]}, iterations=6)
    found, quarantine = read("transition1x", tmp_path / "t1x.h5", every=4)
    kept = [*range(10), *range(10, 18), *range(42, 50), *range(50, 58)]  # first images, iterations 0 and 4, the last
    assert found.row[:-1].tolist() == kept
    assert found.energy[:-1].tolist() == kept
    assert quarantine.counts == {"band iteration not taken (every)": 24, "repeats a frame of its reaction": 2}


def test_embedded_corpus(corpora: Path, read: Any, slope: Any) -> None:
    found, quarantine = read("transition1x", corpora / "transition1x_mini/Transition1x-mini.h5")
    assert len(found) == HELD["transition1x_mini"].structures
    assert quarantine.counts == {"repeats a frame of its reaction": 3 * HELD["transition1x_mini"].systems}
    assert len(found.group_names) == HELD["transition1x_mini"].systems
    counts = {split: int((found.split == split).sum()) for split in Split}
    assert counts == {Split.NONE: 0, Split.TRAIN: 1258, Split.VAL: 274, Split.TEST: 290}
    per_atom = found.energy / found.n_atoms
    assert (per_atom.min(), per_atom.max()) == pytest.approx(stated_energies("transition1x_mini"), abs=5.1e-4)
    assert slope(found, 0.15) == pytest.approx(
        1.0, abs=0.05
    )  # other images of short paths are too far from one another
