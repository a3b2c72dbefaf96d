"""Errors that a user can resolve: one message on stderr, status 1, no traceback, no files left."""

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import write

from ramify.checkpoint.pointers import resolve
from tests.small import files_of, flip_byte

from .conftest import Ramify, recipe, refused


@pytest.mark.parametrize("verb", ["prepare", "train"])
def test_unknown_recipe_key(ramify: Ramify, tmp_path: Path, verb: str) -> None:
    path = recipe(tmp_path)
    arguments = ("--run", "run") if verb == "train" else ()
    said = ramify(verb, path, "train.bacth=3", *arguments)
    refused(said, "recipe.yaml", "train.bacth", "'batch'", "accepted: batch,")
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.yaml"]


def test_missing_files(ramify: Ramify, tmp_path: Path) -> None:
    refused(ramify("train", "my.yaml", "--run", "run"), "my.yaml", "acac, bpa3, demo, five, paper")
    path = recipe(tmp_path, qm7x={"format": "qm7x", "path": "nowhere.h5"})
    refused(ramify("prepare", path), "datasets.qm7x.path: ", "nowhere.h5")
    path = recipe(tmp_path, qm7x={"format": "qm7x", "path": "*.h5"})
    refused(ramify("prepare", path), "datasets.qm7x.path: ", "*.h5")
    refused(ramify("train", path, "--run", "run"), "'qm7x'", "stores/qm7x", "`ramify prepare")
    refused(ramify("train", "--resume", "run"), "run", "recipe.yaml")
    refused(ramify("evaluate", "run"), "run")
    refused(ramify("tables", "run"), "run")
    refused(ramify("report", "run"), "run")
    refused(ramify("inspect", "run"), "run", "store", "checkpoint", "export")
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.yaml"]


def test_wrong_format(ramify: Ramify, tmp_path: Path) -> None:
    (tmp_path / "not.h5").write_text("name,energy\nH2,-1\n")
    path = recipe(tmp_path, a={"format": "qm7x", "path": "not.h5"})
    refused(ramify("prepare", path), "not.h5")
    path = recipe(tmp_path, a={"format": "extxyz", "path": "not.h5"})
    refused(ramify("prepare", path), "not.h5: frame 0", "'name,energy'")
    path = recipe(tmp_path, a={"format": "qm7", "path": "not.h5"})
    refused(ramify("prepare", path), "datasets.a.format: 'qm7'", "'qm7x'", "accepted: alexandria,")
    refused(ramify("prepare", tmp_path / "not.h5"), "not.h5", "str", "mapping")
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["not.h5", "recipe.yaml"]
    assert not list((tmp_path / "stores").glob("*"))


def frames(path: Path, *symbols: str, count: int = 6) -> str:
    """Writes stretched diatomics with energies, others in every file."""
    rng = np.random.default_rng(list(path.name.encode()))
    images = []
    for k in range(count):
        atoms = Atoms(symbols[k % len(symbols)], positions=[[0, 0, 0], [0, 0, 1.0 + 0.05 * k + 0.01 * rng.random()]])
        atoms.info["energy"] = -30.0 + 0.1 * k
        images.append(atoms)
    write(path, images, format="extxyz")
    return str(path)


def test_empty_split(ramify: Ramify, tmp_path: Path) -> None:
    paths = {s: frames(tmp_path / f"{s}.xyz", "H2", count=c) for s, c in {"val": 6, "test": 4}.items()}
    path = recipe(tmp_path, a={"format": "extxyz", "path": paths})
    refused(ramify("prepare", path), "dataset 'a': the split(s) train are empty (train 0, val 6, test 4)")
    path = recipe(tmp_path, a={"format": "extxyz", "path": paths["val"], "split": {"val": 0.5, "test": 0.5}})
    refused(ramify("prepare", path), "split: val 0.5 and test 0.5 leave nothing to train on")
    assert not list((tmp_path / "stores").glob("*"))


def test_an_element_that_training_never_sees(ramify: Ramify, tmp_path: Path) -> None:
    paths = {s: frames(tmp_path / f"{s}.xyz", "H2", count=c) for s, c in {"train": 6, "val": 4}.items()}
    paths["test"] = frames(tmp_path / "test.xyz", "HF", "HF")
    path = recipe(tmp_path, a={"format": "extxyz", "path": paths})
    refused(ramify("prepare", path), "the given validation and test splits hold F, which no training structure does")
    assert not list((tmp_path / "stores").glob("*"))


