"""The parts of the model one by one, against formulas written out again or other libraries."""

import math

import numpy as np
import pytest
import torch
from ase.data import atomic_numbers
from scipy.special import spherical_jn

from ramify.elements import NUMBERS, SYMBOLS, element_features, period_and_group
from ramify.model.branch import SILU_GAIN, EnergyHead, fully_connected
from ramify.model.build import LabelSpread, build_model
from ramify.model.encoders.base import ElementFeatures, normalised
from ramify.model.kernels.activation import silu
from ramify.model.radial import BesselBasis, envelope
from ramify.recipe import parse_recipe


def test_silu_and_both_derivatives() -> None:
    x = torch.linspace(-9, 9, 41, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(silu(x), torch.nn.functional.silu(x), rtol=0, atol=0)
    assert torch.autograd.gradcheck(silu, x)
    assert torch.autograd.gradgradcheck(silu, x)


def test_bessel_basis_is_the_spherical_bessel_function_of_order_zero() -> None:
    """sin(kd)/d = k j0(kd) with k = nπ/c, which vanishes at the cutoff."""
    cutoff, d = 4.5, torch.linspace(0.3, 4.5, 20, dtype=torch.float64)
    found = BesselBasis(5, cutoff).double()(d).numpy()
    k = np.arange(1, 6) * math.pi / cutoff
    expected = math.sqrt(2 / cutoff) * k * spherical_jn(0, d.numpy()[:, None] * k)
    np.testing.assert_allclose(found, expected, atol=1e-6)  # the frequencies are kept in float32
    assert np.abs(found[-1]).max() < 1e-6


def test_envelope_ends_with_two_vanishing_derivatives() -> None:
    u = torch.tensor([0.0, 0.5, 1.0, 1.3], dtype=torch.float64, requires_grad=True)
    value = envelope(u)
    (slope,) = torch.autograd.grad(value.sum(), u, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), u)
    expected = [1.0, 1 - 91 * 0.5**12 + 168 * 0.5**13 - 78 * 0.5**14, 0.0, 0.0]
    np.testing.assert_allclose(value.detach(), expected, atol=1e-12)
    assert slope.detach()[2].abs() < 1e-12
    assert curvature.detach()[2].abs() < 1e-10
    assert slope.detach()[1] < -0.05


def test_heads_pass_signals_on_at_their_variance() -> None:
    torch.manual_seed(0)
    x = torch.randn(4000, 64)
    mean_square = float(torch.nn.functional.silu(torch.randn(10**6, dtype=torch.float64)).square().mean())
    assert pytest.approx(mean_square**-0.5, rel=5e-3) == SILU_GAIN
    layers = fully_connected(64, 256, 4, 256)
    signal = x
    for layer in layers:
        signal = layer(signal)
        if isinstance(layer, torch.nn.Linear):  # before an activation; the last comes after one and has gain 1
            wanted = 1.0 if layer is not layers[-1] else SILU_GAIN**-2
            assert float(signal.detach().var()) == pytest.approx(wanted, rel=0.15)


def test_an_energy_head_starts_at_zero_and_can_learn_through_both_paths() -> None:
    head, scalars = EnergyHead(8, layers=2, width=16), torch.randn(5, 8)
    assert torch.equal(head(scalars), torch.zeros(5))
    (head(scalars) - 1.0).square().sum().backward()
    assert head.linear.weight.grad is not None
    last = head.layers[-1]
    assert isinstance(last, torch.nn.Linear)
    assert last.weight.grad is not None
    assert float(head.linear.weight.grad.abs().min()) > 0
    assert float(last.weight.grad.abs().min()) > 0
    with torch.no_grad():
        head.linear.weight.fill_(1.0)
        last.weight.normal_()
    torch.testing.assert_close(head(scalars), head.layers(scalars).squeeze(1) + scalars.sum(1))


