"""Layers of PyTorch Geometric in the test suite for encoders; their bases and triplets against independent ones."""

import sys
from importlib.util import find_spec
from typing import get_args

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.neighborlist import neighbor_list
from scipy.special import eval_legendre, spherical_jn

from ramify.errors import RamifyError
from ramify.model.build import LabelSpread, build_model
from ramify.model.graph import build_graph
from ramify.recipe import encoder, parse_recipe
from ramify.testing.encoders import EncoderTests

from .conftest import CUTOFF, batch_of

if find_spec("torch_geometric") is None:  # not imported here: `ramify.model.encoders.pyg` does, and undoes its patches
    pytest.skip("needs torch_geometric", allow_module_level=True)

from ramify.model.encoders.pyg.convolutions import softmax
from ramify.model.encoders.pyg.edges import Edges
from ramify.model.encoders.pyg.encoder import PyG
from ramify.model.encoders.pyg.networks import DEGREES, legendre

SIZES = {"layers": 2, "width": 16}


class PyGTests(EncoderTests):
    """What the classes below share."""

    encoder = PyG
    gain = 1.5


class TestCGCNN(PyGTests):
    options = PyG.Options(layer="cgcnn", **SIZES)


class TestDimeNetPP(PyGTests):
    options = PyG.Options(layer="dimenet++", **SIZES)


class TestGATv2(PyGTests):
    options = PyG.Options(layer="gatv2", **SIZES)


class TestGINE(PyGTests):
    options = PyG.Options(layer="gine", **SIZES)


class TestMFC(PyGTests):
    options = PyG.Options(layer="mfc", **SIZES)


class TestPNA(PyGTests):
    options = PyG.Options(layer="pna", **SIZES)


class TestSAGE(PyGTests):
    options = PyG.Options(layer="sage", **SIZES)


class TestSchNet(PyGTests):
    options = PyG.Options(layer="schnet", **SIZES)


class TestViSNet(PyGTests):
    options = PyG.Options(layer="visnet", **SIZES)


def test_every_layer_is_tested() -> None:
    tested = {case.options.layer for case in globals().values() if isinstance(case, type) and hasattr(case, "options")}
    assert tested == set(get_args(PyG.Options.model_fields["layer"].annotation))


def network() -> PyG:
    torch.manual_seed(0)
    return PyG(PyG.Options(layer="dimenet++", layers=1, width=8, radial=3, cutoff=CUTOFF)).double()


def test_spherical_basis() -> None:
    """Bessel functions that vanish at the cutoff and are orthonormal in the ball; Legendre polynomials: by SciPy."""
    dimenet = network().network
    d = torch.linspace(0.4, CUTOFF, 2001, dtype=torch.float64)
    found = dimenet._radial(d).numpy()
    for degree in range(DEGREES):
        for k, zero in enumerate(dimenet.zeros[degree].numpy()):
            expected = spherical_jn(degree, zero * d.numpy()) * dimenet.norm[degree, k].item()
            np.testing.assert_allclose(found[:, degree, k], expected, atol=1e-6)
    np.testing.assert_allclose(found[-1], 0.0, atol=1e-5)
    x = np.linspace(0.0, 1.0, 4001)
    for degree in (0, 3, 6):
        one, other = (
            spherical_jn(degree, CUTOFF * dimenet.zeros[degree, k].item() * x) * dimenet.norm[degree, k].item()
            for k in (0, 2)
        )
        assert np.trapezoid(x**2 * one * one, x) == pytest.approx(1.0, abs=1e-4)
        assert np.trapezoid(x**2 * one * other, x) == pytest.approx(0.0, abs=1e-4)
    cosines = torch.linspace(-1, 1, 21, dtype=torch.float64)
    expected = [np.sqrt((2 * n + 1) / (4 * np.pi)) * eval_legendre(n, cosines.numpy()) for n in range(DEGREES)]
    np.testing.assert_allclose(legendre(cosines, DEGREES).numpy(), np.stack(expected, 1), atol=1e-12)


