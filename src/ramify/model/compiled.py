"""Compiled passes of a training step (`torch.compile`), one program for all sizes of batches.

With direct forces only the encoder is compiled, which dominates the time; the heads read their segments as usual. With
conservative forces the program includes everything from positions to energies and their derivatives, since a compiled
program can be differentiated only once more. The heads then work on tiles of atoms, each with the weights of its
branch, so that the program depends neither on the branches of a batch nor on their numbers of atoms.
"""

import hashlib
import platform
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._dynamo import mark_dynamic
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

import ramify
from ramify.batches.padding import PaddedBatch
from ramify.errors import RamifyError
from ramify.model.branch import EnergyHead, StackedHeads
from ramify.model.graph import build_graph
from ramify.model.multibranch import BatchPredictions, MultiBranch, structure_energies, symmetric

CompileMode = Literal["default", "cuda-graphs"]

BACKEND = "inductor"
"""Backend of `torch.compile`. Tests set others, which need no C++ compiler."""

NOT_COMPILED = "set train.compile: none"

MAX_PROGRAMS = 4
"""Largest number of compilations of one model. One is usual; a second one follows a change of the trained labels, such
as stress."""

CUDA_GRAPHS: dict[str, Any] = {
    "triton.cudagraphs": True,
    "triton.cudagraph_or_error": True,  # otherwise programs that cannot be recorded would run without graphs, silently
    "triton.cudagraph_dynamic_shape_warn_limit": None,  # batches have few sizes, see `rounded_up`
}


