"""Small trained models, and structures to predict."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from ramify.inference.model import Model, load
from tests.small import make_recipe, prepare_stores, train


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """More threads would not be faster with such small models."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs `direct` (branches ani1x, mptrj and bare, the last without forces) and `conservative`
    (branches qm7x, mptrj, and mixed, which reads ani1x and bare)."""
    folder = tmp_path_factory.mktemp("inference")
    entries = prepare_stores(folder)
    direct = {name: entries[name] for name in ("ani1x", "mptrj", "bare")}
    train(make_recipe(folder, direct), folder / "direct")
    train(
        make_recipe(
            folder,
            entries,
            branches={"qm7x": ["qm7x"], "mptrj": ["mptrj"], "mixed": ["ani1x", "bare"]},
            model__force_head__kind="conservative",
            train__max_steps=40,
        ),
        folder / "conservative",
    )
    return folder


@pytest.fixture(scope="session")
def direct(runs: Path) -> Model:
    """The model with direct forces."""
    return load(runs / "direct")


@pytest.fixture(scope="session")
def conservative(runs: Path) -> Model:
    """The model with conservative forces."""
    return load(runs / "conservative")


@pytest.fixture(scope="session")
def exact(runs: Path) -> Model:
    """The model with conservative forces, in float64."""
    return load(runs / "conservative", precision="fp64")


@pytest.fixture(scope="session")
def stiff(runs: Path) -> Model:
    """The same with forces of ordinary size, about 1 eV/Å: so little training leaves them near zero."""
    model = load(runs / "conservative", precision="fp64")
    for branch, atoms in (("qm7x", molecule("CH3CH2OH")), ("mptrj", bulk("Si")), ("mixed", molecule("CH4"))):
        atoms.rattle(0.05, seed=0)
        dataset = next(iter(model.branches[branch].datasets))
        forces = model.predict(atoms, branch, dataset=dataset).forces
        model.network.branch(branch).energy_scale.div_(float(np.sqrt((forces**2).mean())))
    return model


@pytest.fixture
def molecules() -> list[Atoms]:
    """Molecules of elements that qm7x and ani1x have, moved a little."""
    rng = np.random.default_rng(0)
    images = [molecule(name) for name in ("CH3CH2OH", "H2O", "C6H6", "NH3", "CH4", "CH3NO2")]
    for atoms in images:
        atoms.rattle(0.05, rng=rng)
    return images


@pytest.fixture
def crystals() -> list[Atoms]:
    """Crystals of elements that mptrj has, with sheared cells and moved atoms; one has 43 neighbours at 5 Å."""
    rng = np.random.default_rng(1)
    images = [bulk("Al", cubic=True), bulk("MgO", "rocksalt", a=4.2), bulk("Cu", cubic=True), bulk("Si")]
    for atoms in images:
        atoms.rattle(0.05, rng=rng)
        atoms.set_cell(atoms.cell.array + rng.normal(0, 0.05, (3, 3)), scale_atoms=True)
    return images
