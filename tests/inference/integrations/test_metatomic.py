"""The metatomic model: equal to `predict` to rounding, derivatives included, through metatomic's own ASE calculator."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from ramify.errors import RamifyError
from ramify.inference.model import Model, load

pytest.importorskip("metatomic.torch", reason="needs the package metatomic-torch")
from metatomic.torch import (
    ModelEvaluationOptions,
    ModelOutput,
    load_atomistic_model,
    systems_to_torch,
)
from metatomic_ase import MetatomicCalculator
from vesin.metatomic import compute_requested_neighbors

from ramify.inference.integrations.metatomic import write_metatomic

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TorchScript's, which metatomic is built on


@pytest.mark.parametrize("kind", ["stiff", "conservative"])
def test_equal_to_predict(request: pytest.FixtureRequest, kind: str, tmp_path: Path, crystals: list[Atoms]) -> None:
    """Crowded crystals, where the reach of every atom is differentiated, and molecules; float64 and float32."""
    model: Model = request.getfixturevalue(kind)
    tolerance = 1e-9 if kind == "stiff" else 1e-5
    rounding = 1e-8 if kind == "stiff" else 1e-3  # total energies of -4,000 eV in float32
    for branch, images in (("mptrj", [*crystals, bulk("Cu").repeat(2)]), ("qm7x", [molecule("CH3CH2OH"), Atoms("C")])):
        path = write_metatomic(model.predictor(branch), tmp_path / f"{branch}.pt")
        calculator = MetatomicCalculator(str(path), check_consistency=True, device="cpu")
        for atoms in images:
            expected = model.predict(atoms, branch)
            atoms.calc = calculator
            assert atoms.get_potential_energy() == pytest.approx(expected.energy, abs=rounding)
            np.testing.assert_allclose(atoms.get_forces(), expected.forces, atol=tolerance)
            if expected.stress is not None:
                np.testing.assert_allclose(atoms.get_stress(voigt=False), expected.stress, atol=tolerance)


def test_direct_forces_are_non_conservative(runs: Path, tmp_path: Path) -> None:
    model = load(runs / "direct", precision="fp64")
    path = write_metatomic(model.predictor("ani1x"), tmp_path / "direct.pt")
    atoms = molecule("CH3OH")
    atoms.calc = MetatomicCalculator(str(path), non_conservative="forces", device="cpu")
    expected = model.predict(atoms, "ani1x").forces
    # metatomic takes the mean force off, as it does for all non-conservative models
    np.testing.assert_allclose(atoms.get_forces(), expected - expected.mean(axis=0), atol=1e-9)


def test_parts_of_systems(stiff: Model, tmp_path: Path) -> None:
    """As for domain decomposition: several systems, energies of selected atoms, by atom or summed."""
    from metatensor.torch import Labels

    model = load_atomistic_model(str(write_metatomic(stiff.predictor("qm7x"), tmp_path / "model.pt")))
    images = [molecule("CH3OH"), molecule("H2O")]
    systems = systems_to_torch(images, dtype=torch.float64)
    compute_requested_neighbors(systems, "angstrom", model)

    def ask(kind: str, selected: "Labels | None") -> torch.Tensor:
        outputs = {"energy": ModelOutput(unit="eV", sample_kind=kind)}
        options = ModelEvaluationOptions(length_unit="angstrom", outputs=outputs, selected_atoms=selected)
        return model(systems, options, check_consistency=True)["energy"].block().values[:, 0]

    atoms, whole = ask("atom", None), ask("system", None)
    np.testing.assert_allclose(whole.tolist(), stiff.predict(images, "qm7x").energy, atol=1e-8)
    np.testing.assert_allclose(whole.tolist(), [atoms[:6].sum(), atoms[6:].sum()], atol=1e-9)
    some = Labels(["system", "atom"], torch.tensor([[0, 1], [0, 4], [1, 2]]))
    np.testing.assert_allclose(ask("atom", some).tolist(), atoms[[1, 4, 8]].tolist(), atol=1e-9)
    np.testing.assert_allclose(ask("system", some).tolist(), [atoms[1] + atoms[4], atoms[8]], atol=1e-9)


def test_what_it_says_of_itself(stiff: Model, tmp_path: Path) -> None:
    model = load_atomistic_model(str(write_metatomic(stiff.predictor("qm7x"), tmp_path / "model.pt")))
    capabilities = model.capabilities()
    assert sorted(capabilities.atomic_types) == [1, 6, 7, 8, 16, 17]
    assert capabilities.interaction_range == pytest.approx(4.45)  # one layer; 4 Å, and what moves a reach beyond
    assert "Branch 'qm7x'" in model.metadata().description
    with pytest.raises(RamifyError, match=r"model\.pt exists already"):
        write_metatomic(stiff.predictor("qm7x"), tmp_path / "model.pt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.pt"]


def test_unknown_elements_and_coinciding_atoms_are_errors(stiff: Model, tmp_path: Path) -> None:
    path = write_metatomic(stiff.predictor("qm7x"), tmp_path / "model.pt")
    for atoms, said in ((molecule("SiH4"), "atomic type"), (Atoms("H2", np.zeros((2, 3))), "two atoms on one spot")):
        atoms.calc = MetatomicCalculator(str(path), device="cpu")
        with pytest.raises(Exception, match=said):
            atoms.get_potential_energy()


def test_extrapolation_warns_once(stiff: Model, tmp_path: Path) -> None:
    path = write_metatomic(stiff.predictor("qm7x"), tmp_path / "model.pt")
    atoms = Atoms("H2", [[0, 0, 0], [0, 0, 0.3]], calculator=MetatomicCalculator(str(path), device="cpu"))
    with pytest.warns(UserWarning, match="closer than in the training data: 0.300 Å against 0.847 Å"):
        atoms.get_potential_energy()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "extrapolation")
        atoms.positions[1, 2] = 0.31
        atoms.get_potential_energy()


def test_predictions_that_are_not_numbers_are_errors(runs: Path, tmp_path: Path) -> None:
    model = load(runs / "conservative", precision="fp64")
    model.network.branch("qm7x").energy_scale.fill_(float("inf"))
    atoms = molecule("H2O")
    path = write_metatomic(model.predictor("qm7x"), tmp_path / "model.pt")
    atoms.calc = MetatomicCalculator(str(path), device="cpu")
    with pytest.raises(Exception, match="prediction is not a number"):
        atoms.get_potential_energy()
