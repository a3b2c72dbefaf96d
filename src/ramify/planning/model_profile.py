"""What a model costs, from the model itself: parameters, operations and memory of a step, without data or weights.

The model that a recipe builds is made of tensors that have a shape and no content, and takes a training step on batches
of such tensors. Parameters are counted on it; matrix products by PyTorch's counter; memory by following which tensors
are alive. So no equation here can come to disagree with the model, and a new encoder needs none. For EGNN of width F, C
vector channels, R radial functions and L layers the matrix products of a forward pass come to, per layer,
    per atom  2 F² + 9 C² + (2F + C) F + F (F + C)
    per edge  2 R F + F² [message_layers = 2] + 2 C F [not in the first layer] + F C [first] or 2 F C [others]
multiplications with an addition each; a head of l layers of width W on top takes F W + (l - 1) W² + W O per atom, with
O = 1 (energy, and F more for its linear path) or C (direct forces, and 3 C more to combine vectors). A training step
takes three times as many, with conservative forces about six.
"""

import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from ramify.batches.batch import Batch, Segment
from ramify.model.build import LabelSpread, build_model
from ramify.model.heads import ForceKind
from ramify.model.kernels.counting import counting
from ramify.model.multibranch import MultiBranch
from ramify.recipe import ModelOptions, Recipe

ATOMS, EDGES = 256, 4096
"""Size of the batches that are tried: both are doubled in turn, and the differences give the cost of one."""


@dataclass(frozen=True, slots=True)
class StepProfile:
    """What an atom and an edge add to a training step of one branch, the encoder included.

    Attributes:
        operations_atom, operations_edge: floating-point operations of matrix products, forward and backward (a
            multiplication and an addition count as two).
        bytes_atom, bytes_edge: memory beyond weights, gradients and optimizer state when it is fullest.
        bytes_step: the same of a step whatever its size: weights cast to bfloat16, gradients on their way.
    """

    operations_atom: float
    operations_edge: float
    bytes_atom: float
    bytes_edge: float
    bytes_step: float

    def operations(self, atoms: float, edges: float) -> float:
        """Of a step on so many."""
        return atoms * self.operations_atom + edges * self.operations_edge

    def bytes(self, atoms: float, edges: float) -> float:
        """Of a step on so many, `bytes_step` not included."""
        return atoms * self.bytes_atom + edges * self.bytes_edge


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """A model's size.

    Attributes:
        encoder: parameters of the encoder, the paper's P_s.
        branches: parameters of each branch, the paper's P_h.
        itemsize: bytes of a weight; gradients and AdamW's averages are kept in the same precision.
        steps: by branch.
        encoder_shapes: of the encoder's parameters.
    """

    encoder: int
    branches: dict[str, int]
    itemsize: int
    steps: dict[str, StepProfile]
    encoder_shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of_data(cls, content: Mapping[str, Any]) -> Self:
        """The same from plain data, as `dataclasses.asdict` and JSON give them."""
        steps = {name: StepProfile(**step) for name, step in content["steps"].items()}
        shapes = tuple(tuple(shape) for shape in content["encoder_shapes"])
        return cls(content["encoder"], dict(content["branches"]), content["itemsize"], steps, shapes)

    def encoder_piece(self, cuts: int) -> int:
        """Parameters of one of `cuts` pieces of the encoder: FSDP2 cuts each along its first dimension, in pieces of
        one size, the last ones filled up."""
        return sum(math.ceil(first / cuts) * math.prod(others) for first, *others in self.encoder_shapes)


_TRIED: dict[tuple[ModelOptions, str, str, int, ForceKind | None], StepProfile] = {}
"""Kept while the program runs: trying a step takes a second or two, and the same model is asked about again."""


def profile_model(recipe: Recipe, spreads: Mapping[str, LabelSpread]) -> ModelProfile:
    """The cost of the model that `build_model` makes of the same recipe and spreads."""
    with torch.device("meta"):
        model = build_model(recipe, spreads)
    steps = {}
    for name in model.branches:
        branch = model.branch(name)
        # all that a step depends on: all else is the same for every branch
        threads = recipe.train.threads or 1
        key = (recipe.model, recipe.train.precision, recipe.train.checkpointing, threads, branch.forces)
        if key not in _TRIED:
            alone = MultiBranch(model.encoder, {name: branch}, model.cutoff)  # the others take no part in it
            with _threads(threads):
                _TRIED[key] = _step_cost(alone, name, recipe.train.precision == "bf16")
        steps[name] = _TRIED[key]
    return ModelProfile(
        encoder=_size(model.encoder),
        branches={name: _size(model.branch(name)) for name in model.branches},
        itemsize=next(model.parameters()).element_size(),
        steps=steps,
        encoder_shapes=tuple(tuple(p.shape) for p in model.encoder.parameters()),
    )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Inside, a step works on as many edges at a time as with so many threads: a plan is the same on every machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _size(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _step_cost(model: MultiBranch, branch: str, bf16: bool) -> StepProfile:
    start = _try(model, branch, ATOMS, EDGES, bf16)
    twice_atoms, twice_edges = _try(model, branch, 2 * ATOMS, EDGES, bf16), _try(model, branch, ATOMS, 2 * EDGES, bf16)
    bytes_atom, bytes_edge = (twice_atoms[1] - start[1]) / ATOMS, (twice_edges[1] - start[1]) / EDGES
    return StepProfile(
        operations_atom=(twice_atoms[0] - start[0]) / ATOMS,
        operations_edge=(twice_edges[0] - start[0]) / EDGES,
        bytes_atom=bytes_atom,
        bytes_edge=bytes_edge,
        bytes_step=max(0.0, start[1] - ATOMS * bytes_atom - EDGES * bytes_edge),
    )


def _try(model: MultiBranch, branch: str, atoms: int, edges: int, bf16: bool) -> tuple[float, float]:
    """Operations and largest memory (bytes) of one training step of `branch`.

    Operations are those of the model's cheapest form (`ramify.model.kernels.counting`), memory that of the form
    that runs.
    """
    with FakeTensorMode(), FlopCounterMode(display=False) as counter, counting():
        _step(model, branch, atoms, edges, bf16, lambda there: nullcontext())
    with FakeTensorMode():
        memory = _step(model, branch, atoms, edges, bf16, _Memory)
    return counter.get_total_flops(), memory.peak


_Follower = TypeVar("_Follower", bound=AbstractContextManager[Any])


def _step(
    model: MultiBranch,
    branch: str,
    atoms: int,
    edges: int,
    bf16: bool,
    follow: Callable[[Sequence[Tensor | None]], _Follower],
) -> _Follower:
    """Takes the step inside of what `follow` makes of the tensors that are there before."""
    dtype = next(model.parameters()).dtype
    weights = {
        f"model.{name}": torch.empty(p.shape, dtype=p.dtype, requires_grad=True) for name, p in model.named_parameters()
    }
    buffers = {f"model.{name}": torch.empty(b.shape, dtype=b.dtype) for name, b in model.named_buffers()}
    for weight in weights.values():
        weight.grad = torch.empty_like(weight)
    batch = _empty_batch(branch, atoms, edges, dtype)
    follower = follow([*weights.values(), *(weight.grad for weight in weights.values()), *buffers.values()])
    with follower:
        torch.func.functional_call(_BothPasses(model.train(), bf16), weights | buffers, (batch,))
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


def _empty_batch(branch: str, atoms: int, edges: int, dtype: torch.dtype) -> Batch:
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
