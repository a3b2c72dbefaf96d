"""The loss against numpy: every form, absent labels, weights, units; gradients of datasets add up."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms

from ramify.batches.batch import Batch, BatchPart
from ramify.model.branch import Branch
from ramify.model.encoders.egnn import EGNN
from ramify.model.multibranch import BatchPredictions, MultiBranch
from ramify.neighbors.edges import find_edges
from ramify.recipe import ObjectiveOptions
from ramify.references import reference_energy
from ramify.store.store import LabelCounts
from ramify.structures import Structures
from ramify.train.optimization.objective import Loss, Objective

SCALES = {"a": 0.5, "b": 2.0}
DELTA = 0.02
FORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mae": lambda e: np.abs(e).mean(-1),
    "mse": lambda e: (e**2).mean(-1),
    "l2norm": lambda e: np.linalg.norm(e, axis=-1) / np.sqrt(e.shape[-1]),
    "huber": lambda e: np.where(np.abs(e) < DELTA, e**2 / (2 * DELTA), np.abs(e) - DELTA / 2).mean(-1),
}
"""Error of a row (..., components)."""


def labelled(seed: int, count: int, *, periodic: bool = True) -> Structures:
    """Random structures of one to four atoms with all labels."""
    rng = np.random.default_rng(seed)
    n_atoms = rng.integers(1, 5, count)
    atoms = int(n_atoms.sum())
    stress = rng.normal(size=(count, 3, 3))
    return Structures.make(
        n_atoms=n_atoms,
        numbers=rng.integers(1, 9, atoms),
        positions=rng.uniform(0, 4, (atoms, 3)),
        cell=np.eye(3) * rng.uniform(3, 5, (count, 1, 1)) if periodic else None,
        pbc=np.full((count, 3), periodic),
        energy=rng.normal(size=count),
        forces=rng.normal(size=(atoms, 3)),
        stress=stress + stress.transpose(0, 2, 1),
    )


def batch_of(datasets: dict[str, Structures]) -> Batch:
    """One part per dataset, each read by a branch of its name."""
    references = np.linspace(-1, 1, 119)
    return Batch.make([BatchPart(n, n, s, find_edges(s, 3.0), references) for n, s in datasets.items()], torch.float64)


def predictions_of(batch: Batch, seed: int = 9) -> BatchPredictions:
    rng = np.random.default_rng(seed)
    S, N = len(batch.n_atoms), len(batch.numbers)
    made = (rng.normal(size=shape) for shape in ((S,), (N, 3), (S, 3, 3)))
    return BatchPredictions(*(torch.from_numpy(array).requires_grad_() for array in made))


def labels_of(batch: Batch) -> dict[str, LabelCounts]:
    """Those of a batch that is the whole step."""
    counts = {}
    for s in batch.datasets:
        labels = batch.energy[s.structures], batch.forces[s.atoms], batch.stress[s.structures].flatten(1)
        energy, forces, stress = (~label.reshape(len(label), -1).isnan().any(1) for label in labels)
        stress &= batch.volume[s.structures] > 0
        counts[s.name] = LabelCounts(int(energy.sum()), int(forces.sum()), int(stress.sum()))
    return counts


def loss_of(objective: Objective, predictions: BatchPredictions, batch: Batch) -> Loss:
    """Of a batch that is the whole step."""
    return objective(predictions, batch, labels_of(batch))


def plain(array: torch.Tensor) -> np.ndarray:
    return array.detach().numpy()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("normalise", [True, False])
def test_loss_by_hand(form: Any, normalise: bool) -> None:
    data = {"a": labelled(0, 5), "b": labelled(1, 3)}
    batch, predictions = batch_of(data), predictions_of(batch_of(data))
    options = ObjectiveOptions(
        energy=0.7, forces=3.0, stress=0.4, form=form, normalise=normalise, huber_delta=DELTA, weights={"b": 4.0}
    )
    loss = loss_of(Objective(options, SCALES), predictions, batch)
    expected, first_structure, first_atom = 0.0, 0, 0
    for name, structures in data.items():
        S, N = len(structures), len(structures.numbers)
        rows, atoms = slice(first_structure, first_structure + S), slice(first_atom, first_atom + N)
        unit = SCALES[name] if normalise else 1.0
        reference = reference_energy(structures, np.linspace(-1, 1, 119))
        energy = plain(predictions.energy)[rows] - (structures.energy - reference) / structures.n_atoms
        forces = plain(predictions.forces)[atoms] - structures.forces
        volume = np.array([np.linalg.det(c) for c in structures.cell]) / structures.n_atoms
        stress = (plain(predictions.stress)[rows] - structures.stress).reshape(S, 9) * volume[:, None]
        error = FORMS[form]
        own = 0.7 * error(energy[:, None] / unit).mean() + 3.0 * error(forces / unit).mean()
        own += 0.4 * error(stress / unit).mean()
        found = {key: float(value) for key, value in loss.datasets[name].items()}
        by_hand = {"loss": own, "energy_mae": np.abs(energy).mean(), "forces_mae": np.abs(forces).mean()}
        by_hand["stress_mae"] = np.abs(plain(predictions.stress)[rows] - structures.stress).mean()
        assert found == pytest.approx(by_hand, rel=1e-6)
        expected += {"a": 1.0, "b": 4.0}[name] / 5.0 * own
        first_structure, first_atom = first_structure + S, first_atom + N
    assert float(loss.total.detach()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_absent_labels_count_nowhere(form: Any) -> None:
    """Structures without some label weigh as if they were not there for it, in value and in gradient."""
    data = labelled(0, 6)
    energy, forces, stress = data.energy.copy(), data.forces.copy(), data.stress.copy()
    energy[[1, 4]] = np.nan
    without = np.isin(data.structure_of_atom, [0, 2])
    forces[without] = np.nan
    stress[[0, 3, 5]] = np.nan
    batch = batch_of({"a": replace(data, energy=energy, forces=forces, stress=stress)})
    predictions = predictions_of(batch)
    options = ObjectiveOptions(energy=1.0, forces=2.0, stress=3.0, form=form, normalise=False, huber_delta=DELTA)
    loss = loss_of(Objective(options, {"a": 1.0}), predictions, batch)
    whole = batch_of({"a": data})
    error = FORMS[form]
    has_energy, has_stress = ~np.isnan(energy), ~np.isnan(stress[:, 0, 0])
    volume = plain(whole.volume / whole.n_atoms)[:, None]
    expected = (
        error(plain(predictions.energy - whole.energy)[has_energy, None]).mean()
        + 2.0 * error(plain(predictions.forces - whole.forces)[~without]).mean()
        + 3.0 * error(plain(predictions.stress - whole.stress).reshape(6, 9)[has_stress] * volume[has_stress]).mean()
    )
    assert float(loss.total.detach()) == pytest.approx(expected, rel=1e-6)
    gradients = torch.autograd.grad(loss.total, [predictions.energy, predictions.forces, predictions.stress])
    assert all(torch.isfinite(g).all() for g in gradients)
    np.testing.assert_array_equal(plain(gradients[0]) != 0, has_energy)
    np.testing.assert_array_equal((plain(gradients[1]) != 0).all(1), ~without)
    np.testing.assert_array_equal((plain(gradients[2]) != 0).all((1, 2)), has_stress)


def test_a_batch_without_any_label_of_a_kind() -> None:
    data = replace(labelled(0, 3), forces=np.full_like(labelled(0, 3).forces, np.nan))
    batch = batch_of({"a": data})
    loss = loss_of(Objective(ObjectiveOptions(), {"a": 1.0}), predictions_of(batch), batch)
    found = {key: float(value) for key, value in loss.datasets["a"].items()}
    assert found["loss"] == pytest.approx(found["energy_mae"])
    assert np.isnan(found["forces_mae"])


def test_heads_that_a_branch_lacks_count_nowhere() -> None:
    batch = batch_of({"a": labelled(0, 3)})
    predictions = replace(predictions_of(batch), forces=torch.full_like(batch.forces, torch.nan))
    loss = loss_of(Objective(ObjectiveOptions(), {"a": 1.0}, forceless=["a"]), predictions, batch)
    assert float(loss.total.detach()) == pytest.approx(np.abs(plain(predictions.energy - batch.energy)).mean())
    assert torch.isnan(loss.datasets["a"]["forces_mae"])


@pytest.mark.parametrize("label", ["energy", "forces", "stress"])
def test_broken_predictions_make_the_loss_nan(label: str) -> None:
    """A prediction that is NaN where a label is must never count as an absent one."""
    batch = batch_of({"a": labelled(0, 3), "b": labelled(1, 3)})
    predictions = predictions_of(batch)
    broken = getattr(predictions, label).detach().clone()
    broken[:] = torch.nan
    options = ObjectiveOptions(stress=1.0)
    total = loss_of(Objective(options, SCALES), replace(predictions, **{label: broken}), batch).total
    assert torch.isnan(total)


def test_stress_of_molecules_counts_nowhere() -> None:
    """A label without a cell means nothing: the model has no stress there."""
    batch = batch_of({"a": labelled(0, 3, periodic=False)})
    predictions = predictions_of(batch)
    predictions = replace(predictions, stress=torch.full_like(batch.stress, torch.nan))
    totals = [loss_of(Objective(ObjectiveOptions(stress=s), {"a": 1.0}), predictions, batch).total for s in (0.0, 5.0)]
    assert torch.equal(*totals)
    assert torch.isfinite(totals[0])


def test_weights_are_shares_whatever_is_in_the_batch() -> None:
    """The weight of a dataset absent from a batch is not given to the others: their step does not grow."""
    both, one = batch_of({"a": labelled(0, 4), "b": labelled(1, 2)}), batch_of({"a": labelled(0, 4)})
    objective = Objective(ObjectiveOptions(weights={"a": 3.0}), SCALES)
    predictions = predictions_of(both)
    atoms = len(one.numbers)
    cut = BatchPredictions(predictions.energy[:4], predictions.forces[:atoms], None)
    alone = loss_of(objective, cut, one)
    together = loss_of(objective, predictions, both)
    assert float(alone.total.detach()) == pytest.approx(0.75 * float(alone.datasets["a"]["loss"]))
    assert alone.datasets["a"] == together.datasets["a"]
    assert list(alone.datasets) == ["a"]


def test_gradients_of_datasets_add_up() -> None:
    """On a mixed batch the gradient of the encoder is the sum over datasets, that of a branch from its dataset."""
    torch.manual_seed(0)
    encoder = EGNN(EGNN.Options(layers=2, width=8, vector_channels=3, radial=4, cutoff=3.0, max_neighbors=5))
    shape: dict[str, Any] = {"energy_head": (1, 8), "force_head": (1, 8), "energy_scale": 1.0, "forces_scale": 1.0}
    branches = {n: Branch(8, 3, forces="conservative", **shape) for n in ("a", "b")}
    for branch in branches.values():
        torch.nn.init.normal_(branch.energy.linear.weight)  # fresh heads predict zero
    model = MultiBranch(encoder, branches, 3.0).double().train()
    objective = Objective(ObjectiveOptions(weights={"a": 3.0}, stress=0.5), SCALES)
    data = {"a": labelled(0, 4), "b": labelled(1, 3)}

    def gradients(batch: Batch) -> dict[str, torch.Tensor]:
        model.zero_grad()
        loss_of(objective, model(batch, stress=True), batch).total.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    together = gradients(batch_of(data))
    alone = {name: gradients(batch_of({name: structures})) for name, structures in data.items()}
    assert not [name for name in alone["a"] if name.startswith("branches.b")]
    for name, gradient in together.items():
        parts = [g[name] for g in alone.values() if name in g]
        torch.testing.assert_close(gradient, sum(parts), rtol=1e-10, atol=1e-12)
        assert len(parts) == (2 if name.startswith("encoder") else 1)
    assert max(float(g.abs().max()) for g in together.values()) > 1e-3


@pytest.mark.parametrize("form", FORMS)
def test_parts_of_a_step_add_up(form: Any) -> None:
    """Cut anywhere, with labels missing in some parts: losses, logged errors and gradients are those of the whole."""
    data = labelled(0, 7)
    energy, forces, stress = data.energy.copy(), data.forces.copy(), data.stress.copy()
    energy[[0, 1]], stress[[2, 5]] = np.nan, np.nan
    forces[np.isin(data.structure_of_atom, [0, 1, 4])] = np.nan
    data = replace(data, energy=energy, forces=forces, stress=stress)
    whole = batch_of({"a": data, "b": labelled(1, 3)})
    options = ObjectiveOptions(stress=0.4, form=form, weights={"b": 3.0}, huber_delta=DELTA)
    objective, predictions = Objective(options, SCALES), predictions_of(whole)
    expected = loss_of(objective, predictions, whole)
    gradient = torch.autograd.grad(expected.total, [predictions.energy, predictions.forces, predictions.stress])
    total, datasets = 0.0, {name: dict.fromkeys(objective.names, 0.0) for name in ("a", "b")}
    pieces: list[list[torch.Tensor]] = [[], [], []]
    ends = np.cumsum(data.n_atoms)
    for start, stop in ((0, 2), (2, 3), (3, 7)):  # the first part has no label at all
        others = {"b": labelled(1, 3)} if stop == 7 else {}
        part = batch_of({"a": data.span(start, stop)} | others)
        atoms = slice(int(ends[start - 1]) if start else 0, None if others else int(ends[stop - 1]))
        structures = slice(start, None if others else stop)
        own = [predictions.energy[structures], predictions.forces[atoms], predictions.stress[structures]]
        own = [tensor.detach().requires_grad_() for tensor in own]
        loss = objective(BatchPredictions(*own), part, labels_of(whole))
        total += float(loss.total.detach())
        for name, values in loss.datasets.items():
            for key, value in values.items():
                datasets[name][key] += float(value)
        for gathered, found in zip(pieces, torch.autograd.grad(loss.total, own), strict=True):
            gathered.append(found)
    assert total == pytest.approx(float(expected.total.detach()), rel=1e-12)
    for name, values in datasets.items():
        assert values == pytest.approx({k: float(v) for k, v in expected.datasets[name].items()}, rel=1e-12)
    for gathered, found in zip(pieces, gradient, strict=True):
        torch.testing.assert_close(torch.cat(gathered), found, rtol=1e-12, atol=0)


def test_loss_of_a_perfect_model_is_zero() -> None:
    atoms = Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.7]])
    structures = replace(Structures.from_ase([atoms]), energy=np.array([2.0]), forces=np.ones((2, 3)))
    batch = batch_of({"a": structures})
    perfect = BatchPredictions(batch.energy.clone(), batch.forces.clone(), None)
    for form in ("mae", "mse", "huber"):
        assert float(loss_of(Objective(ObjectiveOptions(form=form), {"a": 0.1}), perfect, batch).total) == 0.0