def test_a_branch_without_data(ramify: Ramify, tmp_path: Path) -> None:
    said = ramify("train", recipe(tmp_path), "--run", "run", "branches={a: [qm7x, mptrj], b: []}")
    refused(said, "branches: b")
    said = ramify("train", recipe(tmp_path), "--run", "run", "branches={a: [qm7x]}")
    refused(said, "branches: ", "mptrj")
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.yaml"]


def test_contradictory_arguments_of_train(ramify: Ramify, tmp_path: Path) -> None:
    path = recipe(tmp_path)
    for arguments in (
        (path,),
        (path, "--run", "a", "--resume", "b"),
        ("--run", "a"),
        ("--run", "a", "train.batch=3"),
        ("--resume", "a", "--continue"),
    ):
        refused(ramify("train", *arguments), "recipe", "--run DIR", "--resume DIR")
    refused(ramify("train", "--resume", "a", "train.batch=3"), "a is not a run directory")


def test_what_a_run_cannot_change(ramify: Ramify, own: Path) -> None:
    before = files_of(own)
    said = ramify("train", "--resume", own / "run", "train.seed=3", "model.encoder.width=16", "train.log_every=2")
    refused(said, "model.encoder.width: 8, now 16", "train.seed: 0, now 3")
    said = ramify("train", "--resume", own / "run", "train.bacth=3")
    refused(said, "train.bacth: ", "'batch'")
    assert files_of(own) == before


def test_a_damaged_store(ramify: Ramify, own: Path) -> None:
    positions = own / "stores" / "qm7x" / "positions.npy"
    assert ramify("inspect", positions.parent, "--verify").status == 0
    whole = positions.read_bytes()
    flip_byte(positions)
    refused(ramify("inspect", positions.parent, "--verify"), f"{positions}: damaged", "positions")
    before = files_of(own)
    positions.write_bytes(whole[:-12])
    said = ramify("train", own / "recipe.yaml", "--run", own / "new")
    refused(said, f"{positions}: damaged", "`ramify prepare RECIPE --force`")
    positions.write_bytes(before[str(positions.relative_to(own))])
    assert files_of(own) == before


def test_a_damaged_manifest_of_a_store(ramify: Ramify, own: Path) -> None:
    manifest = own / "stores" / "qm7x" / "manifest.json"
    for content in ("", "[]", "{", '{"format": "ramify-store"}'):
        manifest.write_text(content)
        refused(ramify("train", own / "recipe.yaml", "--run", own / "new"), str(manifest))
        refused(ramify("inspect", manifest.parent), str(manifest.parent))


def test_a_damaged_checkpoint(ramify: Ramify, own: Path) -> None:
    """Evaluation needs the weights, resuming the moments too; `inspect --verify` reads everything."""
    latest = resolve(own / "run" / "checkpoints" / "latest")
    flip_byte(latest / "training" / "branches" / "qm7x.safetensors")
    damaged = f"{latest.name}/training/branches/qm7x.safetensors is damaged: its checksum differs from the manifest"
    refused(ramify("train", "--resume", own / "run"), damaged, "checkpoint")
    refused(ramify("inspect", own / "run", "--verify"), damaged)
    flip_byte(resolve(own / "run" / "checkpoints" / "best") / "encoder.safetensors")
    before = files_of(own)
    refused(ramify("evaluate", own / "run"), "/encoder.safetensors is damaged")
    refused(ramify("inspect", own / "run"), "encoder.safetensors is damaged")
    flip_byte(latest / "manifest.json")
    refused(ramify("evaluate", own / "run", "--checkpoint", "latest"), "manifest.json is damaged")
    flip_byte(latest / "manifest.json")
    assert files_of(own) == before


def test_a_run_that_exists_already(ramify: Ramify, finished: Path) -> None:
    before = files_of(finished)
    said = ramify("train", finished / "recipe.yaml", "--run", finished / "run")
    refused(said, "run exists already", "--run", "--resume")
    assert files_of(finished) == before


def test_other_options_than_the_store_was_made_with(ramify: Ramify, finished: Path) -> None:
    said = ramify("train", finished / "recipe.yaml", "--run", finished / "new", "datasets.qm7x.gates.max_force=50")
    refused(said, "(gates: ", "`ramify prepare RECIPE --force`")
    assert not (finished / "new").exists()


def test_wrong_split_or_checkpoint(ramify: Ramify, finished: Path) -> None:
    refused(ramify("evaluate", finished / "run", "--split", "tset"), "--split tset", "train, val and test")
    refused(ramify("evaluate", finished / "run", "--checkpoint", "step-1"), "step-1")


def test_what_the_system_refuses(ramify: Ramify, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    refused(
        ramify("train", finished / "recipe.yaml", "--run", tmp_path / "file" / "run"), "Not a directory", "file/run"
    )
