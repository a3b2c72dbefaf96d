"""What a model costs, from the model itself: parameters, operations and memory of a step, without data or weights.

`ramify.model.profile` tries a step on tensors without content. For EGNN of width F, C vector channels, R radial
functions and L layers the matrix products of a forward pass come to, per layer,
    per atom  2 F² + 9 C² + (2F + C) F + F (F + C)
    per edge  2 R F + F² [message_layers = 2] + 2 C F [not in the first layer] + F C [first] or 2 F C [others]
multiplications with an addition each; a head of l layers of width W on top takes F W + (l - 1) W² + W O per atom, with
O = 1 (energy, and F more for its linear path) or C (direct forces, and 3 C more to combine vectors). A training step
takes three times as many, with conservative forces about six.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch

from ramify.model.branch import ForceKind
from ramify.model.build import LabelSpread, build_model
from ramify.model.multibranch import MultiBranch
from ramify.model.profile import training_cost
from ramify.recipe import ModelOptions, Recipe

UNEVENNESS = 1.5
"""Most neighbours of an atom over the mean, where `max_neighbors` sets no limit: about that of a crystal with defects;
a batch of molecules beside dense crystals has more."""


@dataclass(frozen=True, slots=True)
class StepProfile:
    """What an atom and an edge add to a training step of one branch, the encoder included.

    Attributes:
        operations_atom, operations_edge: floating-point operations of matrix products, forward and backward (a
            multiplication and an addition count as two).
        bytes_atom, bytes_edge: memory beyond weights, gradients and optimizer state when it is fullest.
        bytes_step: the same of a step whatever its size: weights cast to bfloat16, gradients on their way.
        operations_slot, bytes_slot: what a slot of a table of neighbours adds, where the encoder has one.
        max_neighbors: slots of an atom; None: `UNEVENNESS` times its edges.
    """

    operations_atom: float
    operations_edge: float
    bytes_atom: float
    bytes_edge: float
    bytes_step: float
    operations_slot: float = 0.0
    bytes_slot: float = 0.0
    max_neighbors: int | None = None

    def operations(self, atoms: float, edges: float) -> float:
        """Of a step on so many."""
        slots = self._slots(atoms, edges)
        return atoms * self.operations_atom + edges * self.operations_edge + slots * self.operations_slot

    def bytes(self, atoms: float, edges: float) -> float:
        """Of a step on so many, `bytes_step` not included."""
        return atoms * self.bytes_atom + edges * self.bytes_edge + self._slots(atoms, edges) * self.bytes_slot

    def _slots(self, atoms: float, edges: float) -> float:
        return UNEVENNESS * edges if self.max_neighbors is None else atoms * self.max_neighbors


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """A model's size.

    Attributes:
        encoder: parameters of the encoder, the paper's P_s.
        branches: parameters of each branch, the paper's P_h.
        itemsize: bytes of a weight; gradients and AdamW's averages are kept in the same precision.
        steps: by branch.
        encoder_shapes: of the encoder's parameters.
    """

    encoder: int
    branches: dict[str, int]
    itemsize: int
    steps: dict[str, StepProfile]
    encoder_shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of_data(cls, content: Mapping[str, Any]) -> Self:
        """The same from plain data, as `dataclasses.asdict` and JSON give them."""
        steps = {name: StepProfile(**step) for name, step in content["steps"].items()}
        shapes = tuple(tuple(shape) for shape in content["encoder_shapes"])
        return cls(content["encoder"], dict(content["branches"]), content["itemsize"], steps, shapes)

    def encoder_shard_size(self, cuts: int) -> int:
        """Parameters of one of `cuts` pieces of the encoder: FSDP2 cuts each along its first dimension, in pieces of
        one size, the last ones filled up."""
        return sum(math.ceil(first / cuts) * math.prod(others) for first, *others in self.encoder_shapes)


_TRIED: dict[tuple[ModelOptions, str, str, int, ForceKind | None], StepProfile] = {}
"""Kept while the program runs: trying a step takes a second or two, and the same model is asked about again."""


def profile_model(recipe: Recipe, spreads: Mapping[str, LabelSpread]) -> ModelProfile:
    """The cost of the model that `build_model` makes of the same recipe and spreads."""
    with torch.device("meta"):
        model = build_model(recipe, spreads)
    steps = {}
    for name in model.branches:
        branch = model.branch(name)
        # all that a step depends on: all else is the same for every branch
        threads = recipe.train.threads or 1
        key = (recipe.model, recipe.train.precision, recipe.train.checkpointing, threads, branch.forces)
        if key not in _TRIED:
            alone = MultiBranch(model.encoder, {name: branch}, model.cutoff)  # the others take no part in it
            operations, memory = training_cost(alone, name, bf16=recipe.train.precision == "bf16", threads=threads)
            _TRIED[key] = StepProfile(
                operations_atom=operations.atom,
                operations_edge=operations.edge,
                operations_slot=operations.slot,
                bytes_atom=memory.atom,
                bytes_edge=memory.edge,
                bytes_slot=memory.slot,
                bytes_step=memory.fixed,
                max_neighbors=recipe.model.encoder.max_neighbors,
            )
        steps[name] = _TRIED[key]
    return ModelProfile(
        encoder=_size(model.encoder),
        branches={name: _size(model.branch(name)) for name in model.branches},
        itemsize=next(model.parameters()).element_size(),
        steps=steps,
        encoder_shapes=tuple(tuple(p.shape) for p in model.encoder.parameters()),
    )


def _size(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
