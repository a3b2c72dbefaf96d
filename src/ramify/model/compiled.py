"""The passes of a training step as compiled programs (`torch.compile`), each made once for all sizes of batches.

What is compiled is what takes the time. With direct forces that is the encoder; heads read its segments as always. With
conservative forces it is all from positions to energies and their derivatives, since a compiled program can be
differentiated only once more: the heads are in it, and take tiles of atoms, each with the weights of its own branch, so
that the program does not depend on which branches a batch has, nor on how many atoms of each.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch._dynamo import mark_dynamic
from torch._dynamo.callback import CallbackArgs, callback_handler
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

from ramify.batches.padding import PaddedBatch
from ramify.errors import RamifyError
from ramify.model.branch import EnergyHead, StackedHeads
from ramify.model.graph import build_graph
from ramify.model.multibranch import BatchPredictions, MultiBranch, structure_energies, symmetric

CompileMode = Literal["default", "cuda-graphs"]

BACKEND = "inductor"
"""What programs are made by. Tests put others here, which need no compiler of C++."""

MOST = 4
"""Programs of one model. One is enough; a second one is made where what is trained changes, such as stress."""

CUDA_GRAPHS: dict[str, Any] = {
    "triton.cudagraphs": True,
    "triton.cudagraph_or_error": True,  # else what cannot be recorded would run without, and not say so
    "triton.cudagraph_dynamic_shape_warn_limit": None,  # sizes are few on purpose, see `rounded_up`
}


class CompiledModel:
    """Predicts padded batches as `MultiBranch.forward` does all others, for training.

    Args:
        model: whose weights are used, and get the gradients.
        mode: `cuda-graphs` also records what a program does on the GPU, once for each size of batches.
        compiling: entered while a program is made, which takes minutes: it is no hang.

    Attributes:
        program: what is compiled.

    Raises:
        RamifyError: the device has no compiler, or no graphs.
    """

    def __init__(
        self,
        model: MultiBranch,
        mode: CompileMode,
        compiling: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        device = next(model.parameters()).device
        _require_compiler(device, mode)
        self._model, self._graphs, self._compiling = model, mode == "cuda-graphs", compiling
        self._further = any(model.branch(name).labels for name in model.branches)
        kinds = {model.branch(name).forces for name in model.branches}
        self.conservative = "conservative" in kinds
        assert not (self.conservative and "direct" in kinds), "a recipe knows one kind of forces"
        how: dict[str, Any] = {
            "fullgraph": True,  # all of it, or an error
            "backend": BACKEND,
            "options": compiler_options(device, graphs=self._graphs),
            "recompile_limit": MOST,
            "isolate_recompiles": True,  # other models of the process do not count
        }
        self.program: Callable[..., Any] = torch.compile(
            self._differentiated if self.conservative else self._encoded, **how
        )
        if self._graphs:
            for parameter in model.parameters():
                if parameter.requires_grad:
                    # what a recorded backward pass leaves is written over by the next one
                    parameter.register_hook(torch.clone)

    def __call__(self, batch: PaddedBatch, *, stress: bool = False) -> BatchPredictions:
        """As `MultiBranch.forward`; rows that belong to no segment hold nothing of use.

        Raises:
            RamifyError: the program cannot be compiled.
        """
        _mark_sizes(batch)
        if self._graphs:
            torch.compiler.cudagraph_mark_step_begin()
        model = self._model
        with _understandable(), _while_compiling(self._compiling):
            if self.conservative:
                heads = self._stacked({segment.name for segment in batch.segments})
                total, minus_forces, virial, scalars = self.program(batch, heads, stress)
                return model.predictions(batch, total, scalars, None, minus_forces, virial, stress=stress)
            scalars, vectors = self.program(batch)
        total = structure_energies(model.heads(batch), scalars, batch)
        return model.predictions(batch, total, scalars, vectors, None, None, stress=stress)

    def _encoded(self, batch: PaddedBatch) -> Any:
        """Scalars and vectors of all atoms. Compiled."""
        return self._model.encoder.forward(build_graph(batch, self._model.cutoff, batch.positions))

    def _differentiated(
        self, batch: PaddedBatch, heads: StackedHeads, stress: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Energies of structures (S,), dE/dx (N, 3), dE/dε (S, 3, 3), and scalars of atoms where there are heads of
        further labels to read them. Compiled."""
        # not by calling the encoder: hooks of a module are none of the program's
        encode, read = self._model.encoder.forward, partial(heads, tile_branch=batch.tile_branch)

        def energies(positions: Tensor, strain: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            strained = symmetric(strain) if stress else None
            graph = build_graph(batch, self._model.cutoff, positions, strained, differentiated=True)
            scalars, _ = encode(graph)
            total = structure_energies(read, scalars, batch)
            return total.sum(), (total, scalars) if self._further else (total,)

        strain = batch.positions.new_zeros(len(batch.n_atoms), 3, 3)
        grad = torch.func.grad(energies, argnums=(0, 1), has_aux=True)
        (minus_forces, virial), (total, *scalars) = grad(batch.positions, strain)
        return total, minus_forces, virial, scalars[0] if self._further else None

    def _stacked(self, present: set[str]) -> StackedHeads:
        """The heads of all branches. Those that a batch has no structures of get no gradient, not even zeros."""
        branches = {name: self._model.branch(name) for name in self._model.branches}
        return EnergyHead.stacked(
            [branch.energy for branch in branches.values()],
            [branch.energy_scale for branch in branches.values()],
            [name in present for name in branches],
        )


def _mark_sizes(batch: PaddedBatch) -> None:
    """Tells the compiler which sizes differ from batch to batch: rows of all columns."""
    for name, tensor in batch.tensors().items():
        if name != "tile_branch" or len(tensor):
            mark_dynamic(tensor, 0)


def compiler_options(device: torch.device, *, graphs: bool) -> dict[str, Any] | None:
    """Options of inductor.

    The width of the processor's vectors is stated, so that it is part of the key of inductor's cache on disk. By
    default it is not: PyTorch 2.13 then runs a program generated for AVX2 on a processor with AVX-512 that shares the
    cache, with wrong results and no error.
    """
    if BACKEND != "inductor":
        return None
    if graphs:
        return CUDA_GRAPHS
    if device.type != "cpu":
        return None
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    return {"cpp.simdlen": pick_vec_isa().bit_width() or 1}  # 1: no vectors


def _require_compiler(device: torch.device, mode: str) -> None:
    if mode == "cuda-graphs" and device.type != "cuda":
        raise RamifyError(
            f"train.compile: cuda-graphs, but the model lives on {device.type}",
            fix="set train.compile: default, or train.device: cuda on a machine with an NVIDIA GPU",
        )
    if BACKEND != "inductor":
        return
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler as error:
            raise RamifyError(
                "train.compile: programs for the CPU are made by a C++ compiler, and there is none",
                fix="install g++ or clang++ (the variable CXX may name it), or set train.compile: none",
            ) from error
    else:
        from torch.utils._triton import has_triton

        if not has_triton():
            raise RamifyError(
                f"train.compile: programs for {device.type} are made by Triton, which is missing or does not know "
                "this device",
                fix="install the package triton in the version that PyTorch asks for, or set train.compile: none",
            )


@contextmanager
def _while_compiling(enter: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Inside, what `enter` gives is entered whenever a program is made, and left when it is there."""
    entered = ExitStack()

    def begin(_: CallbackArgs) -> None:
        entered.enter_context(enter())

    def end(_: CallbackArgs) -> None:
        entered.close()

    callback_handler.register_start_callback(begin)
    callback_handler.register_end_callback(end)
    try:
        yield
    finally:
        callback_handler.remove_start_callback(begin)
        callback_handler.remove_end_callback(end)
        entered.close()


@contextmanager
def _understandable() -> Iterator[None]:
    """Around a call that may compile: sizes that happen to be equal are not taken to be so for ever, and what goes
    wrong is said in words."""
    from torch._inductor.exc import InductorError

    shapes: Any = torch.fx.experimental._config
    try:
        with shapes.patch(use_duck_shape=False):
            yield
    except (TorchDynamoException, FailOnRecompileLimitHit, InductorError) as error:
        reason = " ".join([line.strip() for line in str(error).splitlines() if line.strip()][:2])
        raise RamifyError(
            f"train.compile: the model cannot be compiled here: {type(error).__name__}: {reason}",
            fix="set train.compile: none, or look for the cause with TORCH_LOGS=dynamo,inductor in the environment",
        ) from error
