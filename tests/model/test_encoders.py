"""Every kind of encoder in the test suite of the package."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from ase.build import bulk
from torch.utils._python_dispatch import TorchDispatchMode

from ramify.batches.padding import Padding
from ramify.errors import RamifyError
from ramify.model.build import LabelSpread, build_model
from ramify.model.compiled import CompiledModel
from ramify.model.encoders.egnn import EGNN
from ramify.model.encoders.many_body import ManyBody
from ramify.model.encoders.painn import PaiNN
from ramify.model.encoders.schnet import SchNet
from ramify.model.encoders.tensornet import TensorNet
from ramify.recipe import encoder_kinds, parse_recipe
from ramify.testing.encoders import EncoderTests

from .conftest import batch_of


class TestEGNN(EncoderTests):
    encoder = EGNN
    options = EGNN.Options(layers=3, width=24, vector_channels=6, radial=6)
    gain = 1.8


class TestEGNNWithOneMessageLayer(EncoderTests):
    encoder = EGNN
    options = EGNN.Options(layers=3, width=20, vector_channels=6, radial=6, message_layers=1)
    gain = 1.8
    test_compiled_passes_are_the_plain_ones = None  # slow, and the same as of the kind above
    test_cost_is_known_without_running = None


class TestManyBody(EncoderTests):
    encoder = ManyBody
    options = ManyBody.Options(layers=2, width=24, channels=8, passed=4, vector_channels=6)
    gain = 1.5


class TestManyBodyOfVectors(EncoderTests):
    encoder = ManyBody
    options = ManyBody.Options(layers=3, width=24, channels=8, passed=0, vector_channels=6, l_max=1, gates=False)
    gain = 1.5
    test_compiled_passes_are_the_plain_ones = None  # slow, and the same as of the kind above
    test_cost_is_known_without_running = None


class TestPaiNN(EncoderTests):
    encoder = PaiNN
    options = PaiNN.Options(layers=2, width=24)
    gain = 1.5


class TestSchNet(EncoderTests):
    encoder = SchNet
    options = SchNet.Options(layers=3, width=24)
    gain = 1.5


class TestTensorNet(EncoderTests):
    encoder = TensorNet
    options = TensorNet.Options(layers=2, width=24, channels=8, vector_channels=6)
    gain = 1.5


def test_every_kind_is_tested() -> None:
    tested = {case.options.kind for case in globals().values() if isinstance(case, type) and hasattr(case, "options")}
    assert tested | {"pyg"} >= set(encoder_kinds())  # test_pyg.py


class BatchedProducts(TorchDispatchMode):
    """Collects the shapes of the results of batched matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.bmm.default, torch.ops.aten.baddbmm.default):
            self.shapes.add(tuple(result.shape))
        return result


@pytest.mark.parametrize("kind", [TestEGNN, TestManyBody, TestPaiNN, TestTensorNet])
def test_gradients_of_weights_are_not_taken_per_atom(kind: type[EncoderTests], monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps of the channels of vectors and tensors are one product, also in the second derivatives of a compiled step,
    whose function runs here without a compiler."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    model = kind().model("conservative").train()
    step, batch = CompiledModel(model, "default"), Padding(("b",))(kind().batch(kind().images()))
    with BatchedProducts() as products:
        energy, minus_forces, _, _ = step._differentiated(batch, step._stacked({"b"}), False)
        (energy.sum() + minus_forces.square().sum()).backward()
    weights = {tuple(weight.shape) for weight in model.encoder.parameters() if weight.ndim == 2}
    of_atoms = {shape[1:] for shape in products.shapes if shape[0] == len(batch.numbers)}
    assert not of_atoms & (weights | {shape[::-1] for shape in weights})


def recipe(kind: str, forces: str):
    return parse_recipe(
        {
            "datasets": {"a": {"format": "extxyz", "path": "a.xyz"}},
            "model": {"encoder": {"kind": kind}, "force_head": {"kind": forces}},
        },
        "test",
    )


def test_direct_forces_need_vectors() -> None:
    with pytest.raises(RamifyError, match=r"(?s)force_head\.kind: direct.*kind: schnet.*fix: .*conservative"):
        build_model(recipe("schnet", "direct"), {"a": LabelSpread(1.0, 1.0, 10)})
    assert build_model(recipe("schnet", "direct"), {"a": LabelSpread(1.0, None, 10)}).branch("a").force is None
    assert build_model(recipe("schnet", "conservative"), {"a": LabelSpread(1.0, 1.0, 10)})


def test_tension_is_positive(make_model: Callable) -> None:
    """The sign: where energy rises with volume, stress is positive (as in ASE)."""
    model = make_model("conservative")
    atoms = bulk("Cu", cubic=True)
    wider = atoms.copy()
    wider.set_cell(atoms.cell.array * 1.001, scale_atoms=True)
    with torch.no_grad():
        stress = model(batch_of([atoms], torch.float64), stress=True).stress[0]
        before, after = (model(batch_of([a], torch.float64)).energy[0] for a in (atoms, wider))
    rise = float(after - before)
    assert abs(rise) > 1e-5
    assert float(stress.trace()) * rise > 0


def test_branches_without_forces_say_so(make_model: Callable, images) -> None:
    with torch.no_grad():
        predicted = make_model(None)(batch_of(images, torch.float64), stress=True)
    assert torch.isnan(predicted.forces).all()
    assert torch.isnan(predicted.stress).all()
    assert torch.isfinite(predicted.energy).all()
