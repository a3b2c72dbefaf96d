"""Small stores and recipes: embedded corpora, one dataset without forces, and a model of a few hundred weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import write

from ramify.checkpoint.checkpoint import open_checkpoint
from ramify.minicorpora import FILES
from ramify.prepare.prepare import prepare_dataset
from ramify.recipe import Recipe, parse_recipe
from ramify.train.loop import Trainer
from ramify.train.reporting import Callbacks
from ramify.train.start import start_run

MODEL = {
    "encoder": {
        "kind": "egnn",
        "layers": 1,
        "width": 8,
        "vector_channels": 4,
        "radial": 4,
        "cutoff": 4.0,
        "max_neighbors": 8,
        "message_layers": 1,
    },
    "energy_head": {"layers": 1, "width": 8},
    "force_head": {"layers": 1, "width": 8, "kind": "direct"},
}
COMPOSITIONS = (
    "C1H1N1 C1H2N2 C1H2O1 C1H2O2 C1H3N1 C1H3N1O1 C1H4 C1H4O1 C1H4O2 C1H5N1 C1H5N1O1 C1H6N2 C1O1 C1O2 C2H2 C2H2O1 "
    "C2H2O2 C2H3N1 C2H4 C2H4O1 C2H4O2 C2H5N1 C2H6 C2H6O1 C2H7N1 C3H4 C3H6 C3H8 H2N2 H2O1 H2O2 H3N1 H3N1O1 H4N2 N2"
)
MOLECULES, MATERIALS = range(1, 31), range(1, 108)
"""Parts of the embedded corpora that stay as they are when the corpora grow."""
ENTRIES: dict[str, dict[str, Any]] = {
    "ani1x": {"format": "ani1x", "path": str(FILES["ani1x_mini"]), "where": {"group": COMPOSITIONS.split()}},
    "qm7x": {
        "format": "qm7x",
        "path": str(FILES["qm7x_mini"]),
        "labels": "pbe0",
        "where": {"group": [str(n) for n in MOLECULES]},
    },
    "mptrj": {
        "format": "mptrj",
        "path": str(FILES["mptrj_mini"]),
        "where": {"group": [f"rm-{n}" for n in MATERIALS if n != 29]},  # 29 was added later
    },
}
"""Molecules, molecules of more elements, periodic crystals with stress. `bare` is added by `prepare_stores`."""


def prepare_stores(folder: Path) -> dict[str, dict[str, Any]]:
    """Prepares ani1x, qm7x, mptrj and `bare` into `folder` / stores; returns their recipe entries."""
    entries = ENTRIES | {"bare": {"format": "extxyz", "path": str(without_forces(folder)), "group_key": "molecule"}}
    recipe = make_recipe(folder, entries)
    for name, options in recipe.datasets.items():
        prepare_dataset(name, options, Path(recipe.stores), base=folder)
    return entries


def without_forces(folder: Path) -> Path:
    """60 water molecules of different shapes, with an energy that is harmonic in the distances, and nothing else."""
    rng = np.random.default_rng(0)
    images = []
    for row in range(60):
        atoms = Atoms("OH2", positions=[[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
        atoms.positions += rng.normal(0, 0.05, (3, 3))
        stretch = np.array([atoms.get_distance(0, 1), atoms.get_distance(0, 2)]) - 0.96
        atoms.info = {"energy": -76.45 * 27.2 + 20 * float(stretch @ stretch), "molecule": f"m{row // 4}"}
        images.append(atoms)
    write(folder / "bare.xyz", images, format="extxyz")
    return folder / "bare.xyz"


def make_recipe(folder: Path, entries: Mapping[str, Any], **changes: Any) -> Recipe:
    """A small recipe over `entries`; `changes` are keys with `__` for the dot, e.g. `train__batch=4`."""
    content: dict[str, Any] = {
        "stores": str(folder / "stores"),
        "datasets": dict(entries),
        "model": json.loads(json.dumps(MODEL)),
        "optimizer": {"lr": 0.01, "ema": 0.9},
        "schedule": {"warmup_steps": 3},
        "train": {"batch": 8, "max_steps": 12, "evaluate_every": 0.05, "checkpoint_every": 0.05, "log_every": 2},
    }
    for key, value in changes.items():
        group = content
        *parents, last = key.split("__")
        for parent in parents:
            group = group.setdefault(parent, {})
        group[last] = value
    return parse_recipe(content, "small recipe")


def train(recipe: Recipe, path: Path, callbacks: Callbacks | None = None) -> Trainer:
    """Trains a new run to its end."""
    trainer = start_run(recipe, path, callbacks or Callbacks())
    trainer.fit()
    return trainer


def tensors(run: Path, which: str = "latest") -> dict[str, torch.Tensor]:
    """Everything a checkpoint of a run keeps: weights to use, weights being trained, moments."""
    checkpoint = open_checkpoint(run / "checkpoints" / which)
    kept = {f"training {name}": tensor for name, tensor in checkpoint.training().items()}
    return kept | {f"weights {name}": tensor for name, tensor in checkpoint.weights().items()}


def metrics(run: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without the only entry that may differ between equal runs, the time."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "time"} for line in lines if kind in (None, line["kind"])]


def assert_same(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Equal to the bit."""
    assert set(found) == set(expected)
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name]), name


def assert_near(found: Any, expected: Any, *, rel: float, abs: float) -> None:
    """Lines of a log: numbers to that much, all else exactly."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_near(found[key], value, rel=rel, abs=abs)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=rel, abs=abs)
    else:
        assert found == expected


def files_of(folder: Path) -> dict[str, bytes]:
    """All files below `folder` with their content; links with their targets."""
    return {
        str(p.relative_to(folder)): (str(p.readlink()).encode() if p.is_symlink() else p.read_bytes())
        for p in sorted(folder.rglob("*"))
        if p.is_symlink() or p.is_file()
    }


def flip_byte(path: Path, at: int | None = None) -> None:
    """Damages one byte of a file, by default in its middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if at is None else at] ^= 0x01
    path.write_bytes(data)
