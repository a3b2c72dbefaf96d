"""Output of verbs into a pipe or a job log, which have no width."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from ase.build import molecule
from ase.io import write

from tests.cli.conftest import recipe

LONG = "a-dataset-with-a-name-as-long-as-names-of-datasets-are"


def test_tables_are_not_cut_at_80_columns(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = []
    for k in range(40):
        atoms = molecule("CH3OH")
        atoms.positions += rng.normal(size=(6, 3)) * 0.05
        atoms.info = {"energy": -3150.0 + 0.1 * k}
        images.append(atoms)
    images.append(images[0].copy())
    images[-1].info["energy"] += 3.0
    write(tmp_path / "all.xyz", images, format="extxyz")
    entry = {"format": "extxyz", "path": "all.xyz", "split": {"by": "structure"}}
    path = recipe(tmp_path, **{LONG: entry})
    environment = {k: v for k, v in os.environ.items() if k != "COLUMNS"}
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-m", "ramify", "prepare", str(path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    row = next(line for line in done.stdout.splitlines() if line.startswith(LONG) and " / " in line)
    assert row.split()[-1] == "1"
    assert f"{LONG}: dropped 1 equal geometry, other labels (up to 0.5 eV/atom apart)" in done.stdout.splitlines()
    heading = next(line for line in done.stdout.splitlines() if line.startswith("dataset"))
    assert heading.rstrip().endswith("dropped")
    assert any(line.startswith(f"warning: {LONG}: split by structure") for line in done.stdout.splitlines())
