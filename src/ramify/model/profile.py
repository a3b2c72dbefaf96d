"""Memory and operations of a pass, measured on tensors that have a shape and no content.

The model that a recipe builds is made of such tensors and takes a training step, or predicts, on batches of them.
Matrix products are counted by PyTorch's counter, memory by following which tensors are alive. So no equation here can
come to disagree with the model, and a new encoder needs none.
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

ATOMS, EDGES = 256, 4096
"""Size of the batches that are tried: atoms, edges and slots are doubled in turn, and the differences give the cost of
one."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a pass costs: of itself, for each atom, for each edge, and for each slot of a table of neighbours, of which
    there are as many for every atom as the atom with most neighbours needs."""

    fixed: float
    atom: float
    edge: float
    slot: float

    def of(self, atoms: float, edges: float, slots: float) -> float:
        """Of a batch; `fixed` is not included."""
        return atoms * self.atom + edges * self.edge + slots * self.slot

    @classmethod
    def fitted(cls, measure: Callable[[int, int, int], float]) -> "Cost":
        """From what `measure` finds for batches of (atoms, edges, slots of an atom)."""
        n = EDGES // ATOMS
        start, atoms = measure(ATOMS, EDGES, n), measure(2 * ATOMS, EDGES, n)
        edges, slots = measure(ATOMS, 2 * EDGES, n), measure(ATOMS, EDGES, 2 * n)
        slot, edge = (slots - start) / (ATOMS * n), (edges - start) / EDGES
        atom = (atoms - start) / ATOMS - n * slot
        return cls(max(0.0, start - ATOMS * (atom + n * slot) - EDGES * edge), atom, edge, slot)


def training_cost(model: MultiBranch, branch: str, *, bf16: bool, threads: int) -> tuple[Cost, Cost]:
    """Operations of matrix products, and memory in bytes when it is fullest, of a forward and backward pass.

    Operations are those of the model's cheapest form (`ramify.model.kernels.counting`), memory that of the form
    that runs, beyond weights and gradients.

    Args:
        model: a branch less is a branch less to try; `branch` must be there.
        branch: whose structures the batches hold.
        bf16: products in bfloat16.
        threads: of the CPU, on which the number of edges depends that a pass works on at a time.

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

    with _threads(threads), _words(model):
        return Cost.fitted(operations), Cost.fitted(memory)


def prediction_memory(model: MultiBranch, branch: str, *, stress: bool) -> Cost:
    """Bytes beyond weights when memory is fullest, of a prediction.

    Args:
        model: as for `training_cost`.
        branch: as for `training_cost`.
        stress: whether it is predicted too.

    Raises:
        RamifyError: the encoder reads values of tensors.
    """

    def memory(atoms: int, edges: int, slots: int) -> float:
        with FakeTensorMode(), torch.no_grad():
            return _pass(
                model, _Prediction(model.eval(), stress), branch, (atoms, edges, slots), _Memory, trained=False
            ).peak

    with _words(model):
        cost = Cost.fitted(memory)
        # where there are many edges, memory is fullest while atoms wait; far apart, atoms by themselves take more
        apart = (memory(2 * ATOMS, 1, 1) - memory(ATOMS, 1, 1)) / ATOMS
    return replace(cost, atom=max(cost.atom, apart))


@contextmanager
def _words(model: MultiBranch) -> Iterator[None]:
    try:
        yield
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        name = type(model.encoder).__name__
        raise RamifyError(
            f"the encoder {name} reads values of tensors ({error}), so its memory and its work cannot be known before "
            "it runs, and it cannot be compiled",
            fix="write it with operations whose shapes depend on shapes alone; see docs/encoders.md",
        ) from error


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Inside, a step works on as many edges at a time as with so many threads: a plan is the same on every machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_Follower = TypeVar("_Follower", bound=AbstractContextManager[Any])


def _pass(
    model: MultiBranch,
    runner: torch.nn.Module,
    branch: str,
    size: tuple[int, int, int],
    follow: Callable[[Sequence[Tensor | None]], _Follower],
    *,
    trained: bool = True,
) -> _Follower:
    """Runs on a batch of `size` inside of what `follow` makes of the tensors that are there before."""
    weights = {
        f"model.{name}": torch.empty(p.shape, dtype=p.dtype, requires_grad=trained)
        for name, p in model.named_parameters()
    }
    buffers = {f"model.{name}": torch.empty(b.shape, dtype=b.dtype) for name, b in model.named_buffers()}
    if trained:
        for weight in weights.values():
            weight.grad = torch.empty_like(weight)
    batch = _empty_batch(branch, *size, next(model.parameters()).dtype)
    follower = follow([*weights.values(), *(weight.grad for weight in weights.values()), *buffers.values()])
    with follower:
        torch.func.functional_call(runner, weights | buffers, (batch,))
    return follower


class _BothPasses(torch.nn.Module):
    """A forward pass and a backward pass as one call: what the latter calculates again (`train.checkpointing`) needs
    the same weights."""

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


def _empty_batch(branch: str, atoms: int, edges: int, slots: int, dtype: torch.dtype) -> Batch:
    def real(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype)

    def index(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int64)

    all_of_it = (Segment(branch, slice(0, 1), slice(0, atoms)),)
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
        segments=all_of_it,
        datasets=all_of_it,
    )


class _Memory(TorchDispatchMode):
    """Follows how many bytes are alive beside those of the tensors that were `there`; `peak` is the most there were."""

    def __init__(self, there: Sequence[Tensor | None]) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in there if tensor is not None}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._follow(tensor.untyped_storage())
        return made

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:  # views share their storage
            self._known.add(key)
            weakref.finalize(storage, self._forget, key, size)
            self._now += size
            self.peak = max(self.peak, self._now)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._now -= size
