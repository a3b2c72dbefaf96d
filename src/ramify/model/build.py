"""Builds a model from a recipe and the statistics of its datasets."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from ramify.errors import RamifyError
from ramify.labels import in_order, measurable
from ramify.model.branch import Branch, ForceKind
from ramify.model.encoders.base import Encoder, add_conditions
from ramify.model.heads import HEADS, LabelScale, ScaledHead
from ramify.model.multibranch import MultiBranch
from ramify.model.physics.repulsion import ZBL
from ramify.recipe import EncoderOptions, ModelOptions, Recipe, encoder_class
from ramify.store.manifest import Manifest


@dataclass(frozen=True, slots=True)
class LabelSpread:
    """The spread of the labels of a training split, which sets the units of heads and losses.

    Attributes:
        energy: eV/atom, standard deviation after subtraction of the reference energies.
        forces: eV/Å per component, mean absolute value (less sensitive to outliers than the root mean square); None
            without force labels.
        structures: number of structures of the split.
        labels: of further labels of the split, in their units of errors.
        energy_mean: eV/atom, mean energy after stated reference energies; 0 where they were fitted.
    """

    energy: float
    forces: float | None
    structures: int
    labels: Mapping[str, LabelScale] = field(default_factory=dict)
    energy_mean: float = 0.0

    @property
    def unit(self) -> float:
        """eV and eV/Å: one unit for energies and forces, since forces are derivatives over about one Å."""
        return max(self.energy, self.forces or 0.0)

    def to_dict(self) -> dict[str, Any]:
        """As plain data; further labels and the mean energy only if there are any."""
        content = asdict(self)
        return {key: value for key, value in content.items() if value or key in ("energy", "forces", "structures")}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "LabelSpread":
        """From `to_dict`."""
        labels = {name: LabelScale(**scale) for name, scale in content.get("labels", {}).items()}
        mean = content.get("energy_mean", 0.0)
        return cls(content["energy"], content["forces"], content["structures"], labels, mean)

    @classmethod
    def of_manifest(cls, manifest: Manifest) -> "LabelSpread":
        """From a store's manifest."""
        statistics = manifest.statistics
        energy, forces = statistics.energy_std, statistics.forces_mae
        labels = {name: LabelScale(mean=found.mean, mad=found.mad) for name, found in statistics.labels.items()}
        # a spread that is only rounding is not a valid unit
        return cls(
            energy if measurable("energy", energy) else 1.0,
            forces if measurable("forces", forces) else None,
            manifest.splits["train"].structures,
            labels,
            statistics.energy_mean,
        )


def build_model(
    recipe: Recipe, spreads: Mapping[str, LabelSpread], hosted: Collection[str] | None = None
) -> MultiBranch:
    """The model of a recipe, initialised from `train.seed` (float32 or float64, by `train.precision`).

    Encoder and branches use separate random numbers, so that the initial weights of a part do not depend on the other
    parts of the model.

    Args:
        recipe: of model and branches.
        spreads: of every dataset; the unit of a branch is the mean over its datasets, weighted by structures.
        hosted: the branches to build, in the order of the recipe; None for all.

    Raises:
        RamifyError: the recipe selects direct forces with an encoder without vectors.
    """
    branches = {
        name: [spreads[d] for d in datasets]
        for name, datasets in recipe.datasets_of_branches().items()
        if hosted is None or name in hosted
    }
    model = build_parts(
        recipe.model, branches, seed=recipe.train.seed, checkpointing=recipe.train.checkpointing == "layers"
    )
    return model.to(torch.float64 if recipe.train.precision == "fp64" else torch.float32)


