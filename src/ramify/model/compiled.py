"""The passes of a training step as compiled programs (`torch.compile`), each made once for all sizes of batches.

What is compiled is what takes the time. With direct forces that is the encoder; heads read its segments as always. With
conservative forces it is all from positions to energies and their derivatives, since a compiled program can be
differentiated only once more: the heads are in it, and take tiles of atoms, each with the weights of its own branch, so
that the program does not depend on which branches a batch has, nor on how many atoms of each.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._dynamo import mark_dynamic
from torch._dynamo.callback import CallbackArgs, callback_handler
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

from ramify.batches.batch import Segment
from ramify.batches.padding import PaddedBatch
from ramify.errors import RamifyError
from ramify.model.graph import build_graph
from ramify.model.heads import EnergyHead
from ramify.model.lora import weight_of
from ramify.model.multibranch import BatchPredictions, MultiBranch

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


@dataclass(frozen=True, slots=True)
class StackedHeads:
    """The energy heads of B branches that are of one form.

    Attributes:
        weights, biases: of the layers, (B, outputs, inputs) and (B, outputs).
        linear: of the path beside them, (B, 1, F).
        scale: (B,) eV.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    linear: Tensor
    scale: Tensor

    def __call__(self, scalars: Tensor, tile_branch: Tensor) -> Tensor:
        """Scalars (N, F) in tiles of the branches (K,) -> energies (N,), eV; with one branch no tiles are needed."""
        if len(self.scale) == 1:
            x = scalars
            for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
                x = nn.functional.linear(nn.functional.silu(x) if index else x, weight[0], bias[0])
            energy = x + nn.functional.linear(scalars, self.linear[0])
            return energy.squeeze(1).to(self.scale.dtype) * self.scale
        tiles = scalars.view(len(tile_branch), -1, scalars.shape[1])
        x = tiles
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            of_tile, shift = weight.index_select(0, tile_branch), bias.index_select(0, tile_branch)
            x = torch.baddbmm(shift[:, None], nn.functional.silu(x) if index else x, of_tile.transpose(1, 2))
        energy = x + tiles @ self.linear.index_select(0, tile_branch).transpose(1, 2)
        return (energy.squeeze(2).to(self.scale.dtype) * self.scale.index_select(0, tile_branch)[:, None]).view(-1)


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
        kinds = {model.branch(name).forces for name in model.branches}
        self.conservative = "conservative" in kinds
        assert not (self.conservative and "direct" in kinds), "a recipe knows one kind of forces"
        how: dict[str, Any] = {
            "fullgraph": True,  # all of it, or an error
            "backend": BACKEND,
            "options": CUDA_GRAPHS if self._graphs else None,
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
        with _understandable(), _while_compiling(self._compiling):
            if self.conservative:
                heads = self._stacked({segment.name for segment in batch.segments})
                total, minus_forces, virial = self.program(batch, heads, stress)
                return BatchPredictions(
                    energy=total / batch.n_atoms,
                    forces=self._conservative_forces(batch.segments, minus_forces),
                    stress=None if not stress else self._model.stress_of(batch, virial),
                )
            scalars, vectors = self.program(batch)
        energies = [self._model.atom_energies(s, scalars) for s in batch.segments]
        forces = [self._model.forces_of(s, scalars, vectors, None) for s in batch.segments]
        atom_energy, all_forces = (_with_gaps(batch.segments, rows, len(batch.numbers)) for rows in (energies, forces))
        total = atom_energy.new_zeros(len(batch.n_atoms)).index_add(0, batch.structure, atom_energy)
        none = self._model.stress_of(batch, None) if stress else None
        return BatchPredictions(energy=total / batch.n_atoms, forces=all_forces, stress=none)

    def _encoded(self, batch: PaddedBatch) -> Any:
        """Scalars and vectors of all atoms. Compiled."""
        return self._model.encoder.forward(build_graph(batch, self._model.cutoff, batch.positions))

    def _differentiated(self, batch: PaddedBatch, heads: StackedHeads, stress: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Energies of structures (S,), dE/dx (N, 3) and dE/dε (S, 3, 3). Compiled."""

        def energies(positions: Tensor, strain: Tensor) -> tuple[Tensor, Tensor]:
            symmetric = 0.5 * (strain + strain.transpose(1, 2)) if stress else None
            graph = build_graph(batch, self._model.cutoff, positions, symmetric, differentiated=True)
            # not by calling it: hooks of a module are none of the program's
            scalars, _ = self._model.encoder.forward(graph)
            atom_energy = heads(scalars, batch.tile_branch)
            total = atom_energy.new_zeros(batch.n_atoms.shape).index_add(0, batch.structure, atom_energy)
            return total.sum(), total

        strain = batch.positions.new_zeros(len(batch.n_atoms), 3, 3)
        (minus_forces, virial), total = torch.func.grad(energies, argnums=(0, 1), has_aux=True)(batch.positions, strain)
        return total, minus_forces, virial

    def _stacked(self, present: set[str]) -> StackedHeads:
        """The heads of all branches. Those that a batch has no structures of get no gradient, not even zeros."""
        branches = [(self._model.branch(name), name in present) for name in self._model.branches]
        layers = [(_linears(branch.energy), wanted) for branch, wanted in branches]

        def stacked(tensors: Sequence[tuple[Tensor, bool]]) -> Tensor:
            return torch.stack([tensor if wanted else tensor.detach() for tensor, wanted in tensors])

        depth = range(len(layers[0][0]))
        return StackedHeads(
            weights=tuple(stacked([(weight_of(of[k]), wanted) for of, wanted in layers]) for k in depth),
            biases=tuple(stacked([(of[k].bias, wanted) for of, wanted in layers]) for k in depth),
            linear=stacked([(weight_of(branch.energy.linear), wanted) for branch, wanted in branches]),
            scale=torch.stack([branch.energy_scale for branch, _ in branches]),
        )

    def _conservative_forces(self, segments: Sequence[Segment], minus_forces: Tensor) -> Tensor:
        forces = [
            -minus_forces[s.atoms]
            if self._model.branch(s.name).forces is not None
            else torch.full_like(minus_forces[s.atoms], torch.nan)
            for s in segments
        ]
        return _with_gaps(segments, forces, len(minus_forces))


def _linears(head: EnergyHead) -> list[nn.Linear]:
    return [layer for layer in head.layers if isinstance(layer, nn.Linear)]


def _with_gaps(segments: Sequence[Segment], rows: Sequence[Tensor], size: int) -> Tensor:
    """The rows of all segments in their places, zeros between and behind them."""
    found, end = [], 0
    for segment, own in zip(segments, rows, strict=True):
        found += [own.new_zeros(segment.atoms.start - end, *own.shape[1:]), own]
        end = segment.atoms.stop
    return torch.cat([*found, found[-1].new_zeros(size - end, *found[-1].shape[1:])])


def _mark_sizes(batch: PaddedBatch) -> None:
    """Tells the compiler which sizes differ from batch to batch: rows of all columns."""
    for name, tensor in batch.tensors().items():
        if name != "tile_branch" or len(tensor):
            mark_dynamic(tensor, 0)


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
