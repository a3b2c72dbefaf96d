"""Memory and operations of a pass, measured on fake tensors, which have a shape and no content.

The model of a recipe runs a training step, or a prediction, on batches of fake tensors. PyTorch's counter counts matrix
products, and memory follows from the set of tensors that are alive. So there are no formulas that could disagree with
the model, and a new encoder needs none.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from ramify.batches.batch import Batch, Segment
from ramify.errors import RamifyError
from ramify.model.kernels.counting import counting
from ramify.model.multibranch import MultiBranch
from ramify.model.weights import call_with_weights, weights_by_name

ATOMS, EDGES = 256, 4096
"""Size of the measured batches: atoms, edges and slots are doubled, and the differences give the cost of each of
them."""

SMALLEST_SHARE = 0.01
"""Smallest share of pairs of edges in the cost of the first batch. Below, they are not there: the peak of memory moves
from one operation to another as batches grow, which looks like a small cost of pairs."""


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a pass: a fixed part, and parts per atom, per edge, per slot of a neighbour table, which has as many
    slots for every atom as the largest number of neighbours, and per pair of an edge and a slot (triplets of atoms)."""

    fixed: float
    atom: float
    edge: float
    slot: float
    pair: float = 0.0

    def of(self, atoms: float, edges: float, slots: float) -> float:
        """The cost of a batch, without `fixed`."""
        pairs = edges * slots / atoms if atoms else 0.0
        return atoms * self.atom + edges * self.edge + slots * self.slot + pairs * self.pair

    @classmethod
    def fitted(cls, measure: Callable[[int, int, int], float]) -> "Cost":
        """Fits the costs to the results of `measure` for batches of (atoms, edges, slots of an atom)."""
        n = EDGES // ATOMS
        start, atoms = measure(ATOMS, EDGES, n), measure(2 * ATOMS, EDGES, n)
        edges, slots = measure(ATOMS, 2 * EDGES, n), measure(ATOMS, EDGES, 2 * n)
        pairs = measure(ATOMS, 2 * EDGES, 2 * n) - edges - slots + start
        pairs = pairs if pairs > SMALLEST_SHARE * start else 0.0
        slot, edge = (slots - start - pairs) / (ATOMS * n), (edges - start - pairs) / EDGES
        atom = (atoms - start) / ATOMS - n * slot
        fixed = start - ATOMS * (atom + n * slot) - EDGES * edge - pairs
        return cls(max(0.0, fixed), atom, edge, slot, pairs / (EDGES * n))


def training_cost(model: MultiBranch, branch: str, *, bf16: bool, threads: int) -> tuple[Cost, Cost]:
    """Operations of matrix products, and peak memory in bytes, of a forward and backward pass.

    Operations are those of the cheapest form of the model (`ramify.model.kernels.counting`); memory is that of the form
    that runs, without weights and gradients.

    Args:
        model: must contain `branch`; other branches only cost time.
        branch: of the structures in the batches.
        bf16: products in bfloat16.
        threads: of the CPU; they determine the number of edges that are processed at a time.

    Raises:
        RamifyError: the encoder reads values of tensors.
    """

    def operations(atoms: int, edges: int, slots: int) -> float:
        with FakeTensorMode(), FlopCounterMode(display=False) as counter, counting():
            _pass(model, _BothPasses(model.train(), bf16), branch, (atoms, edges, slots), lambda there: nullcontext())
        return counter.get_total_flops()

    def memory(atoms: int, edges: int, slots: int) -> float:
        with FakeTensorMode():
            return _pass(model, _BothPasses(model.train(), bf16), branch, (atoms, edges, slots), _Memory).peak

    with _threads(threads), _encoder_errors(model):
        return Cost.fitted(operations), Cost.fitted(memory)


def prediction_memory(model: MultiBranch, branch: str, *, stress: bool) -> Cost:
    """Peak memory in bytes of a prediction, without weights.

    Args:
        model: as for `training_cost`.
        branch: as for `training_cost`.
        stress: whether stress is predicted.

    Raises:
        RamifyError: the encoder reads values of tensors.
    """

    def memory(atoms: int, edges: int, slots: int) -> float:
        with FakeTensorMode(), torch.no_grad():
            return _pass(
                model, _Prediction(model.eval(), stress), branch, (atoms, edges, slots), _Memory, trained=False
            ).peak

    with _encoder_errors(model):
        cost = Cost.fitted(memory)
        # the peak with many edges underestimates the memory per atom of structures with few edges
        isolated = (memory(2 * ATOMS, 1, 1) - memory(ATOMS, 1, 1)) / ATOMS
    return replace(cost, atom=max(cost.atom, isolated))


