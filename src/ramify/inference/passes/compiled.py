"""Compiled passes: energies and their derivatives as one program of AOTInductor, for all sizes of structures.

The graph of a pass, derivatives included, is traced once (no autograd runs later), compiled for the device and kept in
a cache on disk. Weights are arguments of the program, so that it contains no value of them, not even by constant
folding: all branches, seeds and fine-tuned variants of a model share it."""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from ramify.errors import RamifyError, RamifyWarning
from ramify.files import cache_folder, whole_folder
from ramify.inference.passes.inputs import PassInputs
from ramify.inference.passes.plain import BranchPass, Pass, PassOutputs, PlainPass
from ramify.model.compiled import (
    compiler_errors,
    compiler_options,
    independent_sizes,
    program_key,
    require_compiler,
)
from ramify.model.multibranch import MultiBranch
from ramify.model.weights import call_with_weights, weights_by_name

FEWEST = 2
"""Minimum atoms, edges and slots of a program: compilers specialise programs for sizes 0 and 1."""

ATOMS, EDGES, SLOTS = (Dim(name, min=FEWEST) for name in ("atoms", "edges", "slots"))
SIZES = (ATOMS, EDGES, EDGES, EDGES, ATOMS, SLOTS)
"""The first dimensions of numbers, receiver, sender, vector, atom_cutoff and slots."""

PROGRAM = "program.pt2"

KEY, OFF = "compile=True", "load the model without compile=True"
"""The argument that asks for a program, and the fix where there can be none, for messages."""

ERRORS = (RuntimeError, ValueError, TypeError, AssertionError)
"""Raised where PyTorch cannot trace or compile an encoder, which may be of another package."""


def compiled_pass(
    network: MultiBranch,
    branch: str,
    *,
    cache: Path | None = None,
    on_compile: Callable[[], None] | None = None,
) -> Pass:
    """A `CompiledPass` with these arguments, or the plain pass where there can be none.

    Warns:
        RamifyWarning: the branch has further labels, there is no compiler, or the model cannot be compiled. The plain
            pass gives the same numbers within rounding.
    """
    try:
        return CompiledPass(network, branch, cache=cache, on_compile=on_compile)
    except RamifyError as error:
        warnings.warn(f"branch '{branch}' is used without compilation: {error}", RamifyWarning, stacklevel=2)
        return PlainPass(network, branch)


