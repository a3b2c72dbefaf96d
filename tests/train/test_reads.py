"""Reads from the device in a step: each makes the host wait until the accelerator has finished its queue."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ramify.batches.loader import StepBatches
from ramify.bench.measure import make_trainer
from ramify.parallel.layout import Layout
from ramify.store.store import Store
from ramify.train.loop import Trainer

from .conftest import MakeRecipe

READING = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique", "equal", "bincount")
"""Operations whose result, or the size of it, must be known to the host."""

METHODS = ("tolist", "item", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__")
"""Methods that read without such an operation where tensors lie in the host's own memory, as they do here."""


class _Reads(TorchDispatchMode):
    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        masked = name == "index" and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        if masked or name.startswith(READING):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Counts reads by operation."""
    found: Counter[str] = Counter()

    def counted(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Tensor, *args: Any, **kwargs: Any) -> Any:
            found[name] += 1
            return method(self, *args, **kwargs)

        return call

    with monkeypatch.context() as patch, _Reads(found):
        for name in METHODS:
            patch.setattr(Tensor, name, counted(name, getattr(Tensor, name)))
        yield found


def test_reads_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(3)
    with reads(monkeypatch) as found:
        _ = x + 1
        assert not found
        _ = x[x > 0]
        _ = bool(x.sum() > 0)
        _ = x.tolist()
    assert found["index"] == 1
    assert found["__bool__"] >= 1
    assert found["tolist"] == 1


@pytest.fixture(params=["direct", "conservative"])
def kind(request: pytest.FixtureRequest) -> str:
    """Of the forces."""
    found: str = request.param
    return found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_asks_for_nothing(
    small: MakeRecipe,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    precision: str,
) -> None:
    """Passes, sums over ranks, clipping and update. The next step reads the results once, from the copy that was
    transferred to the host in the meantime."""
    trainer, works = _trainer_and_works(small, torch.device("cpu"), kind, precision)
    trainer.step(works[0])
    trainer.finish_step()
    with reads(monkeypatch) as found:
        trainer.step(works[1])
    assert not found
    with reads(monkeypatch) as found:
        trainer.step(works[2])
    assert found == {"tolist": 1}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_an_accelerator_is_never_waited_for(small: MakeRecipe, kind: str) -> None:
    trainer, works = _trainer_and_works(small, torch.device("cuda"), kind, "bf16")
    trainer.step(works[0])
    torch.cuda.set_sync_debug_mode("error")
    try:
        for work in works[1:]:
            trainer.step(work)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    trainer.finish_step()


def _trainer_and_works(
    small: MakeRecipe, device: torch.device, kind: str, precision: str
) -> tuple[Trainer, list[StepBatches]]:
    recipe = small("qm7x", "mptrj", model__force_head__kind=kind, train__precision=precision, optimizer__clip=1e-3)
    stores = {name: Store.open(Path(recipe.stores) / name) for name in recipe.datasets}
    trainer = make_trainer(recipe, stores, Layout.alone(list(recipe.datasets_of_branches()), device))
    with trainer.loader() as loader:
        return trainer, [next(loader) for _ in range(3)]
