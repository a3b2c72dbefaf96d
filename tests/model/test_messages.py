"""Fast forms of the encoder's layer against plain ones: values and derivatives, in float64 to 1e-10."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from benchmarks.step.naive_egnn import make_naive
from torch import Tensor, nn

from ramify.batches.batch import Batch
from ramify.model.encoders.egnn import EGNN
from ramify.model.kernels import message_derivatives
from ramify.model.kernels.aligned import aligned, aligned_linear, padded
from ramify.model.kernels.counting import counting
from ramify.model.kernels.messages import MessageWeights, blockwise, plain
from ramify.model.multibranch import MultiBranch

from .conftest import batch_of

EDGES, ATOMS, WIDTH = 37, 9, 16


def derivatives(model: MultiBranch, batch: Batch) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Predictions in training mode, and the gradient of a loss that weighs each of them differently."""
    model.train()
    found = model(batch)
    weights = torch.linspace(0.5, 1.5, found.forces.numel(), dtype=found.forces.dtype).view_as(found.forces)
    loss = (found.energy * torch.arange(1.0, len(found.energy) + 1.0)).sum() + (found.forces * weights).square().sum()
    model.zero_grad()
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return [found.energy.detach(), found.forces.detach()], gradients


def same(one: list[Tensor], other: list[Tensor]) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many blocks, the last of them not full."""
    monkeypatch.setattr(message_derivatives, "BLOCK", 10)


@dataclass
class Inputs:
    """Random arguments of `plain` and `blockwise`, float64."""

    on_edges: list[Tensor]
    weights: MessageWeights
    receiver: Tensor
    sender: Tensor

    @staticmethod
    def random(layers: int) -> "Inputs":
        torch.manual_seed(0)

        def real(*shape: int) -> Tensor:
            return torch.randn(shape, dtype=torch.float64).requires_grad_()

        hidden, bias = (real(WIDTH, WIDTH), real(WIDTH)) if layers == 2 else (None, None)
        return Inputs(
            [real(ATOMS, WIDTH), real(ATOMS, WIDTH), real(EDGES, 7), real(EDGES, 5)],
            MessageWeights(real(7, WIDTH), hidden, bias, real(5, WIDTH), real(6, WIDTH)),
            torch.randint(0, ATOMS, (EDGES,)).sort().values,
            torch.randint(0, ATOMS, (EDGES,)),
        )

    @property
    def leaves(self) -> list[Tensor]:
        """All that have a gradient."""
        w = self.weights
        second = [] if w.hidden is None or w.bias is None else [w.hidden, w.bias]
        return [*self.on_edges, w.inputs, w.radial, w.gates, *second]

    def plain(self) -> tuple[Tensor, Tensor]:
        return plain(*self.on_edges, self.weights, self.receiver, self.sender)

    def blockwise(self) -> tuple[Tensor, Tensor]:
        return blockwise(*self.on_edges, self.weights, self.receiver, self.sender, torch.float64)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.usefixtures("small_blocks")
def test_blocks_give_what_plain_operations_give(layers: int) -> None:
    given = Inputs.random(layers)
    fast, slow = given.blockwise(), given.plain()
    same(list(fast), list(slow))
    to = [torch.randn_like(s) for s in slow]
    same(list(torch.autograd.grad(fast, given.leaves, to)), list(torch.autograd.grad(slow, given.leaves, to)))


@pytest.mark.parametrize("used", [[0], [1], [0, 1]], ids=["sums", "gates", "both"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.usefixtures("small_blocks")
def test_second_derivatives_are_those_of_plain_operations(layers: int, used: list[int]) -> None:
    """Of a loss that contains the results and their derivatives by a, b, x and r, as that of conservative forces."""
    given = Inputs.random(layers)
    to = [torch.randn_like(t, requires_grad=True) for t in given.plain()]

    def loss(results: tuple[Tensor, Tensor]) -> Tensor:
        value = sum((results[k] * to[k]).sum() for k in used)
        slopes = torch.autograd.grad(value, given.on_edges, create_graph=True)
        return value.square() + sum((s * torch.linspace(1, 2, s.numel()).view_as(s)).square().sum() for s in slopes)

    leaves = [*given.leaves, *(to[k] for k in used)]
    found, expected = (
        torch.autograd.grad(loss(results), leaves, allow_unused=True, materialize_grads=True)
        for results in (given.blockwise(), given.plain())
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12 * float(other.abs().max()))


def test_finite_differences_confirm_both_derivatives() -> None:
    given = Inputs.random(layers=2)

    def of(*on_edges: Tensor) -> tuple[Tensor, ...]:
        return blockwise(*on_edges, given.weights, given.receiver, given.sender, torch.float64)

    torch.autograd.gradcheck(of, given.on_edges)
    torch.autograd.gradgradcheck(of, given.on_edges)


def test_second_derivatives_in_weights_are_refused() -> None:
    given = Inputs.random(layers=2)
    with pytest.raises(RuntimeError, match="no second derivatives in weights"):
        torch.autograd.grad(given.blockwise()[0].sum(), given.leaves, create_graph=True)


def test_only_wanted_gradients_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forces need the gradients of positions: those of weights would take a third of the time."""
    given, sums = Inputs.random(layers=2), 0
    add_product = message_derivatives.add_product

    def counted(*args: Tensor) -> None:
        nonlocal sums
        sums += 1
        add_product(*args)

    monkeypatch.setattr(message_derivatives, "add_product", counted)
    torch.autograd.grad(given.blockwise()[0].sum(), given.on_edges)
    assert sums == 0
    torch.autograd.grad(given.blockwise()[0].sum(), given.leaves)
    assert sums == 4


