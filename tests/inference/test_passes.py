"""Passes for inference against the network as training runs it, and compiled against plain passes; in float64."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from ramify.batches.batch import Batch, BatchPart
from ramify.errors import RamifyWarning
from ramify.files import cache_folder
from ramify.inference.branches import BranchInfo, DatasetInfo
from ramify.inference.integrations.ase import Calculator
from ramify.inference.model import Model
from ramify.inference.passes import compiled
from ramify.inference.passes.compiled import CompiledPass, compiled_pass
from ramify.inference.passes.plain import BranchPass, Pass, PlainPass
from ramify.inference.predictor import Predictor
from ramify.inference.saved import Saved
from ramify.model.branch import ForceKind
from ramify.model.build import LabelSpread, build_parts
from ramify.model.compiled import program_key
from ramify.model.multibranch import MultiBranch
from ramify.neighbors.edges import find_edges
from ramify.recipe import ModelOptions
from ramify.structures import Structures
from tests.processes.compiler import hide_compiler, needs_compiler

CUTOFF, MAX_NEIGHBORS = 4.5, 8
SIZES = {"layers": 2, "width": 12, "radial": 4, "cutoff": CUTOFF, "max_neighbors": MAX_NEIGHBORS}
OWN = {
    "egnn": {"vector_channels": 4, "message_layers": 1},
    "many_body": {"channels": 6, "passed": 2, "vector_channels": 4},
}


@pytest.fixture(params=list(OWN))
def kind(request: pytest.FixtureRequest) -> str:
    """Of the encoder."""
    found: str = request.param
    return found


def network_of(kind: str, forces: ForceKind, **keys: int) -> tuple[MultiBranch, ModelOptions]:
    """A network in float64 with weights of ordinary size and branches `a` and `b` of different scales; with charge and
    spin as conditions, and the repulsion of nuclei if forces are conservative."""
    head = {"layers": 1, "width": 8}
    encoder = {"kind": kind} | SIZES | OWN[kind] | keys
    content = {"encoder": encoder, "energy_head": head, "force_head": head | {"kind": forces}}
    content |= {"conditions": ["charge", "spin"], "repulsion": "zbl" if forces == "conservative" else "none"}
    options = ModelOptions.model_validate(content)
    spreads = {"a": [LabelSpread(0.7, 0.9, 10)], "b": [LabelSpread(1.4, 1.3, 10)]}
    network = build_parts(options, spreads).double().requires_grad_(False)
    torch.manual_seed(0)
    for parameter in network.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))  # fresh heads predict zero
    return network, options


@pytest.fixture
def images() -> list[Atoms]:
    """Molecules, one atom, and rattled crystals; the last with more neighbours than the limit."""
    rng = np.random.default_rng(0)
    found = [molecule("CH3CH2OH"), molecule("H2O"), Atoms("He"), bulk("Si"), bulk("Cu", cubic=True)]
    for charge, atoms in enumerate(found):
        atoms.rattle(0.1, rng=rng)
        atoms.info = {"charge": charge, "spin": 1 + charge % 2}
    return found


def predictor_of(network: MultiBranch, options: ModelOptions, forces: ForceKind, run: Pass) -> Predictor:
    """A predictor of branch `a` with reference energies of zero."""
    info = info_of("a")
    return Predictor(network, options, BranchInfo("a", {"a": info}, forces), info, run)


def info_of(name: str) -> DatasetInfo:
    """A dataset with reference energies of zero."""
    return DatasetInfo(
        name=name,
        theory="",
        references=dict.fromkeys(("H", "He", "C", "O", "Si", "Cu"), 0.0),
        rank=1,
        spread=LabelSpread(0.7, 0.9, 10),
        structures=10,
        atoms=100,
        min_distance=None,
        manifest_sha256="",
    )


@pytest.mark.parametrize("forces", ["conservative", "direct"])
def test_equal_to_the_network_in_training(kind: str, forces: ForceKind, images: list[Atoms]) -> None:
    network, options = network_of(kind, forces)
    structures = Structures.from_ase(images)
    edges = find_edges(structures, CUTOFF, MAX_NEIGHBORS)
    assert len(edges.cutoff_pairs)
    states = np.stack([structures.charge, structures.spin], axis=1)
    batch = Batch.make([BatchPart("a", "a", structures, edges, np.zeros(119), states)], torch.float64)
    expected = network.eval()(batch, stress=True)
    found = predictor_of(network, options, forces, PlainPass(network, "a")).predict_edges(structures, edges)
    energy = expected.energy.detach().numpy() * structures.n_atoms
    np.testing.assert_allclose(found.energy, energy, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.forces, expected.forces.detach(), rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(found.stress, expected.stress.detach(), rtol=1e-11, atol=1e-12)
    assert np.isnan(found.stress).all() == (forces == "direct")


def test_a_key_depends_on_the_shape_and_the_constants_of_a_model_and_not_on_its_weights() -> None:
    """Programs contain the cutoff, and factors that follow from other options, as numbers."""
    network, _ = network_of("egnn", "conservative")
    key = program_key(BranchPass(network, "a"))
    assert program_key(BranchPass(network, "b")) == key
    changes = {"layers": 1}, {"cutoff": 5}, {"max_neighbors": 9}
    others = [network_of("egnn", "conservative", **keys)[0] for keys in changes]
    for other in (network_of("egnn", "direct")[0], *others, network.float()):
        assert program_key(BranchPass(other, "a")) != key


def test_the_plain_pass_replaces_a_program_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    network = network_of("egnn", "direct")[0]

    def fails(*_: object) -> None:
        raise RuntimeError("no such operation")

    monkeypatch.setattr(compiled, "_exported", fails)
    monkeypatch.setattr(compiled, "require_compiler", lambda *_, **__: None)
    with pytest.warns(RamifyWarning, match=r"(?s)'a' is used without.*compile=True.*no such operation"):
        run = compiled_pass(network, "a", cache=tmp_path, on_compile=lambda: None)
    assert isinstance(run, PlainPass)
    assert not list(tmp_path.iterdir())

    monkeypatch.undo()
    hide_compiler(monkeypatch)
    with pytest.warns(RamifyWarning, match=r"(?s)compile=True.*C\+\+ compiler.*fix: .*without compile=True"):
        assert isinstance(compiled_pass(network, "a", cache=tmp_path), PlainPass)


def test_the_cache_is_in_the_folder_that_the_environment_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAMIFY_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("RAMIFY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "ramify"


@pytest.mark.slow
@pytest.mark.timeout(900)
@needs_compiler
def test_one_program_for_all_branches_and_sizes(
    images: list[Atoms], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled once, with the weights of each branch; sizes below two take the plain pass."""
    monkeypatch.setenv("RAMIFY_CACHE", str(tmp_path))
    network, options = network_of("many_body", "conservative", layers=1, l_max=0)
    infos = {name: BranchInfo(name, {name: info_of(name)}, "conservative", options.conditions) for name in "ab"}
    saved = Saved(Path(), {}, "fp64", {name: dict(info.datasets) for name, info in infos.items()}, {}, {}, 0, None, "")
    made: list[str] = []
    plain = Model(infos, network, options, saved, on_compile=lambda: made.append("program"))
    for branch in "ab":
        calculators = [Calculator(plain, branch, compile=compile) for compile in (True, False)]
        assert isinstance(calculators[0].predictor.run, CompiledPass)
        for atoms in images:
            for scale in (1.0, 1.1):  # other numbers of edges
                atoms.set_cell(scale * atoms.cell.array, scale_atoms=True)
                for calculator in calculators:
                    calculator.calculate(atoms)
                one, other = (calculator.results for calculator in calculators)
                assert one.keys() == other.keys()
                for name, value in other.items():
                    np.testing.assert_allclose(one[name], value, rtol=1e-10, atol=1e-10)
        found, expected = (calculator.model.predict(images, branch).energy for calculator in calculators)
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)
    assert made == ["program"]
