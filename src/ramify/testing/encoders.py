"""`EncoderTests`: the tests that every encoder must pass, as a class for pytest.

    class TestMyEncoder(EncoderTests):
        encoder = MyEncoder
        options = MyEncoder.Options(layers=2, width=24)

Symmetries and derivatives are tested in float64, to rounding or against finite differences, and in float32 to its
precision. Small models with two or three layers are sufficient.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, make_supercell, molecule
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ramify.batches.batch import Batch, BatchPart
from ramify.batches.padding import Padding
from ramify.model import compiled
from ramify.model.branch import ForceKind
from ramify.model.build import LabelSpread, build_branch
from ramify.model.compiled import CompiledModel
from ramify.model.encoders.base import Encoder, add_conditions
from ramify.model.kernels.counting import counting
from ramify.model.lora import UP, add_lora
from ramify.model.multibranch import BatchPredictions, MultiBranch
from ramify.model.profile import prediction_memory, training_cost
from ramify.neighbors.edges import find_edges
from ramify.recipe import EncoderOptions, ForceHeadOptions, HeadOptions, ModelOptions
from ramify.structures import Structures

TOLERANCE = {torch.float32: 3e-5, torch.float64: 1e-10}
STEP = 3e-5
"""Step of finite differences, Å or strain."""


class EncoderTests:
    """Set `encoder` and `options`; raise `gain` if `test_atoms_feel_one_another` fails because random weights hardly
    couple atoms."""

    encoder: ClassVar[type[Any]]
    """A subclass of `ramify.model.encoders.base.Encoder`."""
    options: ClassVar[EncoderOptions]
    gain: ClassVar[float] = 1.0
    """Factor on all matrices of the model."""
    max_neighbors: ClassVar[int] = 12
    """Limit of neighbours; some of the structures have more."""

    @pytest.fixture(autouse=True)
    def _one_thread(self) -> Iterator[None]:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(before)

    def kinds(self) -> list[ForceKind]:
        """Kinds of forces that the encoder supports."""
        return ["direct", "conservative"] if self.model("conservative").encoder.vector_channels else ["conservative"]

    def model(self, forces: ForceKind, dtype: torch.dtype = torch.float64, *, layers: int | None = None) -> MultiBranch:
        """A model with a branch `b`, with the same weights in every call."""
        torch.manual_seed(0)
        changes = {"max_neighbors": self.max_neighbors, "layers": layers or self.options.layers}
        options = self.options.model_copy(update=changes)
        heads = {"energy_head": HeadOptions(layers=2, width=16)}
        recipe = ModelOptions(encoder=options, force_head=ForceHeadOptions(layers=2, width=16, kind=forces), **heads)
        encoder: Encoder = self.encoder(options)
        model = MultiBranch(encoder, {"b": build_branch(recipe, encoder, [LabelSpread(0.7, 1.3, 1)])}, options.cutoff)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2 and parameter.any():
                    parameter.mul_(self.gain)
                elif parameter.ndim == 2:  # last layers of heads start at zero, so that the tests would not cover them
                    parameter.normal_(std=parameter.shape[1] ** -0.5)
        return model.to(dtype).eval()

    def images(self) -> list[Atoms]:
        """Molecules, a single atom and rattled crystals; one with more neighbours than `max_neighbors`."""
        rng = np.random.default_rng(0)
        crystals = [bulk("Cu", cubic=True), bulk("NaCl", "rocksalt", a=5.6), bulk("Si"), bulk("Po", "sc", a=3.3)]
        for atoms in crystals:
            atoms.rattle(0.1, rng=rng)
            atoms.set_cell(atoms.cell.array + rng.normal(0, 0.05, (3, 3)), scale_atoms=True)
        return [molecule("CH3CH2OH"), molecule("C6H6"), molecule("H2O"), Atoms("He"), *crystals]

    def batch(
        self,
        images: list[Atoms],
        dtype: torch.dtype = torch.float64,
        max_neighbors: int | None = -1,
        conditions: Sequence[tuple[float, ...]] | None = None,
    ) -> Batch:
        """A batch of all images in one segment."""
        structures = Structures.from_ase(images)
        limit = self.max_neighbors if max_neighbors == -1 else max_neighbors
        edges = find_edges(structures, self.options.cutoff, limit)
        values = None if conditions is None else np.array(conditions, np.float64)
        return Batch.make([BatchPart("d", "b", structures, edges, np.zeros(119), values)], dtype)

    def predict(
        self, model: MultiBranch, images: list[Atoms], dtype: torch.dtype = torch.float64, limit: int | None = -1
    ) -> BatchPredictions:
        """Predictions in evaluation mode, with stress."""
        with torch.no_grad():
            return model(self.batch(images, dtype, limit), stress=True)

    def energy(self, model: MultiBranch, atoms: Atoms, limit: int | None = -1) -> float:
        """Total energy, eV."""
        return float(self.predict(model, [atoms], limit=limit).energy[0]) * len(atoms)

    @pytest.fixture(params=["direct", "conservative"])
    def forces(self, request: Any) -> ForceKind:
        """A kind of forces."""
        if request.param not in self.kinds():
            pytest.skip("the encoder has no vectors, so there are no direct forces")
        return request.param

    def test_shapes_and_contract(self) -> None:
        model, batch = self.model("conservative"), self.batch(self.images())
        seen: list[Any] = []
        model.encoder.register_forward_hook(lambda _, __, found: seen.append(found))
        model(batch)
        ((scalars, vectors),) = seen
        encoder, n_atoms = model.encoder, len(batch.numbers)
        assert scalars.shape == (n_atoms, encoder.width)
        if encoder.vector_channels:
            assert vectors.shape == (n_atoms, 3, encoder.vector_channels)
        else:
            assert vectors is None
        assert encoder.rounds >= 1

    def test_atoms_feel_one_another(self, forces: ForceKind) -> None:
        """The other tests are meaningful only if atoms interact."""
        found = self.predict(self.model(forces), self.images())
        assert found.forces.abs().max() > 0.02, "raise `gain`"
        assert found.forces.abs().max() < 1e3, "lower `gain`"

    @pytest.mark.parametrize("dtype", TOLERANCE)
    def test_rotation_and_reflection(self, forces: ForceKind, dtype: torch.dtype) -> None:
        model, images = self.model(forces, dtype), self.images()
        before = self.predict(model, images, dtype)
        orthogonal = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
        for matrix in (orthogonal * np.linalg.det(orthogonal), -np.eye(3), np.diag([1.0, 1.0, -1.0])):
            rotated = [
                Atoms(a.numbers, a.positions @ matrix.T, cell=a.cell.array @ matrix.T, pbc=a.pbc) for a in images
            ]
            after, rotation = self.predict(model, rotated, dtype), torch.tensor(matrix, dtype=dtype)
            close(after.energy, before.energy)
            close(after.forces, before.forces @ rotation.T)
            if forces == "conservative":
                assert before.stress is not None
                close(after.stress, rotation @ before.stress @ rotation.T)

    @pytest.mark.parametrize("dtype", TOLERANCE)
    def test_translation_and_periodic_images(self, forces: ForceKind, dtype: torch.dtype) -> None:
        """Predictions do not change under translations, or if single atoms move by lattice vectors."""
        model, images, rng = self.model(forces, dtype), self.images(), np.random.default_rng(3)
        before = self.predict(model, images, dtype)
        for atoms in images:
            atoms.translate(rng.uniform(-3, 3, 3))
            atoms.positions += rng.integers(-1, 2, (len(atoms), 3)) @ atoms.cell.array
        after = self.predict(model, images, dtype)
        close(after.energy, before.energy)
        close(after.forces, before.forces)

    def test_permutation(self, forces: ForceKind) -> None:
        model, images, rng = self.model(forces), self.images(), np.random.default_rng(4)
        before = self.predict(model, images)
        orders = [rng.permutation(len(a)) for a in images]
        after = self.predict(model, [a[order] for a, order in zip(images, orders, strict=True)])
        firsts = np.cumsum([0, *(len(a) for a in images[:-1])])
        rows = np.concatenate([first + order for first, order in zip(firsts, orders, strict=True)])
        close(after.energy, before.energy)
        close(after.forces, before.forces[rows])

    def test_supercell(self, forces: ForceKind) -> None:
        """A cell repeated along skewed vectors has the same energy per atom, forces and stress."""
        model, crystals = self.model(forces), [a for a in self.images() if a.pbc.all()]
        skewed = [[2, 1, 0], [0, 2, 0], [0, 0, 1]]
        large = [make_supercell(a, skewed, wrap=False, order="cell-major") for a in crystals]
        before, after = self.predict(model, crystals), self.predict(model, large)
        close(after.energy, before.energy)
        parts = torch.split(before.forces, [len(a) for a in crystals])
        close(after.forces, torch.cat([part.repeat(4, 1) for part in parts]))
        if forces == "conservative":
            close(after.stress, before.stress)

    def test_structures_of_a_batch_do_not_touch(self, forces: ForceKind) -> None:
        model, images = self.model(forces), self.images()
        together, alone = self.predict(model, images), [self.predict(model, [a]) for a in images]
        close(together.energy, torch.cat([p.energy for p in alone]))
        close(together.forces, torch.cat([p.forces for p in alone]))

    def test_without_edges(self, forces: ForceKind) -> None:
        """Atoms beyond the cutoff of each other have the energies of single atoms, and no forces."""
        model, far = self.model(forces), 3 * self.options.cutoff
        apart = self.predict(model, [Atoms("HeOHe", positions=[[0, 0, 0], [far, 0, 0], [2 * far, 0, 0]])])
        alone = [self.energy(model, Atoms(symbol)) for symbol in ("He", "O", "He")]
        assert float(apart.energy[0]) * 3 == pytest.approx(sum(alone), abs=1e-10)
        assert np.isfinite(alone).all()
        assert apart.forces.abs().max() == 0

    def test_forces_are_minus_the_gradient(self) -> None:
        """Also with `max_neighbors`, where the adaptive cutoff depends on the positions."""
        model, images, rng = self.model("conservative"), self.images(), np.random.default_rng(0)
        forces = torch.split(self.predict(model, images).forces, [len(a) for a in images])
        for atoms, found in zip(images, forces, strict=True):
            atom, direction = rng.integers(len(atoms)), rng.normal(size=3)
            direction /= np.linalg.norm(direction)
            ends = []
            for sign in (1, -1):
                moved = atoms.copy()
                moved.positions[atom] += sign * STEP * direction
                ends.append(self.energy(model, moved))
            near(float(found[atom].numpy() @ direction), -(ends[0] - ends[1]) / (2 * STEP))

    def test_stress_is_the_strain_derivative_per_volume(self) -> None:
        model = self.model("conservative")
        for atoms in [a for a in self.images() if a.pbc.all()]:
            found = self.predict(model, [atoms]).stress
            assert found is not None
            for i, j in ((0, 0), (1, 2)):
                ends = []
                for sign in (1, -1):
                    strain = np.eye(3)
                    strain[i, j] += 0.5 * sign * STEP
                    strain[j, i] += 0.5 * sign * STEP
                    moved = atoms.copy()
                    moved.set_cell(atoms.cell.array @ strain, scale_atoms=True)
                    ends.append(self.energy(model, moved))
                near(float(found[0, i, j]), (ends[0] - ends[1]) / (2 * STEP) / atoms.get_volume())
                near(float(found[0, j, i]), float(found[0, i, j]))

    def test_energy_is_smooth_at_the_cutoff(self) -> None:
        model, cutoff = self.model("conservative"), self.options.cutoff
        pairs = [Atoms("CO", positions=[[0, 0, 0], [0, 0, d]]) for d in (cutoff + 1e-6, cutoff - 1e-4, 1.1)]
        apart, inside, bonded = (self.energy(model, pair) for pair in pairs)
        assert inside == pytest.approx(apart, abs=1e-9)
        assert abs(bonded - apart) > 1e-3
        edge = self.predict(model, [pairs[1]])
        assert edge.forces.abs().max() < 1e-5

    def test_energy_is_smooth_where_neighbours_swap_ranks(self) -> None:
        """Two atoms exchange ranks at the neighbour limit: with a sharp limit the energy would be discontinuous."""
        model = self.model("conservative")

        def at(shift: float) -> Atoms:
            return Atoms("COF", positions=[[0, 0, 0], [2.0 + shift, 0, 0], [0, 2.0 - shift, 0]])

        ends = [self.energy(model, at(s), limit=1) for s in (-1e-7, 1e-7)]
        assert ends[0] == pytest.approx(ends[1], abs=1e-5)
        assert abs(self.energy(model, at(1e-7), limit=None) - ends[0]) > 1e-4  # the limit has an effect

    def test_perfect_crystals_keep_their_symmetry(self) -> None:
        """In fcc, 24 atoms have equal distances at the limit of 20 neighbours: all count equally, forces are zero."""
        found = self.predict(self.model("conservative"), [bulk("Cu", cubic=True)], limit=20)
        assert found.forces.abs().max() < 1e-9
        assert found.stress is not None
        close(found.stress[0], torch.eye(3, dtype=torch.float64) * found.stress[0, 0, 0])

    def test_tables_of_any_size(self) -> None:
        """Predictions without a limit of neighbours and with one above all counts are equal."""
        model, images = self.model("conservative"), self.images()
        free, limited = (self.predict(model, images, limit=limit) for limit in (None, 1000))
        close(free.energy, limited.energy)
        close(free.forces, limited.forces)

    def test_float32_is_near_float64(self, forces: ForceKind) -> None:
        images = self.images()
        exact = self.predict(self.model(forces), images)
        found = self.predict(self.model(forces).float(), images, torch.float32)
        close(found.energy, exact.energy.float(), 1e-4)
        close(found.forces, exact.forces.float(), 1e-3)

    def test_weights_round_trip(self) -> None:
        model, fresh = self.model("conservative"), copy.deepcopy(self.model("conservative"))
        with torch.no_grad():
            for parameter in fresh.parameters():
                parameter.add_(1.0)
        fresh.load_state_dict(model.state_dict())
        found, expected = (self.predict(m, self.images()) for m in (fresh, model))
        assert torch.equal(found.energy, expected.energy)

    def test_checkpointing_changes_nothing(self, forces: ForceKind) -> None:
        model, batch = self.model(forces), self.batch(self.images())
        plain = gradients(model, model.train()(batch))
        model.encoder.checkpointing = True
        for a, b in zip(gradients(model, model(batch)), plain, strict=True):
            close(a, b)

    @pytest.mark.timeout(600)
    def test_compiled_passes_are_the_plain_ones(self, forces: ForceKind, monkeypatch: pytest.MonkeyPatch) -> None:
        """One program for batches of two sizes: predictions and gradients of all weights."""
        # PyTorch's own operations, without a C++ compiler; with conservative forces the program is differentiated twice
        monkeypatch.setattr(compiled, "BACKEND", "aot_eager" if forces == "conservative" else "eager")
        monkeypatch.setattr(compiled, "MAX_PROGRAMS", 1)
        model = self.model(forces, layers=min(2, self.options.layers)).train()
        program = CompiledModel(model, "default")
        for images in (self.images(), self.images()[:3]):
            batch = self.batch(images)
            expected = model(batch, stress=forces == "conservative")
            found = program(Padding(("b",))(batch), stress=forces == "conservative")
            (segment,) = batch.segments
            close(found.energy[segment.structures], expected.energy)
            close(found.forces[segment.atoms], expected.forces)
            real = BatchPredictions(found.energy[segment.structures], found.forces[segment.atoms], None)
            for a, b in zip(gradients(model, real), gradients(model, expected), strict=True):
                close(a, b)
        torch.compiler.reset()

    def test_conditions(self, forces: ForceKind) -> None:
        """New conditions have no effect, to the bit; others change the energy of their structure alone."""
        if not self.encoder.takes_conditions:
            pytest.skip("the encoder takes no conditions")
        images = self.images()[:3]
        neutral = [(0.0, 1.0, 0.0)] * 3
        plain = self.predict(self.model(forces), images)
        model = self.model(forces)
        add_conditions(model.encoder, ("charge", "spin", "dataset"), 2)
        assert model.encoder.conditions is not None
        model.double()

        def energies(conditions: Sequence[tuple[float, ...]], only: slice = slice(None)) -> Tensor:
            with torch.no_grad():
                return model(self.batch(images[only], conditions=conditions)).energy

        found = model(self.batch(images, conditions=[(1.0, 2.0, 0.0), (0.0, 3.0, 1.0), (-1.0, 2.0, 0.0)]))
        assert torch.equal(found.energy, plain.energy)
        assert torch.equal(found.forces, plain.forces)
        model.train()
        gradients(model, model(self.batch(images, conditions=neutral)))
        gradient = model.encoder.conditions.modulation.grad
        assert gradient is not None
        assert gradient.abs().max() > 0
        model.eval()
        with torch.no_grad():
            model.encoder.conditions.modulation.normal_(std=0.3)
        before = energies(neutral)
        for state in ((1.0, 1.0, 0.0), (0.0, 3.0, 0.0), (0.0, 1.0, 1.0)):
            after = energies([neutral[0], state, neutral[2]])
            assert abs(float(after[1] - before[1])) > 1e-4
            close(after[[0, 2]], before[[0, 2]], 1e-12)
            close(energies([state], slice(1, 2)), after[1:2], 1e-12)

    def test_cost_is_known_without_running(self) -> None:
        """On tensors without content, as for `ramify plan` and for the limits of predictions: the operations of a real
        batch, with other numbers of neighbours than those measured."""
        model, batch = self.model("conservative", torch.float32), self.batch(self.images(), torch.float32)
        with FlopCounterMode(display=False) as counter, counting():
            found = model.train()(batch)
            (found.energy.sum() + found.forces.sum()).backward()
        weights = [id(tensor) for tensor in model.state_dict(keep_vars=True).values()]
        operations, memory = training_cost(model, "b", bf16=False, threads=1)
        atoms, edges = len(batch.numbers), len(batch.receiver)
        slots = atoms * len(batch.slots)
        assert operations.fixed + operations.of(atoms, edges, slots) == pytest.approx(counter.get_total_flops())
        assert memory.of(atoms, edges, slots) > 0
        assert prediction_memory(model.requires_grad_(False), "b", stress=True).fixed >= 0
        assert [id(tensor) for tensor in model.state_dict(keep_vars=True).values()] == weights

    def test_low_rank_updates_start_at_nothing_and_learn(self) -> None:
        model, batch = self.model("conservative").train(), self.batch(self.images())
        before = model(batch)
        add_lora(model.encoder, 2, 0)
        model.double()
        after = model(batch)
        close(after.energy, before.energy, 1e-12)
        gradients(model, after)
        learning = [p.grad for n, p in model.encoder.named_parameters() if n.endswith(UP) and p.grad is not None]
        assert any(gradient.abs().max() > 0 for gradient in learning)


def close(found: Tensor | None, expected: Tensor | None, tolerance: float | None = None) -> None:
    """Asserts equality within the precision, relative to the largest value."""
    assert found is not None
    assert expected is not None
    allowed = TOLERANCE[expected.dtype] if tolerance is None else tolerance
    size = max(1.0, float(torch.nan_to_num(expected.detach()).abs().max()) if expected.numel() else 0.0)
    torch.testing.assert_close(found, expected, atol=allowed * size, rtol=allowed, equal_nan=True)


def near(found: float, numeric: float) -> None:
    """Asserts that a derivative agrees with finite differences."""
    assert found == pytest.approx(numeric, abs=1e-6, rel=1e-5)


def gradients(model: MultiBranch, found: BatchPredictions) -> list[Tensor]:
    """Gradients of a function of energies and forces with respect to all weights; zeros for unused weights."""
    model.zero_grad()
    (found.energy.square().sum() + found.forces.square().sum()).backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]
