"""Compiled passes against the model itself, in float64; only tests of the C++ compiler itself use one."""

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from torch import Tensor

from ramify.batches.batch import Batch, BatchPart
from ramify.batches.padding import Padding
from ramify.errors import RamifyError
from ramify.model import compiled
from ramify.model.branch import Branch
from ramify.model.compiled import CompiledModel
from ramify.model.encoders.egnn import EGNN
from ramify.model.lora import add_lora
from ramify.model.multibranch import BatchPredictions, MultiBranch
from ramify.neighbors.edges import find_edges
from ramify.structures import Structures
from tests.processes.compiler import hide_compiler, needs_compiler

CUTOFF = 4.0
BRANCHES = ("crystals", "absent", "molecules")
Make = Callable[..., MultiBranch]


@pytest.fixture
def make() -> Make:
    """A function (forces, branches, message_layers, layers) -> model in float64 with weights of ordinary size."""

    def model(
        forces: Any, branches: tuple[str, ...] = BRANCHES, message_layers: int = 1, layers: int = 1
    ) -> MultiBranch:
        torch.manual_seed(0)
        options = EGNN.Options(
            layers=layers,
            width=12,
            vector_channels=4,
            radial=5,
            cutoff=CUTOFF,
            max_neighbors=8,
            message_layers=message_layers,
        )
        encoder = EGNN(options)
        heads = {
            name: Branch(
                12, 4, energy_head=(2, 8), force_head=(1, 8), forces=forces, energy_scale=0.5 + k, forces_scale=1.3
            )
            for k, name in enumerate(branches)
        }
        found = MultiBranch(encoder, heads, CUTOFF)
        with torch.no_grad():
            for parameter in found.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))  # the linear paths of fresh heads are zero
        return found.double().train()

    return model


def batch_of(images: list[Atoms], crystals: slice, molecules: slice, branches: tuple[str, ...] = BRANCHES) -> Batch:
    parts = []
    for name, chosen in (("crystals", images[crystals]), ("molecules", images[molecules])):
        if chosen:
            structures = Structures.from_ase(chosen)
            branch = name if name in branches else branches[0]
            parts.append(BatchPart(name, branch, structures, find_edges(structures, CUTOFF, 8), np.zeros(119)))
    return Batch.make(parts, torch.float64)


def gradients(model: MultiBranch, predictions: BatchPredictions, batch: Batch) -> dict[str, Tensor | None]:
    """Of a function of all that is predicted of real rows."""
    model.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for segment in batch.segments:
        total = total + predictions.energy[segment.structures].square().sum()
        total = total + predictions.forces[segment.atoms].nan_to_num().square().sum()
        if predictions.stress is not None:
            total = total + predictions.stress[segment.structures].nan_to_num().square().sum()
    total.backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def assert_same(model: MultiBranch, program: CompiledModel, batch: Batch, padding: Padding, *, stress: bool) -> None:
    """Predictions of real rows and gradients of all weights, to 1e-12 of the largest."""
    padded = padding(batch)
    plain, found = model(batch, stress=stress), program(padded, stress=stress)
    for before, after in zip(batch.segments, padded.segments, strict=True):
        close(found.energy[after.structures], plain.energy[before.structures])
        close(found.forces[after.atoms], plain.forces[before.atoms])
        if stress:
            assert plain.stress is not None
            assert found.stress is not None
            close(found.stress[after.structures], plain.stress[before.structures])
    expected, got = gradients(model, plain, batch), gradients(model, found, padded)
    largest = max(float(g.abs().max()) for g in expected.values() if g is not None)
    for name, gradient in expected.items():
        assert (gradient is None) == (got[name] is None), name
        if gradient is not None:
            torch.testing.assert_close(got[name], gradient, rtol=1e-12, atol=1e-12 * largest, msg=name)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Programs consist of PyTorch's own operations; the list has an entry for every compilation."""
    from torch._dynamo.backends.registry import lookup_backend

    made: list[int] = []

    def backend(graph: Any, inputs: Any, **given: Any) -> Any:
        made.append(len(inputs))
        return lookup_backend("aot_eager")(graph, inputs)

    monkeypatch.setattr(compiled, "BACKEND", backend)
    yield made
    torch.compiler.reset()


