"""A full disk at any moment: one message, no partial files, and with free space the command can be repeated."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.small import files_of, metrics

from .conftest import Ramify, recipe, refused


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """Inside, no file can grow beyond `limit` bytes: writes fail as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_while_preparing(ramify: Ramify, tmp_path: Path) -> None:
    path = recipe(tmp_path)
    with file_size_limit(10_000):
        said = ramify("prepare", path)
    refused(said, "stores/qm7x: File too large", "free some space")
    assert not list((tmp_path / "stores").glob("*"))


def test_a_full_disk_while_a_run_is_made(ramify: Ramify, finished: Path, tmp_path: Path) -> None:
    with file_size_limit(1_000):
        said = ramify("train", finished / "recipe.yaml", "--run", tmp_path / "run")
    refused(said, "run/data.json: File too large")
    assert not (tmp_path / "run").exists()


def test_a_full_disk_while_training(ramify: Ramify, finished: Path, tmp_path: Path) -> None:
    """Metrics grow beyond the limit: earlier checkpoints stay complete, and with free space the run resumes."""
    longer = ("train.max_steps=120", "train.log_every=1", "train.evaluate_every=9", "train.checkpoint_every=0.5")
    with file_size_limit(30_000):
        said = ramify("train", finished / "recipe.yaml", "--run", tmp_path / "run", *longer)
    refused(said, "File too large", "latest checkpoint", "free some space")
    assert ramify("inspect", tmp_path / "run", "--verify").status == 0
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))
    said = ramify("train", "--resume", tmp_path / "run")
    assert said.status == 0
    assert [line["step"] for line in metrics(tmp_path / "run", "train")] == list(range(1, 121))


def test_a_full_disk_while_evaluating(ramify: Ramify, own: Path) -> None:
    before = files_of(own)
    with file_size_limit(3_000):
        said = ramify("evaluate", own / "run", "--split", "val")
    refused(said, "File too large")
    assert files_of(own) == before
