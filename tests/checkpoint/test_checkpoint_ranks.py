"""Checkpoints written by several ranks: each its parts, one folder, the bytes that one writer leaves; all or none."""

import errno
import os
import secrets
from pathlib import Path
from typing import Any

import pytest
import torch

from ramify.checkpoint import checkpoint as module
from ramify.checkpoint.checkpoint import open_checkpoint, save_checkpoint, tidy
from ramify.checkpoint.pointers import NAME
from ramify.errors import RamifyError
from tests.checkpoint.test_checkpoint import ABOUT, FILES, names_in, tensors
from tests.processes.ranks import ThreadRank, on_threads
from tests.small import assert_same, files_of

OWNERS = {"encoder": 0, "branches.ani1x": 1, "branches.mptrj": 2}
"""Rank 3 owns nothing, as a rank does that only helps with a branch."""


def owned(named: dict[str, torch.Tensor], rank: int) -> dict[str, torch.Tensor]:
    return {n: t for n, t in named.items() if any(n.startswith(p) and r == rank for p, r in OWNERS.items())}


def save(ranks: ThreadRank, folder: Path, step: int, about: dict[str, Any] = ABOUT) -> Path:
    weights, training = (owned(named, ranks.rank) for named in tensors(step))
    return save_checkpoint(folder, step, weights, training, about, best=True, ranks=ranks)


def saved(folder: Path, step: int, world: int = 4) -> list[Path | Exception]:
    return on_threads(world, lambda ranks: save(ranks, folder, step))


def test_many_writers_leave_what_one_does(tmp_path: Path) -> None:
    """The same bytes in every file, the manifest included."""
    for name in ("many", "one"):
        (tmp_path / name).mkdir()
    assert saved(tmp_path / "many", 7) == [tmp_path / "many" / "step-00000007"] * 4
    save_checkpoint(tmp_path / "one", 7, *tensors(7), ABOUT, best=True)
    assert files_of(tmp_path / "many") == files_of(tmp_path / "one")
    assert names_in(tmp_path / "many") == {NAME, "step-00000007"}
    checkpoint = open_checkpoint(tmp_path / "many" / "latest")
    assert sorted(checkpoint.manifest["files"]) == sorted(FILES)
    assert_same(checkpoint.weights(), tensors(7)[0])
    assert_same(checkpoint.training(), tensors(7)[1])


def test_a_rank_reads_only_what_it_hosts(tmp_path: Path) -> None:
    """Files of other branches may even be missing."""
    path = save_checkpoint(tmp_path, 7, *tensors(7), ABOUT, best=True)
    for name in ("branches/mptrj.safetensors", "training/branches/mptrj.safetensors"):
        (path / name).unlink()
    checkpoint = open_checkpoint(path)
    for found, expected in zip(
        (checkpoint.weights(["ani1x"]), checkpoint.training(["ani1x"])), tensors(7), strict=True
    ):
        assert_same(found, {n: t for n, t in expected.items() if not n.startswith("branches.mptrj")})
    assert set(checkpoint.weights([])) == {"encoder.layers.0.weight"}
    with pytest.raises(RamifyError, match=r"lacks branches/mptrj\.safetensors"):
        checkpoint.weights()
    with pytest.raises(RamifyError, match=r"lacks branches/other\.safetensors"):
        checkpoint.weights(["other"])


FAILING = ("encoder", "branches/ani1x", "branches/mptrj")


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_full_disk_on_any_rank_is_one_error_on_all(
    tmp_path: Path, failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left of the new checkpoint, and the one before is whole."""
    assert not any(isinstance(outcome, Exception) for outcome in saved(tmp_path, 1))
    before = files_of(tmp_path)
    sync = module.sync

    def full(path: Path) -> None:
        if path.stem == Path(FAILING[failing]).name and "training" in path.parts:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(path)

    with monkeypatch.context() as patched:
        patched.setattr(module, "sync", full)
        outcomes = saved(tmp_path, 2)
    texts = {str(error) for error in outcomes}
    assert len(texts) == 1
    assert texts.pop().startswith(
        f"rank {failing} of 4: cannot write {tmp_path}/step-00000002/training/{FAILING[failing]}.safetensors: No space "
        "left on device; nothing was left behind"
    )
    assert all(isinstance(error, RamifyError) and error.everywhere for error in outcomes)
    assert files_of(tmp_path) == before
    assert not any(isinstance(outcome, Exception) for outcome in saved(tmp_path, 2))
    assert open_checkpoint(tmp_path / "latest").step == 2


def test_a_mistake_in_the_program_keeps_its_traceback(tmp_path: Path) -> None:
    """On the rank where it occurs; the other ranks refer to it."""
    outcomes = on_threads(3, lambda ranks: save(ranks, tmp_path, 1, ABOUT | {"trainer": object()}))
    assert isinstance(outcomes[0], TypeError)
    for outcome in outcomes[1:]:
        assert isinstance(outcome, RamifyError)
        assert str(outcome).startswith("rank 0 of 3: TypeError: ")
    assert names_in(tmp_path) == set()


@pytest.mark.parametrize("alike", [False, True])
def test_ranks_that_do_not_share_the_folder_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alike: bool
) -> None:
    """Rank 2 writes to a disk of its own, on which there may even be a folder of the same name."""
    monkeypatch.setattr(secrets, "token_hex", lambda size: "0" * 2 * size)

    def work(ranks: ThreadRank) -> Path:
        folder = tmp_path / ("shared" if ranks.rank != 2 else "own")
        folder.mkdir(exist_ok=True)
        if ranks.rank == 2 and alike:
            for name in ("branches", "training/branches"):
                (folder / ".step-00000001.partial-00000000" / name).mkdir(parents=True)
        return save(ranks, folder, 1)

    for outcome in on_threads(3, work):
        said = "rank 2 wrote branches/mptrj.safetensors into " if alike else "rank 2 of 3: "
        assert said in str(outcome)
        assert "the run directory must lie on a file system that all ranks share" in str(outcome)
    assert names_in(tmp_path / "shared") == set()


def test_checkpoints_with_a_pointer_or_a_link_of_their_own_stay(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, *tensors(step), ABOUT, best=True)
        if step == 1:
            tidy(tmp_path, **{"with-qm7x": "step-00000001"})
        if step == 2:
            (tmp_path / "favourite").symlink_to("step-00000002")
    (tmp_path / "step-00000009").mkdir()
    (tmp_path / ".step-00000009.partial-1").mkdir()
    (tmp_path / ".latest.1").symlink_to("step-00000009")
    tidy(tmp_path)
    assert names_in(tmp_path) == {NAME, "favourite", "step-00000001", "step-00000002", "step-00000003"}
    assert open_checkpoint(tmp_path / "with-qm7x").step == 1
