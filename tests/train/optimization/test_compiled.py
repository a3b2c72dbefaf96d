"""Runs whose passes are compiled, against plain ones; programs are made without a compiler of C++."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ramify.errors import RamifyError
from ramify.model import compiled
from ramify.run.changes import compare
from tests.small import assert_near, metrics, tensors, train
from tests.train.conftest import MakeRecipe

KINDS: dict[str, dict[str, Any]] = {
    "direct": {},
    "conservative": {"model__force_head__kind": "conservative", "objective__stress": 0.3},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_five_steps(small: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Molecules, and crystals with stress; losses, errors on the validation splits, weights and moments."""
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    length = {"train__max_steps": 5, "train__precision": "fp64", "train__log_every": 1}
    for mode in ("none", "default"):
        train(small("qm7x", "mptrj", train__compile=mode, **length, **KINDS[kind]), tmp_path / mode)
    plain, found = metrics(tmp_path / "none"), metrics(tmp_path / "default")
    assert len(plain) == len(found) > 5
    for line, same in zip(found, plain, strict=True):
        assert_near(line, same, rel=1e-10, abs=1e-12)
    expected = tensors(tmp_path / "none")
    for name, tensor in tensors(tmp_path / "default").items():
        limit = 1e-10 * float(expected[name].abs().max())
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=limit, msg=name)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train__checkpointing": "layers"}, r"train.checkpointing: layers is not compatible with train.compile"),
        ({"parallel__shard": "encoder"}, r"parallel.shard: encoder is not compatible with train.compile"),
        ({"train__compile": "fast"}, r"train.compile"),
    ],
)
def test_what_does_not_go_together(small: MakeRecipe, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RamifyError, match=words):
        small("qm7x", **{"train__compile": "default", **changes})


def test_nothing_is_left_behind_where_graphs_cannot_be(small: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(RamifyError, match=r"(?s)cuda-graphs.*is on cpu"):
        train(small("qm7x", train__compile="cuda-graphs", train__device="cpu"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_may_go_on_with_another_choice(small: MakeRecipe) -> None:
    changes = compare(small("qm7x"), small("qm7x", train__compile="default"), "a recipe")
    assert changes.keys == {"train.compile": ["none", "default"]}