def build_parts(
    options: ModelOptions, branches: Mapping[str, Sequence[LabelSpread]], *, seed: int = 0, checkpointing: bool = False
) -> MultiBranch:
    """Encoder and branches, initialised from `seed`; see `build_model`.

    Args:
        options: of encoder and heads.
        branches: the spreads of the datasets of each branch.
        seed: of the random numbers.
        checkpointing: recompute the layers of the encoder in the backward pass instead of keeping activations.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would also seed accelerators
        encoder = build_encoder(options.encoder)
        encoder.checkpointing = checkpointing
        torch.default_generator.manual_seed(_seed_of_branch(seed, "/conditions"))  # not the name of a branch
        condition(encoder, options)
        built = {}
        for name, spreads in branches.items():
            torch.default_generator.manual_seed(_seed_of_branch(seed, name))
            built[name] = build_branch(options, encoder, spreads)
    return MultiBranch(encoder, built, options.encoder.cutoff, build_repulsion(options))


def _seed_of_branch(seed: int, name: str) -> int:
    """A seed from the seed of the run and the name of the branch."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "little")


def build_encoder(options: EncoderOptions) -> Encoder:
    """The encoder of a recipe, initialised from PyTorch's generator.

    Raises:
        RamifyError: the class of its kind is not an `Encoder`.
    """
    encoder = encoder_class(options.kind)(options)
    if not isinstance(encoder, Encoder):
        raise RamifyError(
            f"model.encoder.kind: '{options.kind}' creates a {type(encoder).__name__}, which is not an encoder",
            fix="derive it from ramify.model.encoders.base.Encoder, see docs/encoders.md",
        )
    return encoder


def condition(encoder: Encoder, options: ModelOptions) -> None:
    """Adds the conditions of the model, if it has any.

    Raises:
        RamifyError: the encoder does not take conditions.
    """
    if options.conditions:
        add_conditions(encoder, options.conditions, len(options.datasets))


def build_repulsion(options: ModelOptions) -> nn.Module | None:
    """The repulsion of nuclei of `model.repulsion`."""
    return ZBL() if options.repulsion == "zbl" else None


def build_branch(options: ModelOptions, encoder: Encoder, spreads: Sequence[LabelSpread]) -> Branch:
    """The heads of a branch for datasets with these spreads.

    Raises:
        RamifyError: the options select direct forces with an encoder without vectors.
    """
    energy = _mean([(s.energy, s.structures) for s in spreads])
    with_forces = [(s.forces, s.structures) for s in spreads if s.forces is not None]
    forces: ForceKind | None = options.force_head.kind if with_forces else None
    if forces == "direct" and not encoder.vector_channels:
        raise RamifyError(
            f"model.force_head.kind: direct needs vectors of the encoder, but model.encoder.kind: "
            f"{options.encoder.kind} has none",
            fix="set model.force_head.kind: conservative (-dE/dx), or choose an encoder with vectors",
        )
    forces_scale = _mean(with_forces) if with_forces else 1.0
    return Branch(
        encoder.width,
        encoder.vector_channels,
        energy_head=(options.energy_head.layers, options.energy_head.width),
        force_head=(options.force_head.layers, options.force_head.width),
        forces=forces,
        # one scale for a conservative branch: forces are derivatives of energies over about one Å
        energy_scale=max(energy, forces_scale) if forces == "conservative" else energy,
        forces_scale=forces_scale,
        energy_mean=_mean([(s.energy_mean, s.structures) for s in spreads]),
        labels=_label_heads(options, spreads),
    )


def _label_heads(options: ModelOptions, spreads: Sequence[LabelSpread]) -> dict[str, nn.Module]:
    """A head for every further label of the datasets of the branch."""
    heads: dict[str, nn.Module] = {}
    for name in in_order([label for spread in spreads for label in spread.labels]):
        if name not in HEADS:
            raise RamifyError(f"label '{name}' has no head", fix="register one: ramify.model.heads.register_head(...)")
        found = [(spread.labels[name], spread.structures) for spread in spreads if name in spread.labels]
        scale = LabelScale(*(_mean([(getattr(s, key), n) for s, n in found]) for key in ("mean", "mad")))
        head = HEADS[name](options.encoder.width, options.energy_head.layers, options.energy_head.width)
        heads[name] = ScaledHead(head, scale)
    return heads


def _mean(values: Sequence[tuple[float, int]]) -> float:
    return sum(v * n for v, n in values) / sum(n for _, n in values)