class CompiledPass:
    """A `Pass` that runs a compiled program.

    Structures of one atom or with fewer than two edges are computed by the plain pass.

    Args:
        network: its weights are used; later changes of them have no effect.
        branch: name of the branch.
        cache: folder of compiled programs; None for `cache_folder()`.
        on_compile: called before a compilation, which takes one to two minutes; None for a warning.

    Raises:
        RamifyError: the branch has further labels, there is no compiler, or the model cannot be compiled.
    """

    def __init__(
        self,
        network: MultiBranch,
        branch: str,
        *,
        cache: Path | None = None,
        on_compile: Callable[[], None] | None = None,
    ) -> None:
        module = BranchPass(network, branch)
        if module.branch.labels:
            raise RamifyError(
                f"branch '{branch}' predicts further labels ({', '.join(module.branch.labels)}), which compiled passes "
                "do not support",
                fix=OFF,
            )
        require_compiler(module.branch.energy_scale.device, key=KEY, off=OFF)
        self._given = network, branch, cache
        self._plain, self._module = PlainPass(network, branch), module
        folder = (cache or cache_folder()) / program_key(module)
        if not (folder / PROGRAM).is_file():
            (on_compile or partial(_warn, folder))()
            _compile(module, folder)
        try:
            self._program = torch._inductor.aoti_load_package(str(folder / PROGRAM)).loader
        except RuntimeError as error:
            raise RamifyError(f"the compiled program {folder} cannot be loaded: {error}", fix="remove it") from error
        self._weights = tuple(weights_of(module).values())

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its arguments; the copy loads the program from the cache again."""
        network, branch, cache = self._given
        return partial(compiled_pass, cache=cache), (network, branch)

    def __call__(self, inputs: PassInputs) -> PassOutputs:
        """Runs one pass."""
        if min(len(inputs.numbers), len(inputs.receiver), len(inputs.slots)) < FEWEST:
            return self._plain(inputs)
        with torch.inference_mode(False), torch.no_grad():
            # without the package's own call, which parses its description of the arguments every time
            return self._module.outputs(tuple(self._program.boxed_run([*arguments(inputs), *self._weights])))


def _warn(folder: Path) -> None:
    """Announces a compilation."""
    text = f"the model is being compiled, which takes one to two minutes; the program is kept in {folder}"
    warnings.warn(text, RamifyWarning, stacklevel=2)


@torch.inference_mode(False)
def _compile(module: BranchPass, folder: Path) -> None:
    """Compiles the program of `module` into `folder`; another process may do the same at the same time."""
    options = compiler_options(module.branch.energy_scale.device, graphs=False) or {}
    try:
        with whole_folder(folder) as unfinished, compiler_errors(KEY, OFF, also=ERRORS), warnings.catch_warnings():
            package = str(unfinished / PROGRAM)
            warnings.simplefilter("ignore", FutureWarning)  # of PyTorch on itself
            torch._inductor.aoti_compile_and_package(_exported(module), package_path=package, inductor_configs=options)
    except OSError:
        if not (folder / PROGRAM).is_file():
            raise


def _exported(module: BranchPass) -> ExportedProgram:
    """The traced graph with the free sizes stated."""
    inputs = _example(module)
    weights = tuple(weights_of(module).values())
    sizes: list[dict[int, Any] | None] = [{0: size} for size in SIZES]
    sizes += [{0: ATOMS}] * (len(inputs) - len(SIZES)) + [None] * len(weights)
    with torch.no_grad(), independent_sizes():
        return torch.export.export(traced(module), (*inputs, *weights), dynamic_shapes=tuple(sizes))


def traced(module: BranchPass) -> GraphModule:
    """The graph of a pass and of its derivatives, as a function of `arguments` and the weights."""
    example, weights = _example(module), weights_of(module)

    def run(*given: Tensor) -> tuple[Tensor, ...]:
        numbers, receiver, sender, vector, atom_cutoff, slots, *rest = given[: len(example)]
        unused = numbers  # only further labels need structures
        conditions = rest[0] if rest else None
        inputs = PassInputs(numbers, unused, unused, receiver, sender, vector, atom_cutoff, slots, conditions)
        of_weights = dict(zip(weights, given[len(example) :], strict=True))
        found: tuple[Tensor, ...] = call_with_weights(module, of_weights, inputs)
        return found

    with torch.no_grad(), independent_sizes():
        graph = make_fx(run, tracing_mode="symbolic")(*example, *weights.values())
        graph.graph.eliminate_dead_code()
        graph.recompile()
        return graph


def weights_of(module: BranchPass) -> dict[str, Tensor]:
    """Parameters and buffers by name, as contiguous tensors."""
    return {name: tensor.detach().contiguous() for name, tensor in weights_by_name(module).items()}


def arguments(inputs: PassInputs) -> tuple[Tensor, ...]:
    """The arguments of a program before the weights."""
    found = inputs.numbers, inputs.receiver, inputs.sender, inputs.vector, inputs.atom_cutoff, inputs.slots
    return found if inputs.conditions is None else (*found, inputs.conditions)


def _example(module: BranchPass) -> tuple[Tensor, ...]:
    """`arguments` for five atoms with seven edges of 1.5 Å and at most three neighbours."""
    like, conditions = module.branch.energy_scale, getattr(module.encoder, "conditions", None)
    ends = torch.tensor([[0, 0, 0, 1, 2, 3, 4], [1, 2, 3, 0, 4, 0, 2]], device=like.device)
    vector = like.new_zeros(7, 3)
    vector[torch.arange(7), torch.arange(7) % 3] = 1.5
    slots = torch.arange(3, device=like.device)
    found = torch.ones_like(ends[0, :5]), ends[0].clone(), ends[1].clone(), vector, like.new_full((5,), 5.0), slots
    return found if conditions is None else (*found, like.new_zeros(5, len(conditions.names)))
