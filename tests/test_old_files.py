"""Files of version 0.1 can still be read: stores, interrupted runs, their checkpoints.

`make.py` in `samples/version-0.1` wrote the structures; `ramify prepare`, `train` (stopped by SIGTERM) and `evaluate`
of that version wrote the rest. `expected.json` holds its predictions, and the losses of the steps that followed when it
resumed the runs.
"""

import contextlib
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.io import read

import ramify
from ramify.inspect import describe
from ramify.store.store import Store
from tests.docs.pages import verb

SAMPLES = Path(__file__).parent / "samples/version-0.1"
KINDS = ("conservative", "direct")


def program(*words: str, cwd: Path) -> None:
    """Runs `ramify` with these arguments in the folder `cwd`; it must succeed."""
    with contextlib.chdir(cwd):
        verb(shlex.join(("ramify", *words)))


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    """A writable copy."""
    return Path(shutil.copytree(SAMPLES, tmp_path / "sample", symlinks=True))


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    """Results of version 0.1."""
    found: dict[str, Any] = json.loads((SAMPLES / "expected.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("name", ["metals", "mixed"])
def test_stores(name: str) -> None:
    store = Store.open(SAMPLES / "stores" / name)
    frames = {(f"{name}.xyz", row): frame for row, frame in enumerate(read(SAMPLES / f"{name}.xyz", ":"))}
    found = store.take(np.arange(len(store)))
    assert len(found) == len(frames) == 24
    for index, energy in enumerate(found.energy):
        frame = frames[f"{name}.xyz", int(found.row[index])]
        assert energy == pytest.approx(frame.get_potential_energy(), abs=1e-9)
        np.testing.assert_allclose(found.stress[index], frame.get_stress(voigt=False), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_predictions(kind: str, expected: dict[str, Any]) -> None:
    model = ramify.load(SAMPLES / "runs" / kind)
    structures = read(SAMPLES / "metals.xyz", ":2")
    for branch, values in expected[kind]["predictions"].items():
        found = model.predict(structures, branch=branch)
        assert [p.energy for p in found] == pytest.approx(values["energy"], rel=1e-10)
        for prediction, forces in zip(found, values["forces"], strict=True):
            np.testing.assert_allclose(prediction.forces, forces, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_runs_resume(kind: str, sample: Path, expected: dict[str, Any]) -> None:
    """The losses of the steps after the checkpoint are those of an uninterrupted run."""
    run = sample / "runs" / kind
    program("train", "--resume", str(run), "train.threads=1", cwd=sample)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}
    for step in expected[kind]["resumed"]:
        assert losses[step["step"]] == pytest.approx(step["loss"], rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_runs_are_described_and_evaluated(kind: str, sample: Path) -> None:
    run = sample / "runs" / kind
    assert describe(run, verify=False)
    before = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    program("tables", str(run), cwd=sample)
    program("report", str(run), cwd=sample)
    program("evaluate", str(run), cwd=sample)
    after = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    for old, new in zip(before["rows"], after["rows"], strict=True):
        assert (old["branch"], old["dataset"]) == (new["branch"], new["dataset"])
        assert new["energy_mae"] == pytest.approx(old["energy_mae"], rel=1e-9)
        assert new["forces_mae"] == pytest.approx(old["forces_mae"], rel=1e-9)
