"""From a recipe and the statistics of its datasets to a model."""

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from ramify.errors import RamifyError
from ramify.labels import in_order, measurable
from ramify.model.encoders.egnn import EGNN
from ramify.model.heads import HEADS, Branch, ForceKind, LabelScale, ScaledHead
from ramify.model.multibranch import MultiBranch
from ramify.recipe import EncoderOptions, ModelOptions, Recipe

TYPICAL_NEIGHBORS = 15.0
"""Sums over neighbours are divided by the square root of this when `max_neighbors` sets no smaller limit."""


@dataclass(frozen=True, slots=True)
class LabelSpread:
    """How far labels of a training split spread: the units that heads and losses work in.

    Attributes:
        energy: eV/atom, standard deviation after references.
        forces: eV/Å per component, mean absolute value (a few wild structures move it less than a root mean square);
            None without force labels.
        structures: how many it was measured on.
        labels: of further labels that the split has, in their units of errors.
    """

    energy: float
    forces: float | None
    structures: int
    labels: Mapping[str, LabelScale] = field(default_factory=dict)

    @property
    def unit(self) -> float:
        """eV and eV/Å: one unit for energies and forces, which are tied by derivatives over about one Å."""
        return max(self.energy, self.forces or 0.0)

    def to_dict(self) -> dict[str, Any]:
        """As plain data; further labels only where there are any."""
        content = asdict(self)
        return content if self.labels else {key: content[key] for key in ("energy", "forces", "structures")}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "LabelSpread":
        """From `to_dict`."""
        labels = {name: LabelScale(**scale) for name, scale in content.get("labels", {}).items()}
        return cls(content["energy"], content["forces"], content["structures"], labels)

    @classmethod
    def of_manifest(cls, manifest: Mapping[str, Any]) -> "LabelSpread":
        """From a store's manifest (as plain data)."""
        statistics = manifest["statistics"]
        structures = manifest["splits"]["train"]["structures"]
        energy, forces = statistics["energy_std"], statistics["forces_mae"]
        labels = {name: LabelScale(**found) for name, found in statistics.get("labels", {}).items()}
        # a spread that is rounding is no unit
        return cls(
            energy if measurable("energy", energy) else 1.0,
            forces if measurable("forces", forces) else None,
            structures,
            labels,
        )


def build_model(
    recipe: Recipe, spreads: Mapping[str, LabelSpread], hosted: Collection[str] | None = None
) -> MultiBranch:
    """The model of a recipe, initialised from `train.seed` (float32 or float64, by `train.precision`).

    Encoder and branches start from random numbers of their own, so that a part has the same weights whatever other
    parts stand beside it.

    Args:
        recipe: model and branches.
        spreads: of every dataset; a branch that reads several works in their mean, weighted by structures.
        hosted: the branches to build, in the recipe's order; None for all.
    """
    seed = recipe.train.seed
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would touch accelerators too
        encoder = _build_encoder(recipe.model.encoder, recipe.train.checkpointing == "layers")
        branches = {}
        for name, datasets in recipe.datasets_of_branches().items():
            if hosted is None or name in hosted:
                torch.default_generator.manual_seed(_seed_of_branch(seed, name))
                branches[name] = _build_branch(recipe.model, [spreads[d] for d in datasets])
    model = MultiBranch(encoder, branches, recipe.model.encoder.cutoff)
    return model.to(torch.float64 if recipe.train.precision == "fp64" else torch.float32)


def _seed_of_branch(seed: int, name: str) -> int:
    """A seed from the run's and the branch's name."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "little")


def _build_encoder(options: EncoderOptions, checkpointing: bool) -> EGNN:
    return EGNN(
        layers=options.layers,
        width=options.width,
        vector_channels=options.vector_channels,
        radial=options.radial,
        cutoff=options.cutoff,
        neighbors=min(TYPICAL_NEIGHBORS, options.max_neighbors or math.inf),
        message_layers=options.message_layers,
        checkpointing=checkpointing,
        elements=options.elements,
    )


def _build_branch(options: ModelOptions, spreads: Sequence[LabelSpread]) -> Branch:
    energy = _mean([(s.energy, s.structures) for s in spreads])
    with_forces = [(s.forces, s.structures) for s in spreads if s.forces is not None]
    forces: ForceKind | None = options.force_head.kind if with_forces else None
    forces_scale = _mean(with_forces) if with_forces else 1.0
    return Branch(
        options.encoder.width,
        options.encoder.vector_channels,
        energy_head=(options.energy_head.layers, options.energy_head.width),
        force_head=(options.force_head.layers, options.force_head.width),
        forces=forces,
        # a conservative branch has one scale: forces are derivatives of energies over about one Å
        energy_scale=max(energy, forces_scale) if forces == "conservative" else energy,
        forces_scale=forces_scale,
        labels=_label_heads(options, spreads),
    )


def _label_heads(options: ModelOptions, spreads: Sequence[LabelSpread]) -> dict[str, nn.Module]:
    """A head for every further label that a dataset of the branch has."""
    heads: dict[str, nn.Module] = {}
    for name in in_order([label for spread in spreads for label in spread.labels]):
        if name not in HEADS:
            raise RamifyError(f"label '{name}' has no head", fix="ramify.model.heads.register_head(...) gives it one")
        found = [(spread.labels[name], spread.structures) for spread in spreads if name in spread.labels]
        scale = LabelScale(*(_mean([(getattr(s, key), n) for s, n in found]) for key in ("mean", "mad")))
        head = HEADS[name](options.encoder.width, options.energy_head.layers, options.energy_head.width)
        heads[name] = ScaledHead(head, scale)
    return heads


def _mean(values: Sequence[tuple[float, int]]) -> float:
    return sum(v * n for v, n in values) / sum(n for _, n in values)
