"""A router fitted on molecules and crystals distinguishes them, and abstains for other structures."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import write

from ramify.errors import RamifyError
from ramify.inference.export.exported import write_export
from ramify.inference.model import load, read_saved
from ramify.inference.saved import ROUTER
from ramify.route.features import features
from ramify.route.fit import fit_router
from ramify.route.route_file import route_file
from ramify.route.router import Router, router_of
from ramify.route.spread import spreads
from ramify.structures import Structures
from tests.cli.conftest import call
from tests.small import make_recipe, prepare_stores, train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of branches ani1x, mptrj and bare (water without forces), with a router."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("route")
    entries = prepare_stores(folder)
    chosen = {name: entries[name] for name in ("ani1x", "mptrj", "bare")}
    train(make_recipe(folder, chosen, model__force_head__kind="conservative"), folder / "run")
    fit_router(folder / "run")
    return folder / "run"


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """A file of structures: known, strange, and none at all."""
    ethanol = molecule("CH3CH2OH")
    ethanol.rattle(0.03, seed=0)
    packed = Atoms("H8", np.random.default_rng(0).uniform(0, 2.0, (8, 3)))
    images = [ethanol, bulk("MgO", "rocksalt", a=4.2), molecule("PH3"), packed, Atoms("H2", np.zeros((2, 3)))]
    write(tmp_path / "asked.xyz", images, format="extxyz")
    return tmp_path / "asked.xyz"


def test_it_chooses_and_abstains(run: Path, asked: Path) -> None:
    lines = list(route_file(load(run), asked))
    assert [line.choice.branch for line in lines[:2]] == ["ani1x", "mptrj"]
    assert all(line.choice.confidence > 0.8 for line in lines[:2])
    assert all(line.choice.branch is None for line in lines[2:])
    assert lines[4].choice.why.startswith("no branch predicts it: two atoms on one spot")
    assert "abstains" in lines[3].text()
    for line in lines[:4]:
        assert sum(line.choice.probabilities.values()) == pytest.approx(1.0)


def test_it_knows_how_well_it_does(run: Path) -> None:
    """The figures are those of structures that neither weights nor temperature were fitted on."""
    measured = Router.read(run / ROUTER).measured
    assert measured["accuracy"] > 0.9
    assert 0 <= measured["calibration_error"] < 0.15
    assert set(measured["accuracy_by_branch"]) == {"ani1x", "mptrj", "bare"}


def test_it_abstains_below_the_confidence(run: Path, asked: Path) -> None:
    lines = list(route_file(load(run), asked, confident=1.1))
    assert {line.choice.why.partition(":")[0] for line in lines[:2]} == {"not sure"}


def test_it_goes_with_an_export(run: Path, asked: Path, tmp_path: Path) -> None:
    """A message states if the suitable branch is not in the export."""
    write_export(read_saved(run), tmp_path / "model")
    write_export(read_saved(run), tmp_path / "crystals", ["mptrj"])
    found = [list(route_file(load(path), asked)) for path in (run, tmp_path / "model", tmp_path / "crystals")]
    assert found[1] == found[0]
    assert found[2][0].choice.branch is None
    assert "branch 'ani1x', which this model does not have" in found[2][0].choice.why
    assert found[2][1].choice.branch == "mptrj"
    (tmp_path / "model" / ROUTER).write_bytes(b"no")
    with pytest.raises(RamifyError, match=r"router\.safetensors is damaged: its checksum"):
        load(tmp_path / "model")


def test_a_router_belongs_to_its_weights(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RamifyError, match="has no router"):
        router_of(load(run / "checkpoints/best"))
    shutil.copytree(run, tmp_path / "other", symlinks=True)
    replace(Router.read(run / ROUTER), encoder_sha256="0" * 64).write(tmp_path / "other" / ROUTER)
    with pytest.raises(RamifyError, match="fitted to other weights"):
        router_of(load(tmp_path / "other"))


def test_features_do_not_depend_on_company_or_pose(run: Path) -> None:
    model = load(run, precision="fp64")
    atoms = molecule("CH3CH2OH")
    turned = atoms.copy()
    turned.rotate(50, (1, 2, 3))
    composition, encoded = features(model, Structures.from_ase([atoms, bulk("Al"), turned]))
    alone = features(model, Structures.from_ase([atoms]))
    np.testing.assert_allclose(encoded[0], alone[1][0], atol=1e-9)
    np.testing.assert_allclose(encoded[0], encoded[2], atol=1e-5)  # positions are kept in float32
    assert composition[0].sum() == pytest.approx(1.0)
    assert composition[0, 6] == pytest.approx(2 / 9)
    assert composition[1, -1] == 1.0


def test_spread_is_that_of_the_predictions(run: Path) -> None:
    """Standard deviations by hand, over the branches trained on the elements; bare has no forces."""
    model = load(run)
    atoms = molecule("H2O")
    found, unknown = spreads(model, Structures.from_ase([atoms, molecule("PH3"), bulk("Al")]))
    per_atom, forces = [], []
    for name in found[0].branches:
        one = model.predict(atoms, name)
        references = model.branches[name].datasets[name].references
        per_atom.append((one.energy - references["O"] - 2 * references["H"]) / 3)
        forces += [one.forces] if one.forces is not None else []
    assert set(found[0].branches) >= {"ani1x", "bare"}
    assert found[0].energy == pytest.approx(np.std(per_atom), rel=1e-6)
    if len(forces) > 1:
        assert found[0].forces == pytest.approx(np.sqrt(np.var(forces, axis=0).mean()), rel=1e-6)
    assert found[2].energy is None
    assert unknown.keys() <= {1}


def test_command_line(run: Path, asked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("route", "--fit", run, "--json") == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] > 0.9
    assert call("route", asked, "--model", run) == 0
    said = capsys.readouterr().out
    assert "ani1x (" in said
    assert "abstains, " in said
    assert call("route", asked, "-m", run, "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["choice"]["branch"] == "ani1x"
    assert call("route", asked) == 1
