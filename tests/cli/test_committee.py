"""`ramify train --seeds`: whole models, or heads on one encoder; interrupted, continued, loaded as a committee."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import molecule
from ase.io import read, write

import ramify as package
from ramify.errors import RamifyError
from ramify.model.parts import ENCODER, checksums_of_parts
from ramify.train.loop import Trainer
from tests.small import assert_same, tensors

from .conftest import Ramify, refused

WORDS = ("train.max_steps=6", "train.evaluate_every=0.5")


def sums(run: Path) -> dict[str, str]:
    """Checksums of the parts of a model."""
    return checksums_of_parts(package.load(run).saved.weights)


def test_whole_models(ramify: Ramify, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each seed is the run of `train.seed`; an interrupted command goes on; the folder is a model."""
    step, count = Trainer.step, 0

    def interrupted(trainer: Trainer, *arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == 10:  # in the second run
            raise KeyboardInterrupt
        return step(trainer, *arguments)

    command = ("train", finished / "recipe.yaml", "--run", "four", "--seeds", 2, *WORDS, "train.seed=3")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupted)
        assert ramify(*command).status == 130
    with pytest.raises(RamifyError, match=r"four is a committee of 2 seeds, and seed-4 is not trained yet"):
        package.load("four")
    refused(ramify(*command), "seed-3 exists already")
    said = ramify(*command, "--continue")
    assert (said.status, said.err) == (0, "")
    assert "committee of 2 seeds: four" in said.out
    assert json.loads(Path("four/seeds.json").read_text())["seeds"] == [3, 4]
    assert ramify("train", finished / "recipe.yaml", "--run", "alone", *WORDS, "train.seed=4").status == 0
    assert_same(tensors(Path("four/seed-4")), tensors(Path("alone")))

    write("water.xyz", molecule("H2O"))
    assert ramify("predict", "water.xyz", "-m", "four", "-b", "qm7x", "-o", "out.xyz", "--forces-std").status == 0
    found = read("out.xyz")
    each = [package.load(f"four/seed-{seed}").predict(molecule("H2O"), "qm7x") for seed in (3, 4)]
    assert found.get_potential_energy() == pytest.approx(np.mean([one.energy for one in each]), abs=1e-6)
    assert found.info["energy_std"] == pytest.approx(np.std([one.energy for one in each], ddof=1), rel=1e-4)
    assert found.info["energy_std"] > 0
    for words in (("evaluate", "four"), ("export", "four", "-o", "model"), ("inspect", "four")):
        refused(ramify(*words), "four is a committee", "four/seed-3, four/seed-4")


def test_heads_on_one_encoder(ramify: Ramify, finished: Path) -> None:
    """The encoder is that of the first seed to the bit, the heads are others, on the same energy scale."""
    said = ramify("train", finished / "recipe.yaml", "--run", "heads", "--seeds", 3, "--heads", 4, *WORDS)
    assert (said.status, said.err) == (0, "")
    parts = [sums(Path(f"heads/seed-{seed}")) for seed in range(3)]
    assert len({part[ENCODER] for part in parts}) == 1
    for branch in ("qm7x", "mptrj"):
        assert len({part[name] for part in parts for name in part if branch in name}) == 3
    steps = [package.load(f"heads/seed-{seed}", checkpoint="latest").saved.step for seed in range(3)]
    assert steps == [6, 4, 4]
    committee = package.load("heads")
    assert len(committee.members) == 3
    assert committee.predict(molecule("H2O"), "qm7x").energy_std > 0


def test_wrong_use(ramify: Ramify, finished: Path) -> None:
    run = finished / "recipe.yaml"
    refused(ramify("train", "--resume", finished / "run", "--seeds", 2), "--seeds needs --run DIR")
    refused(ramify("train", run, "--run", "new", "--heads", 2), "--heads needs --seeds")
    refused(ramify("train", run, "--run", finished / "run", "--seeds", 2), "is a run of one seed")
