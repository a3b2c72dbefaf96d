"""Models that take charge and spin, where they are used: both are stated, or nothing is predicted."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write

import ramify
from ramify.errors import RamifyError, RamifyWarning
from ramify.finetune.resolve import FinetuneRequest
from ramify.finetune.run import finetune
from ramify.inference.export.exported import write_export
from ramify.inference.jobs.predict_file import predict_file
from ramify.inference.model import Model, load
from ramify.prepare.prepare import prepare_dataset
from ramify.recipe import Recipe
from ramify.route.features import features
from ramify.structures import Structures
from ramify.train.reporting import Callbacks
from tests.small import make_recipe, tensors, train

NEUTRAL, CATION = {"charge": 0, "spin": 1}, {"charge": 1, "spin": 2}


def waters(count: int = 30, *, stated: bool = True) -> list[Atoms]:
    """Water and its cation, 3 eV higher; harmonic in the distances."""
    images = []
    for index in range(count):
        atoms = molecule("H2O")
        atoms.rattle(0.05, seed=index // 2)
        bonds = atoms.positions[1:] - atoms.positions[0]
        lengths = np.linalg.norm(bonds, axis=1)
        pull = -40.0 * ((lengths - 0.97) / lengths)[:, None] * bonds  # of the bonds on the hydrogen atoms, eV/Å
        state = (NEUTRAL, CATION)[index % 2] if stated else {}
        energy = -50.0 + 20 * float(((lengths - 0.97) ** 2).sum()) + 3.0 * (index % 2 if stated else 0)
        atoms.info = {"source": f"g{index // 2}", **state}
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=np.vstack([-pull.sum(0), pull]))
        images.append(atoms)
    return images


def recipe_of(folder: Path, name: str, images: list[Atoms], conditions: list[str], **changes: Any) -> Recipe:
    write(folder / f"{name}.xyz", images, format="extxyz")
    keys = {"charge_key": "charge", "spin_key": "spin"} if "charge" in images[0].info else {}
    entry = {"format": "extxyz", "path": str(folder / f"{name}.xyz"), "group_key": "source", **keys}
    made = make_recipe(
        folder, {name: entry}, model__conditions=conditions, model__force_head__kind="conservative", **changes
    )
    prepare_dataset(name, made.datasets[name], Path(made.stores), base=folder)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs `ions`, with charge and spin, and `plain`, without, on the same data."""
    path = tmp_path_factory.mktemp("conditions")
    train(recipe_of(path, "ions", waters(), ["charge", "spin"]), path / "ions-run")
    train(recipe_of(path, "plain", waters(stated=False), []), path / "plain-run")
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load(folder / "ions-run", precision="fp64")


def of(**info: Any) -> Atoms:
    atoms = molecule("H2O")
    atoms.info = info
    return atoms


def test_predictions_need_both(model: Model) -> None:
    energies = [model.predict(of(**state)).energy for state in (NEUTRAL, CATION)]
    assert abs(energies[0] - energies[1]) > 1e-6
    for info, absent in (({}, "charge"), ({"charge": 0}, "spin"), ({"charge": "+", "spin": 1}, "charge")):
        with pytest.raises(RamifyError, match=rf"no {absent}.*atoms\.info\['{absent}'\].*Calculator"):
            model.predict(of(**info))
    with pytest.raises(RamifyError, match="charge 1 leaves 9 electrons, the multiplicity is 1"):
        model.predict(of(charge=1, spin=1))
    assert model.predict(of(), charge=1, spin=2).energy == energies[1]
    assert model.predict(of(**NEUTRAL), charge=1, spin=2).energy == energies[0]  # that of the structure comes first
    found = model.predict([of(**NEUTRAL), of(), of(**CATION)], skip=True)
    assert list(found.refused) == [1]
    np.testing.assert_allclose(found.energy[[0, 2]], energies, rtol=1e-12)


def test_calculator(model: Model) -> None:
    atoms = of(**NEUTRAL)
    atoms.calc = ramify.Calculator(model)
    neutral = atoms.get_potential_energy()
    atoms.info.update(CATION)
    cation = atoms.get_potential_energy()  # computed again although no atom moved
    assert neutral == pytest.approx(model.predict(of(**NEUTRAL)).energy, abs=1e-9)
    assert cation == pytest.approx(model.predict(of(**CATION)).energy, abs=1e-9)
    bare = of()
    bare.calc = ramify.Calculator(model, charge=1, spin=2)
    assert bare.get_potential_energy() == pytest.approx(cation, abs=1e-9)
    bare.calc = ramify.Calculator(model)
    with pytest.raises(RamifyError, match="no charge"):
        bare.get_potential_energy()


def test_files_and_exports(model: Model, folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "in.xyz", [of(**NEUTRAL), of(), of(**CATION)], format="extxyz")
    predict_file(model, tmp_path / "in.xyz", tmp_path / "out.xyz", ["ions"])
    images = read(tmp_path / "out.xyz", ":")
    assert [a.info["source_index"] for a in images] == [0, 2]
    assert images[1].info["charge"] == 1
    assert "no spin" in (tmp_path / "out.xyz.skipped.jsonl").read_text()
    again = load(write_export(model.saved, tmp_path / "export"), precision="fp64")
    assert again.options.conditions == ("charge", "spin")
    assert again.predict(of(**CATION)).energy == model.predict(of(**CATION)).energy
    _, by_state = features(model, Structures.from_ase([of(**NEUTRAL), of(**CATION), of(**NEUTRAL)]))
    np.testing.assert_allclose(by_state[0], by_state[2], rtol=1e-9)
    assert np.abs(by_state[0] - by_state[1]).max() > 1e-6  # the router can tell the states of one geometry apart
    with pytest.raises(RamifyError, match="no charge"):
        features(model, Structures.from_ase([of()]))


