"""The model of torch-sim: equal to `predict`, accepted by torch-sim's own checks, usable in its loops."""

import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

import ramify
from ramify.errors import RamifyError, RamifyWarning
from ramify.inference.integrations.ase import Calculator
from ramify.inference.model import Model

ts = pytest.importorskip("torch_sim", reason="needs the package torch-sim-atomistic")


def state_of(images: list[Atoms], model: "ramify.TorchSimModel", dtype: torch.dtype | None = None) -> "ts.SimState":
    return ts.io.atoms_to_state(images, model.device, dtype or model.dtype)


def test_equal_to_predict(conservative: Model, crystals: list[Atoms]) -> None:
    model = ramify.TorchSimModel(conservative, "mptrj")
    expected = conservative.predict(crystals, "mptrj")
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.float32, 1e-4)):
        found = model(state_of(crystals, model, dtype))
        assert {v.dtype for v in found.values()} == {dtype}
        np.testing.assert_allclose(found["energy"].numpy(), expected.energy, atol=tolerance)
        np.testing.assert_allclose(found["forces"].numpy(), expected.forces_of_atoms, atol=tolerance)
        np.testing.assert_allclose(found["stress"].numpy(), expected.stress, atol=tolerance)


def test_molecules_and_fields_by_name(direct: Model) -> None:
    model = ramify.TorchSimModel(direct, "ani1x")
    images = [molecule("H2O"), molecule("CH4")]
    for atoms in images:
        atoms.set_cell([20.0] * 3)
    state = state_of(images, model)
    state.pbc = False
    found = model(state)
    expected = direct.predict(images, "ani1x")
    np.testing.assert_allclose(found["energy"].numpy(), expected.energy, atol=1e-6)
    assert "stress" not in found
    fields = {name: getattr(state, name) for name in ("positions", "cell", "pbc", "atomic_numbers", "system_idx")}
    torch.testing.assert_close(model(fields)["forces"], found["forces"])


def test_torch_sims_own_checks(conservative: Model) -> None:
    from torch_sim.models.interface import validate_model_outputs

    class Silicon(ramify.TorchSimModel):
        """The checks use silicon and iron; the branch was not trained on iron, so silicon replaces it."""

        def forward(self, state: "ts.SimState", **_: object) -> dict[str, torch.Tensor]:
            known = state.clone()
            known.atomic_numbers = torch.full_like(state.atomic_numbers, 14)
            return super().forward(known)

    model = Silicon(conservative, "mptrj")
    validate_model_outputs(model, model.device, model.dtype)


def test_relaxation_and_dynamics_of_many_at_once(stiff: Model) -> None:
    """torch-sim's optimizer ends where the forces in ASE vanish; its NVE dynamics conserves energy."""
    from ase.build import bulk

    images = [bulk("Si"), bulk("Si", a=5.6)]
    for seed, atoms in enumerate(images):
        atoms.rattle(0.05, seed=seed)
    model = ramify.TorchSimModel(stiff, "mptrj")
    end = ts.optimize(
        system=images,
        model=model,
        optimizer=ts.gradient_descent,
        lr=0.005,
        convergence_fn=ts.generate_force_convergence_fn(force_tol=0.05, include_cell_forces=False),
        max_steps=1000,
    )
    for atoms in end.to_atoms():
        atoms.calc = Calculator(stiff, "mptrj")
        assert np.linalg.norm(atoms.get_forces(), axis=1).max() < 0.05
    assert model.neighbors.searches < 50
    energies = []
    state = state_of(images, model)
    init, update = ts.nve(model=model, dt=torch.tensor(0.0005, dtype=model.dtype), kT=torch.tensor(0.02))
    state = init(state, kT=torch.tensor(0.02), seed=0)
    for _ in range(60):
        kinetic = ts.quantities.calc_kinetic_energy(
            momenta=state.momenta, masses=state.masses, system_idx=state.system_idx
        )
        energies.append((state.energy + kinetic).numpy())
        state = update(state, dt=torch.tensor(0.0005, dtype=model.dtype))
    assert np.ptp(np.array(energies), axis=0).max() < 1e-3


def test_bad_systems_are_named(conservative: Model, direct: Model, crystals: list[Atoms]) -> None:
    model = ramify.TorchSimModel(conservative, "mptrj")
    close = crystals[0].copy()
    close.positions[1] = close.positions[0]
    with pytest.raises(RamifyError, match="system 1: two atoms on one spot"):
        model(state_of([crystals[0], close], model))
    with pytest.raises(RamifyError, match="branch 'bare' predicts no forces"):
        ramify.TorchSimModel(direct, "bare")


@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_cells_in_any_layout(stiff: Model, crystals: list[Atoms], layout: str) -> None:
    """Sheared cells, whose lattice vectors torch-sim keeps as columns: in memory by columns or as a transposed view."""
    model = ramify.TorchSimModel(stiff, "mptrj")
    expected = stiff.predict(crystals, "mptrj")
    state = state_of(crystals, model)
    state.cell = state.cell.contiguous() if layout == "contiguous" else state.cell.mT.contiguous().mT
    assert state.cell.is_contiguous() == (layout == "contiguous")
    found = model(state)
    np.testing.assert_allclose(found["energy"].numpy(), expected.energy, atol=1e-9)
    np.testing.assert_allclose(found["forces"].numpy(), expected.forces_of_atoms, atol=1e-9)
    np.testing.assert_allclose(found["stress"].numpy(), expected.stress, atol=1e-9)


def test_extrapolation_warns_once(stiff: Model) -> None:
    model = ramify.TorchSimModel(stiff, "qm7x")
    images = [molecule("CH4"), Atoms("H2", [[0, 0, 0], [0, 0, 0.3]])]
    for atoms in images:
        atoms.set_cell([20.0] * 3)
    with pytest.warns(RamifyWarning, match="extrapolation: system 1: atoms closer .* 0.300 Å"):
        model(state_of(images, model))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RamifyWarning)
        model(state_of(images, model))


def test_predictions_that_are_not_numbers_stop(runs: Path) -> None:
    loaded = ramify.load(runs / "conservative", precision="fp64")
    loaded.network.branch("qm7x").energy_scale.fill_(float("inf"))
    model = ramify.TorchSimModel(loaded, "qm7x")
    water = molecule("H2O", cell=[20.0] * 3)
    with pytest.raises(RamifyError, match="system 0: prediction is not a number"):
        ts.integrate(
            system=water, model=model, integrator=ts.nve, n_steps=2, temperature=300, timestep=0.001, autobatcher=False
        )


def test_named_when_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_sim", None)
    monkeypatch.setitem(sys.modules, "torch_sim.models.interface", None)
    monkeypatch.delitem(sys.modules, "ramify.inference.integrations.torchsim")
    with pytest.raises(RamifyError, match="install it: pip install torch-sim-atomistic"):
        _ = ramify.TorchSimModel


def test_error_bars(exact: Model, stiff: Model, crystals: list[Atoms]) -> None:
    """The spread of a committee."""
    model = ramify.TorchSimModel(replace(exact, members=(exact, stiff)), "mptrj")
    found = model(state_of(crystals, model))["energy_std"]
    energies = [each.predict(crystals, "mptrj").energy for each in (exact, stiff)]
    np.testing.assert_allclose(found.numpy(), np.std(energies, axis=0, ddof=1), atol=1e-8)
    assert (found > 1e-3).all()