@pytest.mark.parametrize("forces", ["direct", "conservative"])
@pytest.mark.parametrize("message_layers", [1, 2])
@pytest.mark.usefixtures("small_blocks")
def test_the_model_is_the_naive_one(make_model: Callable, images: list, forces: str, message_layers: int) -> None:
    """Width 20 is padded to 24; conservative forces go through second derivatives."""
    batch = batch_of(images, torch.float64)
    values, gradients = derivatives(make_model(forces, message_layers=message_layers, width=20), batch)
    naive = make_naive(make_model(forces, message_layers=message_layers, width=20))
    naive_values, naive_gradients = derivatives(naive, batch)
    same(values, naive_values)
    shared = sorted(gradients.keys() & naive_gradients.keys())
    assert len(shared) > 20
    same([gradients[n] for n in shared], [naive_gradients[n] for n in shared])
    for k in range(3):  # what the naive form keeps in one matrix
        name = f"encoder.layers.{k}"
        edge, radial = naive_gradients[f"{name}.edge.weight"], naive_gradients[f"{name}.radial"]
        parts = [gradients[f"{name}.{part}.weight"] for part in ("from_receiver", "from_sender")]
        parts.append(gradients[f"{name}.from_distance"][:, :20].t())
        parts += [gradients[f"{name}.from_projection.weight"]] if k else []
        same([torch.cat(parts, dim=1), gradients[f"{name}.from_distance"][:, 20:]], [edge, radial])


@pytest.mark.parametrize("forces", ["direct", "conservative"])
def test_counting_changes_no_number(make_model: Callable, images: list, forces: str) -> None:
    batch = batch_of(images, torch.float64)
    values, gradients = derivatives(make_model(forces, width=20), batch)
    with counting():
        counted, counted_gradients = derivatives(make_model(forces, width=20), batch)
    same(values, counted)
    same(list(gradients.values()), list(counted_gradients.values()))


@pytest.mark.parametrize("forces", ["direct", "conservative"])
def test_checkpointing_changes_no_number(make_model: Callable, images: list, forces: str) -> None:
    batch = batch_of(images, torch.float64)
    model = make_model(forces)
    values, gradients = derivatives(model, batch)
    assert isinstance(model.encoder, EGNN)
    model.encoder.checkpointing = True
    again, gradients_again = derivatives(model, batch)
    assert all(torch.equal(a, b) for a, b in zip(values, again, strict=True))
    same(list(gradients.values()), list(gradients_again.values()))


def test_bf16_stays_near_float32(make_model: Callable, images: list) -> None:
    """Products in bfloat16 have eight bits; sums over neighbours keep float32, so errors do not grow with them."""
    batch = batch_of(images, torch.float32)
    model = make_model("direct", torch.float32)
    (_, forces), _ = derivatives(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(batch)
    assert found.energy.dtype == found.forces.dtype == torch.float32
    assert 0 < (found.forces - forces).norm() < 0.03 * forces.norm()
    loss = found.forces.square().sum()
    model.zero_grad()
    loss.backward()
    half = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model(batch).forces.square().sum().backward()
    for name, p in model.named_parameters():
        if p.grad is not None and p.grad.norm() > 0:
            assert half[name].dtype == torch.float32
            assert (half[name] - p.grad).norm() < 0.1 * p.grad.norm(), name


def test_widths_are_padded_with_zeros() -> None:
    assert [aligned(n) for n in (1, 8, 866, 889)] == [8, 8, 872, 896]
    x = torch.ones(2, 3)
    assert padded(x, 3) is x
    torch.testing.assert_close(padded(x, 4, 5).sum(), x.sum())
    assert padded(x, 4, 5).shape == (4, 5)
    layer = nn.Linear(3, 5)
    found = aligned_linear(layer, x)
    torch.testing.assert_close(found[:, :5], layer(x))
    assert found.shape == (2, 8)
    assert not found[:, 5:].any()
    with counting():
        assert aligned_linear(layer, x).shape == (2, 5)
