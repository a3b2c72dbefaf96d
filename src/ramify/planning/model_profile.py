"""The cost of a model, determined from the model itself: parameters, operations and memory of a step, without data.

`ramify.model.profile` runs a step on tensors without content. For EGNN of width F with C vector channels, R radial
functions and L layers, the matrix products of a forward pass need, per layer,
    per atom  2 F² + 9 C² + (2F + C) F + F (F + C)
    per edge  2 R F + F² [message_layers = 2] + 2 C F [not in the first layer] + F C [first] or 2 F C [others]
multiplications with an addition each; a head of l layers of width W needs F W + (l - 1) W² + W O per atom, with O = 1
(energy, and F more for its linear path) or C (direct forces, and 3 C more to combine vectors). A training step needs
three times as many, with conservative forces about six times.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from pydantic import TypeAdapter

from ramify.model.branch import ForceKind
from ramify.model.build import LabelSpread, build_model
from ramify.model.multibranch import MultiBranch, hidden_matrices
from ramify.model.parts import part_of
from ramify.model.profile import Cost, training_cost
from ramify.recipe import ModelOptions, Recipe

UNEVENNESS = 1.5
"""Ratio of the largest to the mean number of neighbours without `max_neighbors`: about that of a crystal with defects;
a batch of molecules and dense crystals has more."""


@dataclass(frozen=True, slots=True)
class StepProfile:
    """Costs per atom and per edge of a training step of one branch, including the encoder.

    Attributes:
        operations_atom, operations_edge: floating-point operations of matrix products, forward and backward (a
            multiplication and an addition count as two).
        bytes_atom, bytes_edge: peak memory besides weights, gradients and optimizer state.
        bytes_step: fixed peak memory of a step: weights cast to bfloat16, gradients being summed.
        operations_slot, bytes_slot: costs per slot of a neighbour table, for encoders with such a table.
        operations_pair, bytes_pair: costs per pair of an edge and a slot, for encoders with triplets of atoms.
        max_neighbors: slots of an atom; None: `UNEVENNESS` times its edges.
    """

    operations_atom: float
    operations_edge: float
    bytes_atom: float
    bytes_edge: float
    bytes_step: float
    operations_slot: float = 0.0
    bytes_slot: float = 0.0
    operations_pair: float = 0.0
    bytes_pair: float = 0.0
    max_neighbors: int | None = None

    def operations(self, atoms: float, edges: float) -> float:
        """Operations of a step on this number of atoms and edges."""
        parts = self.operations_atom, self.operations_edge, self.operations_slot, self.operations_pair
        return Cost(0.0, *parts).of(atoms, edges, self._slots(atoms, edges))

    def bytes(self, atoms: float, edges: float) -> float:
        """Bytes of a step on this number of atoms and edges, without `bytes_step`."""
        parts = self.bytes_atom, self.bytes_edge, self.bytes_slot, self.bytes_pair
        return Cost(0.0, *parts).of(atoms, edges, self._slots(atoms, edges))

    def _slots(self, atoms: float, edges: float) -> float:
        return UNEVENNESS * edges if self.max_neighbors is None else atoms * self.max_neighbors


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """Size and cost of a model.

    Attributes:
        encoder: number of parameters of the encoder, the paper's P_s.
        branches: number of parameters of each branch, the paper's P_h.
        itemsize: bytes of a weight; gradients and moments have the same precision.
        steps: costs of a step by branch.
        encoder_shapes: of the encoder's parameters.
        hidden: number of parameters in hidden matrices, by part (`ramify.model.parts`).
    """

    encoder: int
    branches: dict[str, int]
    itemsize: int
    steps: dict[str, StepProfile]
    encoder_shapes: tuple[tuple[int, ...], ...]
    hidden: dict[str, int]

    @classmethod
    def of_data(cls, content: Mapping[str, Any]) -> Self:
        """From plain data, as of `dataclasses.asdict` or JSON."""
        return TypeAdapter(cls).validate_python(content)

    def encoder_shard_size(self, shards: int) -> int:
        """Number of parameters in one of `shards` shards of the encoder: FSDP2 shards each tensor along its first
        dimension, in shards of one size with padding."""
        return sum(math.ceil(first / shards) * math.prod(others) for first, *others in self.encoder_shapes)


_PROFILES: dict[tuple[ModelOptions, str, str, int, ForceKind | None], StepProfile] = {}
"""Cache of this process: profiling a step takes a second or two, and the same model is often profiled repeatedly."""


def profile_model(recipe: Recipe, spreads: Mapping[str, LabelSpread]) -> ModelProfile:
    """The cost of the model that `build_model` creates from the same recipe and spreads."""
    with torch.device("meta"):
        model = build_model(recipe, spreads)
    steps = {}
    for name in model.branches:
        branch = model.branch(name)
        # everything that the cost of a step depends on
        threads = recipe.train.threads or 1
        key = (recipe.model, recipe.train.precision, recipe.train.checkpointing, threads, branch.forces)
        if key not in _PROFILES:
            # without the other branches
            alone = MultiBranch(model.encoder, {name: branch}, model.cutoff, model.repulsion)
            operations, memory = training_cost(alone, name, bf16=recipe.train.precision == "bf16", threads=threads)
            _PROFILES[key] = StepProfile(
                operations_atom=operations.atom,
                operations_edge=operations.edge,
                operations_slot=operations.slot,
                operations_pair=operations.pair,
                bytes_atom=memory.atom,
                bytes_edge=memory.edge,
                bytes_slot=memory.slot,
                bytes_pair=memory.pair,
                bytes_step=memory.fixed,
                max_neighbors=recipe.model.encoder.max_neighbors,
            )
        steps[name] = _PROFILES[key]
    hidden: Counter[str] = Counter()
    for matrix in hidden_matrices(model):
        hidden[part_of(matrix)] += model.get_parameter(matrix).numel()
    return ModelProfile(
        encoder=_size(model.encoder),
        branches={name: _size(model.branch(name)) for name in model.branches},
        itemsize=next(model.parameters()).element_size(),
        steps=steps,
        encoder_shapes=tuple(tuple(p.shape) for p in model.encoder.parameters()),
        hidden=dict(hidden),
    )


def _size(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
