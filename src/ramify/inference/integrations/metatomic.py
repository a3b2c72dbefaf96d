"""A branch as a metatomic model for LAMMPS, i-PI, ASE and other programs.

metatomic (https://docs.metatensor.org/metatomic, the package `metatomic-torch`) is an optional dependency. It runs
TorchScript without Python: the network is traced, and the code between the pairs of the engine and the network
(adaptive cutoff of every atom, reference energies) is written in TorchScript here. The engine differentiates the energy
to get forces and stress; the forces of a branch with direct forces are offered as non-conservative forces. Charge and
spin, as conditions of the model, are the standard inputs `charge` (e) and `spin_multiplicity` of each system; a dataset
as condition is that of the export. Calibrated error bars are the standard output `energy_uncertainty`.
"""

# ruff: noqa: UP006, UP035, UP045 - metatomic asks for these spellings of types

import os
import warnings
from pathlib import Path
from typing import Dict, List, Optional

import numpy as np
import torch
from torch import Tensor

import ramify
from ramify.batches.conditions import dataset_number
from ramify.elements import NUMBERS
from ramify.errors import RamifyError
from ramify.inference.branches import BranchInfo
from ramify.inference.integrations.adaptive_cutoff import edges_among_pairs
from ramify.inference.predictor import Predictor
from ramify.inference.screen import CLOSE, NEW_STATE, ONE_SPOT, TOLERANCE
from ramify.model.graph import edge_geometry
from ramify.neighbors.edges import ROUNDING, SOFTNESS, search_radius
from ramify.structures import STATES

try:
    from metatensor.torch import Labels, TensorBlock, TensorMap
    from metatomic.torch import (
        AtomisticModel,
        ModelCapabilities,
        ModelMetadata,
        ModelOutput,
        NeighborListOptions,
        System,
    )
except ImportError as error:
    raise RamifyError(f"metatomic cannot be imported: {error}", fix="install it: pip install metatomic-torch") from None


