"""Every kind of encoder in all uses of a model: trained, resumed, exported, loaded, predicted with, fine-tuned."""

import pickle
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from ramify.errors import RamifyError
from ramify.finetune.resolve import FinetuneRequest
from ramify.finetune.run import finetune
from ramify.inference.export.exported import write_export
from ramify.inference.integrations.mliap import write_mliap
from ramify.inference.memory import memory_needed
from ramify.inference.model import load, read_saved
from ramify.model.lora import is_lora_weight
from ramify.recipe import Recipe, encoder_kinds, parse_recipe
from ramify.train.reporting import Callbacks
from ramify.train.start import resume_run, start_run
from tests.inference.integrations.mliap_domains import assert_equal_to_ase, rocksalt, stiffened
from tests.small import assert_same, make_recipe, prepare_stores, tensors, train

CUTS = {"layers": 2, "width": 8, "radial": 4, "cutoff": 4.0, "max_neighbors": 8}
OWN: dict[str, dict[str, Any]] = {
    "egnn": {"vector_channels": 4},
    "many_body": {"channels": 6, "passed": 2, "vector_channels": 4},
    "tensornet": {"channels": 6, "vector_channels": 4},
}
PYG = ("visnet", "dimenet++", "gatv2", "pna")
"""Layers of PyTorch Geometric, one of each form: a network with vectors, one of triplets, two convolutions."""
OWN |= {f"pyg:{layer}": {"kind": "pyg", "layer": layer, "heads": 2} for layer in PYG}
KINDS = [*(kind for kind in encoder_kinds() if kind != "pyg"), *(f"pyg:{layer}" for layer in PYG)]
NO_VECTORS = {"schnet", *(f"pyg:{layer}" for layer in PYG[1:])}


def kinds(quick: tuple[str, ...] = (), *, forces: bool = False) -> list[Any]:
    """Every kind, or every kind with each kind of forces; layers of PyTorch Geometric are slow unless `quick`."""
    names = [f"{kind}-{of}" for kind in KINDS for of in ("conservative", "direct")] if forces else KINDS
    return [pytest.param(n, marks=[pytest.mark.slow] if n.startswith("pyg") and n not in quick else []) for n in names]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinds")
    prepare_stores(folder)
    return folder


def recipe_of(folder: Path, kind: str, forces: str, **changes: Any) -> Recipe:
    """Molecules without stress and crystals with it."""
    from tests.small import ENTRIES

    if kind.startswith("pyg") and find_spec("torch_geometric") is None:
        pytest.skip("needs torch_geometric")
    entries = {name: ENTRIES[name] for name in ("ani1x", "mptrj")}
    keys: dict[str, Any] = {"model__encoder": {"kind": kind} | CUTS | OWN.get(kind, {})}
    keys |= {"model__force_head__kind": forces, "train__max_steps": 3, "train__batch": 4, "train__evaluate_every": 10}
    if forces == "conservative":
        keys |= {"objective": {"stress": 0.1}, "model__repulsion": "zbl"}
    return make_recipe(folder, entries, **keys | changes)


@pytest.fixture(params=kinds(("pyg:visnet-direct", "pyg:gatv2-conservative"), forces=True))
def case(request: pytest.FixtureRequest) -> tuple[str, str]:
    kind, forces = request.param.split("-")
    if forces == "direct" and kind in NO_VECTORS:
        pytest.skip("it makes no vectors")
    return kind, forces


class Cut(Exception):
    """Raised by a test to interrupt a run."""