def test_torch_sim(model: Model) -> None:
    torchsim = pytest.importorskip("ramify.inference.integrations.torchsim")
    state = {
        "positions": torch.tensor(of().positions),
        "cell": torch.eye(3, dtype=torch.float64)[None],
        "pbc": False,
        "atomic_numbers": torch.tensor(of().numbers),
    }
    expected = model.predict(of(**CATION)).energy
    given = torchsim.TorchSimModel(model, charge=1, spin=2)(state)
    assert float(given["energy"][0]) == pytest.approx(expected, abs=1e-9)
    within = torchsim.TorchSimModel(model)({**state, "charge": torch.tensor([1]), "spin": torch.tensor([2])})
    assert float(within["energy"][0]) == pytest.approx(expected, abs=1e-9)
    with pytest.raises(RamifyError, match="no charge"):
        torchsim.TorchSimModel(model)(state)
    with pytest.warns(RamifyWarning, match="never saw: charge -2 spin 1"):
        torchsim.TorchSimModel(model, charge=-2, spin=1)(state)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TorchScript's
def test_metatomic(model: Model, tmp_path: Path) -> None:
    """metatomic's calculator passes `atoms.info`, or 0 and 1; impossible values are refused."""
    metatomic = pytest.importorskip("ramify.inference.integrations.metatomic")
    calculator = pytest.importorskip("metatomic_ase").MetatomicCalculator
    path = metatomic.write_metatomic(model.predictor(), tmp_path / "a.pt")
    engine = calculator(str(path), device="cpu", check_consistency=True)
    for state in (NEUTRAL, CATION):
        atoms, expected = of(**state), model.predict(of(**state))
        atoms.calc = engine
        assert atoms.get_potential_energy() == pytest.approx(expected.energy, abs=1e-8)
        np.testing.assert_allclose(atoms.get_forces(), expected.forces, atol=1e-8)
    atoms.info = {"charge": 1}
    with pytest.raises(Exception, match="leaves 9 electrons, which contradicts multiplicity 1"):
        atoms.get_potential_energy()
    atoms.info = {"charge": 2}
    with pytest.warns(UserWarning, match="extrapolation: charge or spin that the branch never saw"):
        atoms.get_potential_energy()


def test_states_without_training_data_warn_once(model: Model, folder: Path, tmp_path: Path) -> None:
    dication = {"charge": 2, "spin": 1}
    said = r"charge or spin that the branch never saw: charge \+2 spin 1 against charge \+1 spin 2, charge 0 spin 1"
    export = load(write_export(model.saved, tmp_path / "export"))
    for predict in (model.predict, export.predict):
        with pytest.warns(RamifyWarning, match=said):
            predict([of(**NEUTRAL), of(**dication)])
    atoms = of(**NEUTRAL)
    atoms.calc = ramify.Calculator(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RamifyWarning)
        atoms.get_potential_energy()
    atoms.info.update(dication)
    with pytest.warns(RamifyWarning, match=said):
        atoms.get_potential_energy()
    with warnings.catch_warnings():
        warnings.simplefilter("error", RamifyWarning)
        atoms.rattle(0.01)
        atoms.get_potential_energy()
    write(tmp_path / "in.xyz", [of(**NEUTRAL), of(**dication)], format="extxyz")
    assert predict_file(model, tmp_path / "in.xyz", tmp_path / "out.xyz", ["ions"]).warnings == 1


@pytest.mark.parametrize("mode", ["keep-branch", "frozen-encoder"])
def test_conditions_are_added_by_fine_tuning(folder: Path, tmp_path: Path, mode: str) -> None:
    """They start without effect and are trained, also beside a frozen encoder."""
    recipe = recipe_of(tmp_path, "ions", waters(), ["charge", "spin"], train__max_steps=4)
    content = recipe.model_copy(update={"model": recipe.model.model_validate({"conditions": ["charge", "spin"]})})
    run = finetune(FinetuneRequest(mode, str(folder / "plain-run"), "plain"), content, tmp_path / "run", Callbacks())
    modulation = run.trainer.model.encoder.conditions.modulation
    assert not modulation.any()
    old = load(folder / "plain-run").network.encoder.state_dict()
    new = run.trainer.model.encoder.state_dict()
    assert all(torch.equal(new[name], tensor) for name, tensor in old.items())
    run.fit()
    assert modulation.abs().max() > 0
    trained = tensors(tmp_path / "run")
    assert trained["training encoder.conditions.modulation"].abs().max() > 0
    embedding = "encoder.embedding.weight"
    moved = not torch.equal(trained[f"training {embedding}"], load(folder / "plain-run").saved.weights[embedding])
    assert moved == (mode == "keep-branch")


def test_fine_tuning_on_data_without_values_is_refused(folder: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "other", waters(stated=False), [], train__max_steps=2)
    content = recipe.model_copy(update={"model": recipe.model.model_validate({})})
    request = FinetuneRequest("new-branch", str(folder / "ions-run"), "ions")
    with pytest.raises(
        RamifyError, match=r"15 of 15 structures of dataset 'other' have no charge.*other\.xyz\["
    ) as error:
        finetune(request, content, tmp_path / "run", Callbacks())
    assert "charge: 0" in str(error.value)