class _Network(torch.nn.Module):
    """Encoder and one branch with tensors as inputs and outputs, for tracing.

    Maps atomic numbers (N,), of E edges receiver, sender and vector (E, 3) Å, the adaptive cutoff of every atom (N,) Å,
    the slots (n,) of a table of neighbours (`ramify.model.graph.Graph`) and the C conditions of every atom (N, C) to
    atomic energies (N,) in eV without references, forces (N, 3) in eV/Å (zeros without a force head) and the inputs of
    the last layer of energies (N, D) (D = 0 without error bars).
    """

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.encoder = predictor.network.encoder
        self.branch = predictor.network.branch(predictor.branch.name)
        self.repulsion = predictor.network.repulsion
        self.conditional, self.calibrated = bool(predictor.options.conditions), predictor.bars is not None

    def forward(
        self,
        numbers: Tensor,
        receiver: Tensor,
        sender: Tensor,
        vector: Tensor,
        atom_cutoff: Tensor,
        slots: Tensor,
        conditions: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        distance = torch.linalg.vector_norm(vector, dim=1)
        values = conditions if self.conditional else None
        graph = edge_geometry(numbers, receiver, sender, vector, distance, atom_cutoff, slots, values)
        scalars, vectors = self.encoder(graph)
        energy = self.branch.atom_energies(scalars)
        if self.repulsion is not None:
            energy = energy + self.repulsion(graph)
        last = energy.new_zeros(numbers.shape[0], 0)
        if self.calibrated:
            last = self.branch.energy.last_features(scalars)
        if self.branch.force is None:
            return energy, energy.new_zeros(numbers.shape[0], 3), last
        return energy, self.branch.direct_forces(scalars, vectors), last


class _MetatomicModel(torch.nn.Module):
    """The module that metatomic calls; compiled to TorchScript, which restricts its syntax."""

    references: Tensor
    trained: Tensor
    white: Tensor
    sets: Tensor
    factors: Tensor

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        encoder = predictor.options.encoder
        dtype = predictor.network.branch(predictor.branch.name).energy_scale.dtype
        with warnings.catch_warnings():
            # the Python values read while tracing are constant widths of the model
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
            warnings.simplefilter("ignore", DeprecationWarning)
            self.network = torch.jit.trace(
                _Network(predictor).eval(), _example(dtype, len(predictor.options.conditions)), check_trace=False
            )
        self.cutoff = float(encoder.cutoff)
        self.max_neighbors = int(encoder.max_neighbors or 0)
        self.in_float64 = dtype == torch.float64
        self.softness, self.rounding, self.one_spot = float(SOFTNESS), float(ROUNDING), float(ONE_SPOT)
        self.close, self.tolerance, self.warned = CLOSE, float(TOLERANCE), False
        closest = predictor.dataset.min_distance
        self.min_distance = 0.0 if closest is None else float(closest) - self.tolerance
        self.radius = float(search_radius(encoder.cutoff, encoder.max_neighbors))
        self.register_buffer("references", torch.from_numpy(np.nan_to_num(predictor.dataset.reference_table())))
        self._take_conditions(predictor)
        self._take_error_bars(predictor)

    def _take_conditions(self, predictor: Predictor) -> None:
        """Sets the columns of the conditions (-1: none), the number of the dataset, and the values (K, 2) of charge and
        multiplicity in the training data (NaN for one that is not a condition)."""
        options, branch = predictor.options, predictor.branch
        columns = {name: column for column, name in enumerate(options.conditions)}
        self.n_conditions = len(columns)
        self.charge, self.spin, self.dataset = (columns.get(name, -1) for name in ("charge", "spin", "dataset"))
        self.dataset_number = dataset_number(options, predictor.dataset.name) if self.dataset >= 0 else 0
        states = torch.full((len(branch.trained_states()), 2), torch.nan, dtype=torch.float64)
        for row, state in enumerate(sorted(branch.trained_states())):
            for name, value in zip([name for name in STATES if name in columns], state, strict=True):
                states[row, STATES.index(name)] = torch.nan if value is None else value
        self.register_buffer("trained", states)
        self.new_state, self.warned_of_state = NEW_STATE, False

    def _take_error_bars(self, predictor: Predictor) -> None:
        """Sets the whitening (D, D) of last features and the calibration (`Scale`): factors (K + 1,) of K sets of
        elements (K, 119) and of all others."""
        white, floor, sets = torch.zeros(0, 0, dtype=torch.float64), 0.0, dict[str, float]()
        factor = 1.0
        if predictor.bars is not None:
            scale = predictor.bars.facts.datasets[predictor.dataset.name].energy
            white, floor, sets = predictor.bars.white["covariance"], scale.floor, scale.by_elements
            factor = scale.all
        numbers = torch.zeros(len(sets), len(self.references), dtype=torch.bool)
        for row, name in enumerate(sets):
            numbers[row, [NUMBERS[symbol] for symbol in name.split()]] = True
        self.register_buffer("white", white)
        self.register_buffer("sets", numbers)
        self.register_buffer("factors", torch.tensor([*sets.values(), factor], dtype=torch.float64))
        self.floor = float(floor)

    def requested_inputs(self) -> Dict[str, ModelOutput]:
        inputs: dict[str, ModelOutput] = {}
        if self.charge >= 0:
            inputs["charge"] = ModelOutput(unit="e", sample_kind="system")
        if self.spin >= 0:
            inputs["spin_multiplicity"] = ModelOutput(unit="", sample_kind="system")
        return inputs

    def requested_neighbor_lists(self) -> List[NeighborListOptions]:
        return [NeighborListOptions(cutoff=self.radius, full_list=True, strict=True)]

    def forward(
        self,
        systems: List[System],
        outputs: Dict[str, ModelOutput],
        selected_atoms: Optional[Labels] = None,
    ) -> Dict[str, TensorMap]:
        device = systems[0].positions.device
        types: list[Tensor] = []
        owners: list[Tensor] = []
        places: list[Tensor] = []
        receivers: list[Tensor] = []
        senders: list[Tensor] = []
        vectors: list[Tensor] = []
        firsts: list[int] = []
        conditions: list[Tensor] = []
        n_atoms = 0
        for index, system in enumerate(systems):
            pairs = system.get_neighbor_list(NeighborListOptions(cutoff=self.radius, full_list=True, strict=True))
            ends = pairs.samples.values.to(torch.int64)
            receivers.append(ends[:, 0] + n_atoms)
            senders.append(ends[:, 1] + n_atoms)
            vectors.append(pairs.values.reshape(-1, 3))
            types.append(system.types.to(torch.int64))
            owners.append(torch.full([len(system)], index, dtype=torch.int64, device=device))
            places.append(torch.arange(len(system), device=device))
            firsts.append(n_atoms)
            conditions.append(self.conditions_of(system, selected_atoms is None))
            n_atoms += len(system)
        numbers, owner, place = torch.cat(types), torch.cat(owners), torch.cat(places)
        energy, forces, last = self.predict(
            numbers, torch.cat(receivers), torch.cat(senders), torch.cat(vectors), torch.cat(conditions)
        )

        chosen = self.chosen_atoms(selected_atoms, firsts, owner)
        atoms = Labels(["system", "atom"], torch.stack([owner, place], 1)[chosen].to(torch.int32))
        whole = torch.arange(len(systems), dtype=torch.int32, device=device)
        per_system = Labels(["system"], whole.reshape(-1, 1))
        nothing: list[Labels] = []
        results: dict[str, TensorMap] = {}
        for name, output in outputs.items():
            by_system = output.sample_kind == "system"
            if name == "energy":
                values = energy[chosen]
                if by_system:
                    values = torch.zeros([len(systems)], dtype=energy.dtype, device=device)
                    values = values.index_add(0, owner[chosen], energy[chosen])
                labels = per_system if by_system else atoms
                results[name] = self.one_block(values.reshape(-1, 1), labels, nothing, "energy")
            elif name == "energy_uncertainty":
                std = self.standard_deviations(last, numbers, owner, len(systems), not by_system)
                labels, values = (per_system, std) if by_system else (atoms, std[chosen])
                results[name] = self.one_block(values.reshape(-1, 1), labels, nothing, "energy")
            else:
                axes = [Labels(["xyz"], torch.arange(3, dtype=torch.int32, device=device).reshape(-1, 1))]
                values = forces[chosen].reshape(-1, 3, 1)
                results[name] = self.one_block(values, atoms, axes, "non_conservative_force")
        return results

    def chosen_atoms(self, selected_atoms: Optional[Labels], firsts: list[int], owner: Tensor) -> Tensor:
        """(N,) bool: the atoms whose outputs are wanted; `firsts` is the first atom of each system."""
        if selected_atoms is None:
            return torch.ones([len(owner)], dtype=torch.bool, device=owner.device)
        first = torch.tensor(firsts, dtype=torch.int64, device=owner.device)
        rows = selected_atoms.values.to(torch.int64)
        chosen = torch.zeros([len(owner)], dtype=torch.bool, device=owner.device)
        chosen[first[rows[:, 0]] + rows[:, 1]] = True
        return chosen

    def standard_deviations(
        self, last: Tensor, numbers: Tensor, owner: Tensor, n_systems: int, by_atom: bool
    ) -> Tensor:
        """Of the energies of systems (S,), eV, or by atom (N,), eV: of the energy per atom of a structure all of whose
        atoms have the surroundings of this one."""
        last = last.to(torch.float64)
        there = torch.zeros([n_systems, self.sets.shape[1]], dtype=torch.bool, device=last.device)
        there[owner, numbers] = True
        same = (there[:, None] == self.sets[None]).all(2)
        others = torch.ones([n_systems, 1], dtype=torch.bool, device=last.device)
        factor = self.factors[torch.cat([same, others], 1).to(torch.int64).argmax(1)]
        if by_atom:
            std = torch.linalg.vector_norm(last @ self.white, dim=1)
            return torch.hypot(std, torch.full_like(std, self.floor)) * factor[owner]
        count = torch.bincount(owner, minlength=n_systems).to(torch.float64)
        mean = torch.zeros([n_systems, last.shape[1]], dtype=torch.float64, device=last.device)
        mean = mean.index_add(0, owner, last) / count[:, None]
        std = torch.linalg.vector_norm(mean @ self.white, dim=1)
        return torch.hypot(std, torch.full_like(std, self.floor)) * factor * count

    def conditions_of(self, system: System, whole: bool) -> Tensor:
        """(n, C) conditions of the atoms of a system. `whole`: it has no atoms of other domains, so that its number of
        electrons is known."""
        values = torch.zeros([1, self.n_conditions], dtype=torch.float64, device=system.positions.device)
        if self.dataset >= 0:
            values[0, self.dataset] = self.dataset_number
        charge, spin = float("nan"), float("nan")
        if self.charge >= 0:
            charge = float(system.get_data("charge").block().values[0, 0])
            values[0, self.charge] = charge
        if self.spin >= 0:
            spin = float(system.get_data("spin_multiplicity").block().values[0, 0])
            values[0, self.spin] = spin
        if self.charge >= 0 or self.spin >= 0:
            self.check_state(charge, spin, int(system.types.sum()) if whole else -1)
        return values.expand(len(system), self.n_conditions)

    def check_state(self, charge: float, spin: float, protons: int) -> None:
        """Refuses impossible values, and warns once of values that are not in the training data.

        Args:
            charge: e; NaN if it is not a condition.
            spin: multiplicity; likewise.
            protons: sum of the nuclear charges; -1 if not known.
        """
        if self.charge >= 0 and charge != float(round(charge)):
            raise ValueError(f"the charge {charge} is not a whole number of e")
        if self.spin >= 0 and (spin != float(round(spin)) or spin < 1):
            raise ValueError(f"the multiplicity {spin} is not 1, 2, 3, ...")
        if self.charge >= 0 and self.spin >= 0 and protons >= 0:
            electrons = protons - int(charge)
            if (electrons + int(spin)) % 2 == 0 or spin > electrons + 1:
                raise ValueError(f"charge {charge} leaves {electrons} electrons, which contradicts multiplicity {spin}")
        if self.warned_of_state:
            return
        agree = torch.ones([self.trained.shape[0]], dtype=torch.bool, device=self.trained.device)
        if self.charge >= 0:
            agree = agree & (self.trained[:, 0] == charge)
        if self.spin >= 0:
            agree = agree & (self.trained[:, 1] == spin)
        if agree.shape[0] > 0 and not bool(agree.any()):
            self.warned_of_state = True
            warnings.warn(f"extrapolation: {self.new_state}: charge {charge}, multiplicity {spin}", stacklevel=2)

    def predict(
        self, numbers: Tensor, receiver: Tensor, sender: Tensor, vector: Tensor, conditions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Total energies by atom (N,), direct forces (N, 3) and last features (N, D), from all pairs within the search
        radius and the conditions of every atom (N, C).

        Inputs and outputs are float64; the network computes in its own precision.
        """
        vector = vector.to(torch.float64 if self.in_float64 else torch.float32)
        distance = torch.linalg.vector_norm(vector, dim=1)
        if len(distance) > 0:
            closest = float(distance.min())
            if closest < self.one_spot:
                raise ValueError("two atoms on one spot")
            if closest < self.min_distance and not self.warned:
                self.warned = True
                known = _three_decimals(self.min_distance + self.tolerance)
                warnings.warn(
                    f"extrapolation: {self.close}: {_three_decimals(closest)} Å against {known} Å", stacklevel=2
                )
        inside, atom_cutoff, slots = edges_among_pairs(
            distance, receiver, numbers.shape[0], self.cutoff, self.max_neighbors, self.softness, self.rounding
        )
        ends, conditions = (receiver[inside], sender[inside]), conditions.to(vector.dtype)
        energy, forces, last = self.network(numbers, ends[0], ends[1], vector[inside], atom_cutoff, slots, conditions)
        if not (bool(torch.isfinite(energy).all()) and bool(torch.isfinite(forces).all())):
            raise ValueError("prediction is not a number: the model overflows on this structure")
        return energy.to(torch.float64) + self.references[numbers], forces.to(torch.float64), last

    def one_block(self, values: Tensor, samples: Labels, components: list[Labels], name: str) -> TensorMap:
        """The values as a metatensor `TensorMap` with one block."""
        zero = torch.zeros([1, 1], dtype=torch.int32, device=values.device)
        block = TensorBlock(values, samples, components, Labels([name], zero))
        return TensorMap(Labels(["_"], zero), [block])


def _three_decimals(value: float) -> str:
    """As `f"{value:.3f}"`, which TorchScript does not compile, of a number above 0."""
    thousandths = int(1000 * value + 0.5)
    return f"{thousandths // 1000}.{str(1000 + thousandths % 1000)[1:]}"


def write_metatomic(predictor: Predictor, target: Path) -> Path:
    """Writes a branch as a metatomic model.

    Args:
        predictor: the branch; the model computes in the precision of its network. Positions and energies are float64 in
            any case: far from the origin, and with reference energies of -30,000 eV, float32 is not precise enough.
        target: a file, usually named `NAME.pt`; must not exist.

    Raises:
        RamifyError: `target` exists, or the predictor is that of a committee or adds dispersion.
    """
    if predictor.members:
        raise RamifyError("a committee is no metatomic model", fix="export one of its models")
    if predictor.dispersion is not None:
        raise RamifyError(
            "a metatomic model cannot contain dispersion",
            fix="load the model without it, and let the program that runs it add D3",
        )
    if target.exists():
        raise RamifyError(f"{target} exists already; an export is never overwritten", fix="choose another file")
    branch, dataset = predictor.branch, predictor.dataset
    outputs = {"energy": ModelOutput(unit="eV", sample_kind="atom")}
    if branch.forces == "direct":
        outputs["non_conservative_force"] = ModelOutput(unit="eV/Angstrom", sample_kind="atom")
    if predictor.bars is not None:
        outputs["energy_uncertainty"] = ModelOutput(unit="eV", sample_kind="atom")
    encoder = predictor.options.encoder
    capabilities = ModelCapabilities(
        outputs=outputs,
        atomic_types=[NUMBERS[symbol] for symbol in dataset.elements],
        interaction_range=predictor.network.encoder.rounds * search_radius(encoder.cutoff, encoder.max_neighbors),
        length_unit="angstrom",
        supported_devices=["cuda", "cpu"],
        dtype="float64",  # of the inputs and outputs
    )
    theory = dataset.theory or "level of theory not stated"
    metadata = ModelMetadata(
        name=branch.name,
        description=f"Branch '{branch.name}' on the energy scale of dataset '{dataset.name}' ({theory}). "
        f"{_inputs(branch)}Written by ramify {ramify.__version__}.",
    )
    model = AtomisticModel(_MetatomicModel(predictor).eval(), metadata, capabilities)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.stem}.partial-{os.getpid()}.pt")
    try:
        model.save(str(partial))
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def _inputs(branch: BranchInfo) -> str:
    """A sentence on the inputs charge and spin; empty if the model takes neither."""
    named = {"charge": "charge (e)", "spin": "spin_multiplicity (2S+1)"}
    taken = " and ".join(text for name, text in named.items() if name in branch.conditions)
    return f"It takes {taken} of each system as inputs; some engines pass 0 and 1 where none is set. " if taken else ""


def _example(dtype: torch.dtype, conditions: int) -> tuple[Tensor, ...]:
    """Example inputs for tracing: three atoms, four edges, a neutral singlet."""
    numbers, receiver = torch.tensor([1, 1, 8]), torch.tensor([0, 1, 2, 2])
    sender = torch.tensor([2, 2, 0, 1])
    vector = torch.arange(12, dtype=dtype).reshape(4, 3) / 6.0 + 0.5
    states = torch.zeros(3, conditions, dtype=dtype)
    return numbers, receiver, sender, vector, torch.full([3], 4.0, dtype=dtype), torch.arange(2), states