class CompiledModel:
    """A compiled `MultiBranch.forward` for training, on padded batches.

    Args:
        model: its weights are used and get the gradients.
        mode: `cuda-graphs` also records the GPU kernels of a program, once for each size of batches.
        compiling: context of the first call, in which forward and backward pass are compiled, which takes minutes.

    Attributes:
        program: the compiled function.
        conservative: whether forces are derivatives of the energy.

    Raises:
        RamifyError: there is no compiler for the device, or it does not support CUDA graphs.
    """

    def __init__(
        self,
        model: MultiBranch,
        mode: CompileMode,
        compiling: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        device = next(model.parameters()).device
        if mode == "cuda-graphs" and device.type != "cuda":
            raise RamifyError(
                f"train.compile: cuda-graphs, but the model is on {device.type}",
                fix="set train.compile: default, or train.device: cuda on a machine with an NVIDIA GPU",
            )
        require_compiler(device, key="train.compile", off=NOT_COMPILED)
        self._model, self._graphs, self._compiling = model, mode == "cuda-graphs", compiling
        self._compiled: set[bool] = set()
        self._further = any(model.branch(name).labels for name in model.branches)
        kinds = {model.branch(name).forces for name in model.branches}
        self.conservative = "conservative" in kinds
        assert not (self.conservative and "direct" in kinds), "a recipe has one kind of forces"
        options: dict[str, Any] = {
            "fullgraph": True,  # raises an error if a part cannot be compiled
            "backend": BACKEND,
            "options": compiler_options(device, graphs=self._graphs),
            "recompile_limit": MAX_PROGRAMS,
            "isolate_recompiles": True,  # other models of the process do not count
        }
        # PyTorch 2.11, on which `benchmarks/gpu.sh` also runs, lacks some of them
        options = {key: value for key, value in options.items() if key in signature(torch.compile).parameters}
        self.program: Callable[..., Any] = torch.compile(
            self._differentiated if self.conservative else self._encoded, **options
        )
        if self._graphs:
            for parameter in model.parameters():
                if parameter.requires_grad:
                    # the next recorded backward pass overwrites the gradients of this one
                    parameter.register_hook(torch.clone)

    def __call__(self, batch: PaddedBatch, *, stress: bool = False) -> BatchPredictions:
        """As `MultiBranch.forward`; values in padding rows have no meaning.

        Raises:
            RamifyError: the program cannot be compiled.
        """
        _mark_sizes(batch)
        model = self._model
        with independent_sizes(), compiler_errors("train.compile", NOT_COMPILED):
            if stress not in self._compiled:
                with self._compiling():
                    self._compile(batch, stress)
                self._compiled.add(stress)
            outputs = self._outputs(batch, stress)
        if self.conservative:
            total, minus_forces, virial, scalars = outputs
            return model.predictions(batch, total, scalars, None, minus_forces, virial, stress=stress)
        scalars, vectors = outputs
        total = structure_energies(model.heads(batch)(scalars), batch)
        return model.predictions(batch, total, scalars, vectors, None, None, stress=stress)

    def _outputs(self, batch: PaddedBatch, stress: bool) -> Any:
        """Runs the program."""
        if self._graphs:
            torch.compiler.cudagraph_mark_step_begin()
        if not self.conservative:
            return self.program(batch)
        return self.program(batch, self._stacked({segment.name for segment in batch.segments}), stress)

    def _compile(self, batch: PaddedBatch, stress: bool) -> None:
        """Compiles the forward pass, and the backward pass, which PyTorch compiles when it first runs."""
        outputs = [tensor for tensor in self._outputs(batch, stress) if tensor is not None and tensor.requires_grad]
        weights = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        if outputs:
            with torch.autocast(batch.positions.device.type, enabled=False):  # as in the backward pass of a step
                torch.autograd.grad(torch.stack([o.sum() for o in outputs]).sum(), weights, allow_unused=True)

    def _encoded(self, batch: PaddedBatch) -> Any:
        """Scalars and vectors of all atoms. Compiled."""
        return self._model.encoder.forward(build_graph(batch, self._model.cutoff, batch.positions))

    def _differentiated(
        self, batch: PaddedBatch, heads: StackedHeads, stress: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Energies of structures (S,), dE/dx (N, 3), dE/dε (S, 3, 3), and scalars of atoms if there are heads of
        further labels. Compiled."""
        # calls `forward` directly: the program must not include hooks of the module
        encode, read = self._model.encoder.forward, partial(heads, tile_branch=batch.tile_branch)

        def energies(positions: Tensor, strain: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            strained = symmetric(strain) if stress else None
            graph = build_graph(batch, self._model.cutoff, positions, strained, differentiated=True)
            scalars, _ = encode(graph)
            total = structure_energies(self._model.atom_energies(read, scalars, graph), batch)
            return total.sum(), (total, scalars) if self._further else (total,)

        strain = batch.positions.new_zeros(len(batch.n_atoms), 3, 3)
        grad = torch.func.grad(energies, argnums=(0, 1), has_aux=True)
        (minus_forces, virial), (total, *scalars) = grad(batch.positions, strain)
        return total, minus_forces, virial, scalars[0] if self._further else None

    def _stacked(self, present: set[str]) -> StackedHeads:
        """The heads of all branches. The gradients of branches without structures in the batch stay None."""
        branches = {name: self._model.branch(name) for name in self._model.branches}
        return EnergyHead.stacked(
            [branch.energy for branch in branches.values()],
            [branch.energy_scale for branch in branches.values()],
            [name in present for name in branches],
        )


def _mark_sizes(batch: PaddedBatch) -> None:
    """Marks the sizes that differ between batches for the compiler: the rows of all columns."""
    for name, tensor in batch.tensors().items():
        if name != "tile_branch" or len(tensor):
            mark_dynamic(tensor, 0)


def compiler_options(device: torch.device, *, graphs: bool) -> dict[str, Any] | None:
    """Options of inductor.

    They contain the vector width of the processor, so that it is part of the key of inductor's cache on disk. Without
    it, PyTorch 2.13 would run a program generated for AVX2 on a processor with AVX-512 that shares the cache, with
    wrong results and no error.
    """
    if BACKEND != "inductor":
        return None
    if graphs:
        return CUDA_GRAPHS
    if device.type != "cpu":
        return None
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    return {"cpp.simdlen": pick_vec_isa().bit_width() or 1}  # 1: no vectors


def require_compiler(device: torch.device, *, key: str, off: str) -> None:
    """Checks that programs for `device` can be compiled.

    Args:
        device: of the model.
        key: the key or argument that asks for a program, for messages.
        off: what to do without one.

    Raises:
        RamifyError: they cannot.
    """
    if BACKEND != "inductor":
        return
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler as error:
            raise RamifyError(
                f"{key}: programs for the CPU need a C++ compiler, and there is none",
                fix=f"install g++ or clang++ (the variable CXX may name it), or {off}",
            ) from error
    else:
        from torch.utils._triton import has_triton

        if not has_triton():
            raise RamifyError(
                f"{key}: programs for {device.type} need Triton, which is missing or does not support this device",
                fix=f"install the package triton in the version that PyTorch asks for, or {off}",
            )


def program_key(module: nn.Module, *parts: Any) -> str:
    """Name of the program of a module: a checksum of everything that it depends on, without the values of weights.

    The code of the model is a part of it, and the instructions of the processor: a program for AVX-512 would end the
    process on a processor without it. So is the number of threads, which is fixed in a program for the CPU.

    Args:
        module: with all weights.
        parts: what else the program depends on, with the same text in all processes.
    """
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    device = next(iter(tensors.values())).device
    everything: list[Any] = [
        (ramify.__version__, torch.__version__, sys.platform, platform.machine()),
        (device.type, compiler_options(device, graphs=False)),
        torch.cuda.get_device_capability(device) if device.type == "cuda" else (_processor(), torch.get_num_threads()),
        [(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in tensors.items()],
        [(name, _constants(part)) for name, part in module.named_modules()],
        str(module),
        *parts,
    ]
    total = hashlib.sha256(repr(everything).encode())
    for file in sorted(_code_of(module)):
        total.update(file.read_bytes())
    return total.hexdigest()[:32]


def _constants(module: nn.Module) -> list[tuple[str, Any]]:
    """The numbers and words of a module, such as a cutoff, which programs contain as constants."""
    plain = (bool, int, float, str, tuple)
    return sorted((k, v) for k, v in vars(module).items() if isinstance(v, plain) and k != "training")


def _processor() -> str:
    """Model and instructions of the processor."""
    if not (facts := Path("/proc/cpuinfo")).is_file():
        return platform.processor()
    lines = facts.read_text(errors="replace").splitlines()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def _code_of(module: nn.Module) -> Iterable[Path]:
    """The files with the code of a module, and those of the package's models and passes."""
    modules = {sys.modules[type(part).__module__] for part in module.modules()}
    files = {Path(found.__file__) for found in modules if found.__file__ and not found.__name__.startswith("torch.")}
    return files.union(*((Path(ramify.__file__).parent / name).rglob("*.py") for name in ("model", "inference/passes")))


@contextmanager
def independent_sizes() -> Iterator[None]:
    """Inside, sizes of an example that happen to be equal are independent in a program."""
    shapes: Any = torch.fx.experimental._config
    with shapes.patch(use_duck_shape=False):
        yield


@contextmanager
def compiler_errors(key: str, off: str, *, also: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Converts errors of the compiler, and those of the types `also`; `key` and `off` as in `require_compiler`."""
    from torch._inductor.exc import InductorError

    converted: tuple[type[Exception], ...] = (TorchDynamoException, FailOnRecompileLimitHit, InductorError, *also)
    try:
        yield
    except converted as error:
        reason = " ".join([line.strip() for line in str(error).splitlines() if line.strip()][:2])
        raise RamifyError(
            f"{key}: the model cannot be compiled here: {type(error).__name__}: {reason}",
            fix=f"{off}, or look for the cause with TORCH_LOGS=dynamo,inductor in the environment",
        ) from error