@contextmanager
def _encoder_errors(model: MultiBranch) -> Iterator[None]:
    """Converts errors of fake tensors to an explanation for the author of the encoder."""
    try:
        yield
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        name = type(model.encoder).__name__
        raise RamifyError(
            f"the encoder {name} reads values of tensors ({error}), so its memory and operations cannot be determined "
            "before it runs, and it cannot be compiled",
            fix="use only operations whose output shapes depend on input shapes; see docs/encoders.md",
        ) from error


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Inside, a step processes edges in blocks as with this number of threads: plans are the same on every machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_Tracker = TypeVar("_Tracker", bound=AbstractContextManager[Any])


def _pass(
    model: MultiBranch,
    runner: torch.nn.Module,
    branch: str,
    size: tuple[int, int, int],
    make_tracker: Callable[[Sequence[Tensor | None]], _Tracker],
    *,
    trained: bool = True,
) -> _Tracker:
    """Runs a batch of `size` (atoms, edges, slots) inside of a tracker, made for the tensors that exist before."""
    real = weights_by_name(runner)
    fake = {
        id(tensor): torch.empty(
            tensor.shape, dtype=tensor.dtype, requires_grad=trained and isinstance(tensor, torch.nn.Parameter)
        )
        for tensor in real.values()
    }
    for tensor in fake.values():
        if tensor.requires_grad:
            tensor.grad = torch.empty_like(tensor)
    conditions = 0 if model.encoder.conditions is None else len(model.encoder.conditions.names)
    batch = _empty_batch(branch, *size, next(model.parameters()).dtype, conditions)
    tracker = make_tracker([*fake.values(), *(tensor.grad for tensor in fake.values())])
    with tracker:
        call_with_weights(runner, {name: fake[id(tensor)] for name, tensor in real.items()}, batch)
    return tracker


class _BothPasses(torch.nn.Module):
    """Forward and backward pass in one call: the recomputation in the backward pass (`train.checkpointing`) needs the
    same weights."""

    def __init__(self, model: MultiBranch, bf16: bool) -> None:
        super().__init__()
        self.model, self.bf16 = model, bf16

    def forward(self, batch: Batch) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            found = self.model(batch)
        (found.energy.sum() + found.forces.sum()).backward()


class _Prediction(torch.nn.Module):
    def __init__(self, model: MultiBranch, stress: bool) -> None:
        super().__init__()
        self.model, self.stress = model, stress

    def forward(self, batch: Batch) -> None:
        self.model(batch, stress=self.stress)


def _empty_batch(branch: str, atoms: int, edges: int, slots: int, dtype: torch.dtype, conditions: int) -> Batch:
    def real(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype)

    def index(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int64)

    segments = (Segment(branch, slice(0, 1), slice(0, atoms)),)
    return Batch(
        numbers=index(atoms),
        positions=real(atoms, 3),
        structure=index(atoms),
        n_atoms=real(1),
        receiver=index(edges),
        sender=index(edges),
        shift=real(edges, 3),
        slots=index(slots),
        atom_cutoff=real(atoms),
        cutoff_receiver=index(0),
        cutoff_sender=index(0),
        cutoff_shift=real(0, 3),
        cutoff_gain=real(0),
        volume=real(1),
        energy=real(1),
        forces=real(atoms, 3),
        stress=real(1, 3, 3),
        segments=segments,
        datasets=segments,
        conditions=real(1, conditions) if conditions else None,
    )


class _Memory(TorchDispatchMode):
    """Tracks the number of bytes that are alive, without those of `existing` tensors; `peak` is the maximum."""

    def __init__(self, existing: Sequence[Tensor | None]) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in existing if tensor is not None}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        results = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, Tensor):
                self._track(tensor.untyped_storage())
        return results

    def _track(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:  # views share their storage
            self._known.add(key)
            weakref.finalize(storage, self._forget, key, size)
            self._now += size
            self.peak = max(self.peak, self._now)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._now -= size