SIZES = [
    (slice(4, 6), slice(0, 3)),
    (slice(4, 5), slice(0, 1)),
    (slice(5, 8), slice(0, 4)),
    (slice(4, 4), slice(0, 2)),  # no crystals
    (slice(6, 7), slice(0, 0)),  # no molecules
    (slice(4, 4), slice(3, 4)),  # one atom by itself, without edges
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "message_layers"), [("direct", 2), ("conservative", 1), ("conservative-one-branch", 2)]
)
def test_one_program_for_all_sizes_gives_the_same(
    make: Make, images: list[Atoms], counted: list[int], kind: str, message_layers: int
) -> None:
    branches = ("only",) if kind.endswith("one-branch") else BRANCHES
    stress = kind != "direct"
    model = make(kind.split("-")[0], branches, message_layers, layers=1 if branches == ("only",) else 2)
    program = CompiledModel(model, "default")
    for number, chosen in enumerate(SIZES):
        batch = batch_of(images, *chosen, branches)
        tile = 1 if kind == "direct" or branches == ("only",) else 8
        assert_same(model, program, batch, Padding(branches, tile, steps=number % 2 == 1), stress=stress)
    assert len(counted) == 1


@pytest.mark.slow
def test_low_rank_updates_of_a_frozen_encoder_and_a_branch_without_forces(
    make: Make, images: list[Atoms], counted: list[int]
) -> None:
    model = make("conservative")
    model.branch("molecules").forces = None
    add_lora(model.encoder, 2, 0)
    model.double()
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    assert_same(model, CompiledModel(model, "default"), batch_of(images, *SIZES[0]), Padding(BRANCHES, 8), stress=True)


@pytest.mark.slow
def test_bf16_is_as_near_to_float32_as_without(make: Make, images: list[Atoms], counted: list[int]) -> None:
    model = make("conservative").float()
    program, batch = CompiledModel(model, "default"), batch_of(images, *SIZES[0])
    single = replace(batch, **{n: t.float() for n, t in batch.tensors().items() if t.is_floating_point()})
    padded = Padding(BRANCHES, 8)(single)
    exact = model(single)
    with torch.autocast("cpu", torch.bfloat16):
        plain, found = model(single), program(padded)
    assert found.energy.dtype == found.forces.dtype == torch.float32
    for before, after in zip(single.segments, padded.segments, strict=True):
        for name, a, b in (("energy", before.structures, after.structures), ("forces", before.atoms, after.atoms)):
            truth = getattr(exact, name)[a]
            error, usual = getattr(found, name)[b] - truth, getattr(plain, name)[a] - truth
            assert error.norm() < 3 * usual.norm() + 1e-3 * truth.norm()


def test_cuda_graphs_need_cuda(make: Make) -> None:
    with pytest.raises(RamifyError, match=r"(?s)train.compile: cuda-graphs.*is on cpu.*fix: .*default"):
        CompiledModel(make("direct"), "cuda-graphs")


def test_a_missing_compiler_is_said_before_the_first_step(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    hide_compiler(monkeypatch)
    with pytest.raises(RamifyError, match=r"(?s)C\+\+ compiler, and there is none.*fix: .*train.compile: none"):
        CompiledModel(make("direct"), "default")


def test_what_cannot_be_compiled_is_an_error(make: Make, images: list[Atoms], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(graph: Any, inputs: Any, **given: Any) -> Any:
        raise ValueError("no such processor")

    monkeypatch.setattr(compiled, "BACKEND", broken)
    program = CompiledModel(make("direct"), "default")
    with pytest.raises(RamifyError, match=r"(?s)cannot be compiled here.*no such processor.*fix: .*none"):
        program(Padding(BRANCHES)(batch_of(images, *SIZES[0])))


def test_too_many_programs_are_an_error(
    make: Make, images: list[Atoms], counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step is never executed without compilation silently."""
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    monkeypatch.setattr(compiled, "MAX_PROGRAMS", 1)
    model = make("conservative")
    program = CompiledModel(model, "default")
    padded = Padding(BRANCHES, 8)(batch_of(images, *SIZES[0]))
    program(padded, stress=True)
    with pytest.raises(RamifyError, match=r"train.compile: the model cannot be compiled"):
        program(padded, stress=False)


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the variable is known on x86-64 only")
def test_programs_for_other_vector_widths_have_other_keys_in_the_cache() -> None:
    """A program for AVX2 taken from the cache by a processor with AVX-512 gives wrong numbers (PyTorch 2.13). `make
    test` and `make test-masked`, run one after the other, test the numbers with a shared cache."""
    code = "import torch; from ramify.model.compiled import compiler_options as options\n"
    code += "print(options(torch.device('cpu'), graphs=False))"
    found = [
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"ATEN_CPU_CAPABILITY": capability},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for capability in ("avx2", "default")
    ]
    assert found == ["{'cpp.simdlen': 256}", "{'cpp.simdlen': 1}"]


@pytest.mark.slow
@pytest.mark.timeout(600)  # a minute on a quiet core
@needs_compiler
def test_a_program_in_cpp(make: Make, images: list[Atoms]) -> None:
    """The program that users run on a CPU, with two sizes of batches."""
    model = make("conservative")
    program = CompiledModel(model, "default")
    for chosen in SIZES[:2]:
        assert_same(model, program, batch_of(images, *chosen), Padding(BRANCHES, 8), stress=True)