@pytest.mark.parametrize("count", [1, 3])
def test_stacked_energy_heads_are_the_heads_themselves(count: int) -> None:
    """Values and gradients, in tiles of atoms; a head that a batch has no atoms of gets no gradient."""
    torch.manual_seed(0)
    heads = [EnergyHead(6, layers=2, width=10).double() for _ in range(count)]
    for head in heads:
        for parameter in head.parameters():
            torch.nn.init.normal_(parameter)
    scalars, scale = torch.randn(12, 6, dtype=torch.float64), [torch.tensor(0.5 + k).double() for k in range(count)]
    present = [k != 1 for k in range(count)]
    tile_branch = torch.tensor([0, 2, 0] if count > 1 else [], dtype=torch.int64)
    stacked = EnergyHead.stacked(heads, scale, present)(scalars, tile_branch)
    owner = tile_branch.repeat_interleave(4) if count > 1 else torch.zeros(12, dtype=torch.int64)
    alone = torch.stack([head(scalars) * unit for head, unit in zip(heads, scale, strict=True)])
    expected = alone.gather(0, owner[None])[0]
    torch.testing.assert_close(stacked, expected, rtol=1e-13, atol=1e-13)
    parameters = [p for head, there in zip(heads, present, strict=True) if there for p in head.parameters()]
    for found, wanted in zip(
        torch.autograd.grad(stacked.square().sum(), parameters, retain_graph=True),
        torch.autograd.grad(expected.square().sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    if count > 1:
        weight = heads[1].linear.weight
        (absent,) = torch.autograd.grad(stacked.sum(), [weight], allow_unused=True)
        assert absent is None


def test_normalised_vectors_turn_and_stay_bounded() -> None:
    v = torch.randn(7, 3, 4, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    rotated = torch.einsum("xy,nyc->nxc", turn, v)
    torch.testing.assert_close(normalised(rotated), torch.einsum("xy,nyc->nxc", turn, normalised(v)))
    assert normalised(1e6 * v).square().sum(1).mean(1).max() <= 1.0
    torch.testing.assert_close(normalised(1e-6 * v), 1e-6 * v, rtol=1e-9, atol=0)


PLACES = """H 1 1, He 1 18, Be 2 2, B 2 13, Cl 3 17, Sc 4 3, Zn 4 12, La 6 3, Lu 6 3, Hf 6 4, Pb 6 14, U 7 3, Og 7 18"""


@pytest.mark.parametrize("place", PLACES.split(", "))
def test_places_in_the_periodic_table(place: str) -> None:
    symbol, period, group = place.split()
    assert period_and_group(NUMBERS[symbol]) == (int(period), int(group))


def test_symbols_and_features() -> None:
    assert all(NUMBERS[s] == atomic_numbers[s] for s in SYMBOLS[1:])
    table = element_features()
    assert table.shape == (119, 28)
    assert not table[0].any()
    np.testing.assert_array_equal(table[1:, :7].sum(axis=1), 1)
    np.testing.assert_array_equal(table[1:, 7:25].sum(axis=1), 1)
    apart = np.linalg.norm(table[NUMBERS["Na"]] - table[NUMBERS["Cl"]])
    assert np.linalg.norm(table[NUMBERS["Na"]] - table[NUMBERS["K"]]) < apart


def test_elements_by_features_alone() -> None:
    """Embeddings are linear in period, group and radius."""
    torch.manual_seed(0)
    embed = ElementFeatures(16).double()
    numbers = torch.arange(1, 119)
    found = embed(numbers)
    np.testing.assert_allclose(
        found.numpy(force=True), element_features()[1:] @ embed.weight.numpy(force=True), atol=1e-6
    )
    assert torch.linalg.matrix_rank(found) == 16
    assert torch.cdist(found, found).fill_diagonal_(1.0).min() > 1e-3  # no two elements are the same
    by_symbol = dict(zip(SYMBOLS[1:], found, strict=True))
    radius = torch.from_numpy(element_features()[:, 27])
    known = {s: by_symbol[s] - radius[NUMBERS[s]] * embed.weight[27] for s in ("Na", "K", "Cl", "Br")}
    torch.testing.assert_close(
        known["K"] - known["Na"], known["Br"] - known["Cl"], rtol=0, atol=1e-6
    )  # period 4 less period 3
    with torch.autocast("cpu", torch.bfloat16):
        assert embed.float()(numbers).dtype == torch.float32
    assert set(embed.state_dict()) == {"weight"}


@pytest.mark.parametrize("elements", ["periodic-table", "random", "features"])
def test_what_tells_elements_apart(elements: str) -> None:
    """Every choice gives the encoder one row per element; only `features` has no free number for each."""
    content = {
        "datasets": {"a": {"format": "extxyz", "path": "a.extxyz"}},
        "model": {"encoder": {"kind": "egnn", "width": 8, "layers": 1, "elements": elements}},
    }
    embedding = build_model(parse_recipe(content, where="test"), {"a": LabelSpread(0.2, 0.6, 300)}).encoder.embedding
    assert embedding(torch.tensor([1, 118])).shape == (2, 8)
    assert sum(p.numel() for p in embedding.parameters()) == (28 if elements == "features" else 119) * 8


def test_a_recipe_becomes_the_same_model_twice() -> None:
    content = {
        "datasets": {name: {"format": "extxyz", "path": f"{name}.extxyz"} for name in ("a", "b")},
        "branches": {"one": ["a", "b"]},
        "model": {"encoder": {"width": 8, "layers": 1}, "force_head": {"kind": "conservative"}},
    }
    recipe = parse_recipe(content, where="test")
    spreads = {"a": LabelSpread(0.2, 0.6, 300), "b": LabelSpread(0.5, None, 100)}
    first, second = build_model(recipe, spreads), build_model(recipe, spreads)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])
    branch = first.branch("one")
    assert float(branch.forces_scale) == pytest.approx(0.6)  # only `a` has forces
    assert float(branch.energy_scale) == pytest.approx(0.6)  # the larger of 0.275 eV and 0.6 eV/Å times 1 Å
    paper = build_model(parse_recipe(content | {"branches": "per-dataset"}, where="test"), spreads)
    assert paper.branch("b").forces is None