@pytest.mark.parametrize("atoms", [bulk("Po", "sc", a=3.3), bulk("NaCl", "rocksalt", a=5.0)])
def test_triplets_are_those_of_a_neighbour_list(atoms: Atoms) -> None:
    """Of ASE: an atom reaches its own images, and only the way back to the same image is no triplet."""
    encoder_, batch = network(), batch_of([atoms], torch.float64, None)
    graph = build_graph(batch, CUTOFF, batch.positions)
    edges = Edges.of(graph, encoder_.basis(graph.distance))
    before, after, basis = encoder_.network._triplets(graph, edges)
    real = basis.abs().sum(1) > 0
    cosine = (graph.direction[before] * graph.direction[after]).sum(1)[real]
    lengths = graph.distance[before][real], graph.distance[after][real]
    found = torch.stack([*lengths, cosine], dim=1).tolist()
    i, j, vectors = neighbor_list("ijD", atoms, CUTOFF)  # from i to j
    expected = []
    for e in range(len(i)):  # j -> i
        for f in np.flatnonzero(i == j[e]):  # k -> j
            if j[f] == i[e] and np.allclose(vectors[e] + vectors[f], 0.0):
                continue
            one, other = np.linalg.norm(vectors[f]), np.linalg.norm(vectors[e])
            expected.append((one, other, vectors[e] @ vectors[f] / one / other))
    assert len(expected) > 20
    rounded = [sorted(tuple(np.round(t, 6) + 0.0) for t in triplets) for triplets in (found, expected)]
    np.testing.assert_allclose(*rounded, atol=1e-5)


def test_edges_without_weight_have_no_share() -> None:
    """Even with a score that exceeds all others by far; shares of the others add up to 1."""
    scores = torch.tensor([[1.0], [2.0], [900.0], [-900.0], [3.0]], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([[1.0], [0.5], [0.0], [0.0], [1.0]], dtype=torch.float64)
    index = torch.tensor([0, 0, 0, 1, 1])
    found = softmax(scores, weight, index, 2)
    parts = np.array([1.0, 0.5 * np.e])
    np.testing.assert_allclose(found[:, 0].detach().numpy(), [*parts / parts.sum(), 0.0, 0.0, 1.0], atol=1e-15)
    (slope,) = torch.autograd.grad(found[0, 0], scores)
    assert torch.isfinite(slope).all()


def recipe(forces: str, **keys: object):
    return parse_recipe(
        {
            "datasets": {"a": {"format": "extxyz", "path": "a.xyz"}},
            "model": {"encoder": {"kind": "pyg"} | keys, "force_head": {"kind": forces}},
        },
        "test",
    )


def test_only_visnet_has_direct_forces() -> None:
    spread = {"a": LabelSpread(1.0, 1.0, 10)}
    with pytest.raises(RamifyError, match=r"(?s)force_head\.kind: direct.*kind: pyg.*fix: .*conservative"):
        build_model(recipe("direct", layer="sage", width=8), spread)
    assert build_model(recipe("direct", layer="visnet", width=8), spread).branch("a").force is not None


def test_wrong_keys() -> None:
    with pytest.raises(RamifyError, match=r"model\.encoder\.layer: missing"):
        recipe("conservative")
    with pytest.raises(RamifyError, match=r"model\.encoder\.layer.*'dimenet\+\+'.*'visnet', found 'mace'"):
        recipe("conservative", layer="mace")
    with pytest.raises(RamifyError, match=r"heads: 3 does not divide width: 128"):
        recipe("conservative", layer="gatv2", heads=3)
    assert recipe("conservative", layer="gine", heads=3)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("", ".encoder"):
        monkeypatch.delitem(sys.modules, f"ramify.model.encoders.pyg{name}")
    monkeypatch.setitem(sys.modules, "torch_geometric", None)
    with pytest.raises(RamifyError, match=r"(?s)kind: pyg needs.*torch_geometric.*pip install 'ramify\[pyg\]'"):
        encoder.encoder_class("pyg")