def test_trained_resumed_exported_loaded_and_tuned(stores: Path, tmp_path: Path, case: tuple[str, str]) -> None:
    kind, forces = case
    recipe = recipe_of(stores, kind, forces, train__checkpoint_every=0.001)
    train(recipe, tmp_path / "run")

    def cut(step: int, total: int) -> None:
        if step == 2:
            raise Cut

    trainer = start_run(recipe, tmp_path / "cut", Callbacks(step=cut))
    with pytest.raises(Cut):
        trainer.fit()
    resume_run(tmp_path / "cut", Callbacks()).fit()
    assert_same(tensors(tmp_path / "cut"), tensors(tmp_path / "run"))

    trained = load(tmp_path / "run")
    loaded = load(write_export(read_saved(tmp_path / "run"), tmp_path / "export"))
    assert loaded.options.encoder == recipe.model.encoder
    for branch, atoms in (("ani1x", molecule("CH3OH")), ("mptrj", bulk("Al", cubic=True))):
        atoms.rattle(0.05, seed=0)
        found, expected = loaded.predict(atoms, branch), trained.predict(atoms, branch)
        assert found.energy == expected.energy
        assert np.array_equal(found.forces, expected.forces)
        assert (found.stress is not None) == (forces == "conservative" and branch == "mptrj")

    content = recipe.model_dump(mode="json", exclude_unset=True)
    content |= {"model": {}, "objective": {}}
    wish = FinetuneRequest("lora", str(tmp_path / "export"), None, 2)
    content["datasets"] = {"ani1x": content["datasets"]["ani1x"]}
    tuning = finetune(wish, parse_recipe(content, "tuning"), tmp_path / "tuned", Callbacks())
    start = {n: p.detach().clone() for n, p in tuning.trainer.model.named_parameters() if is_lora_weight(n)}
    tuning.fit()
    assert start
    assert any(not torch.equal(p, start[n]) for n, p in tuning.trainer.model.named_parameters() if n in start)
    tuned = load(tmp_path / "tuned", checkpoint="latest")
    assert tuned.predict(molecule("CH3OH"), "ani1x").energy != trained.predict(molecule("CH3OH"), "ani1x").energy


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TorchScript's
def test_metatomic_and_mliap(stores: Path, tmp_path: Path, case: tuple[str, str]) -> None:
    """metatomic: equal to `predict` on dense crystals, molecules and a single atom, none of which was the traced
    example. LAMMPS's mliap: equal for one process, and for three, of which one has no atoms."""
    pytest.importorskip("metatomic.torch")
    from metatomic_ase import MetatomicCalculator

    from ramify.inference.integrations.metatomic import write_metatomic

    kind, forces = case
    train(recipe_of(stores, kind, forces), tmp_path / "run")
    model = load(tmp_path / "run", precision="fp64")
    for branch, images in (("mptrj", [bulk("Cu", cubic=True), bulk("Al")]), ("ani1x", [molecule("CH3OH"), Atoms("C")])):
        path = write_metatomic(model.predictor(branch), tmp_path / f"{branch}.pt")
        calculator = MetatomicCalculator(str(path), device="cpu")
        for atoms in images:
            atoms.rattle(0.05, seed=1)
            expected = model.predict(atoms, branch)
            atoms.calc = calculator
            assert atoms.get_potential_energy() == pytest.approx(expected.energy, abs=1e-8)
            if forces == "conservative":
                np.testing.assert_allclose(atoms.get_forces(), expected.forces, atol=1e-9)
    if kind.startswith("pyg") and forces == "conservative":
        with pytest.raises(RamifyError, match="PyG does not exchange features between domains"):
            write_mliap(model, "mptrj", tmp_path / "mptrj.pkl")
    elif forces == "conservative":
        source = stiffened(model, tmp_path / "stiff")
        with open(write_mliap(source, "mptrj", tmp_path / "mptrj.pkl"), "rb") as file:
            unified = pickle.load(file)
        for domains in (1, 3):
            assert_equal_to_ase(unified, source, "mptrj", rocksalt(), domains)


@pytest.mark.parametrize("kind", kinds(tuple(KINDS)))
def test_bf16(stores: Path, tmp_path: Path, kind: str) -> None:
    recipe = recipe_of(
        stores, kind, "conservative", train__precision="bf16", train__slow_precision="allow", objective={}
    )
    trainer = train(recipe, tmp_path / "run")
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    assert np.isfinite(load(tmp_path / "run").predict(molecule("CH3OH"), "ani1x").energy)


@pytest.mark.parametrize("kind", kinds())
def test_memory_is_that_of_the_kind(stores: Path, kind: str) -> None:
    """Twice as many layers take more memory with every kind; so does a wider table of neighbours."""
    small = recipe_of(stores, kind, "conservative").model
    large = small.model_copy(update={"encoder": small.encoder.model_copy(update={"layers": 4})})
    needed = [memory_needed(options, "conservative", 1000, 8000) for options in (small, large)]
    least = 1.05 if kind == "pyg:dimenet++" else 1.3  # the basis of triplets, common to all layers, is most of it
    assert least * needed[0] < needed[1] < 3 * needed[0]
    wide = memory_needed(small, "conservative", 1000, 8000, 16)
    assert (wide > needed[0]) == (kind in ("many_body", "pyg:dimenet++"))
