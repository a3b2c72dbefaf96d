"""The interface of encoders and their shared parts: element embeddings, normalisation, and activation checkpointing."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from ramify.elements import MAX_NUMBER, element_features
from ramify.errors import RamifyError
from ramify.model.encoders.conditions import Conditions
from ramify.model.graph import Graph
from ramify.recipe import EncoderOptions


class Encoder(nn.Module):
    """Maps a `Graph` to features of its atoms. Subclass it to add an architecture (`docs/encoders.md`).

    An encoder must be invariant to translation, permutation of atoms and choice of periodic images; its scalars must be
    invariant and its vectors equivariant under rotation and reflection. It must multiply the contribution of every edge
    by `graph.weight`, so that features are smooth at the cutoff and an edge of weight 0 has no effect. It must accept
    graphs without edges. It must not read values of tensors in Python (no `.item()`, no `if` on tensors), so that
    passes can be compiled, exported and run on meta tensors. It should begin with `embed`, which applies the conditions
    of the model, and set `takes_conditions`. It should begin every round but the first with `exchanged`, and set
    `takes_domains`. The suite `ramify.testing.encoders` tests these rules.

    Linear maps for which fine-tuning can add low-rank updates are `nn.Linear`, applied by calling them or with
    `ramify.model.lora.weight_of`.

    Args:
        options: of the recipe.

    Attributes:
        Options: the recipe keys of this kind.
        width: scalar features per atom, F.
        vector_channels: vector features per atom, C; 0 for encoders without vectors, which do not support direct
            forces.
        rounds: of message passing; features depend on atoms at most that many edges away.
        checkpointing: see `through`; set for training.
        takes_conditions: whether the first features of atoms are those of `embed`.
        takes_domains: whether all rounds but the first begin with `exchanged`, so that several processes of LAMMPS can
            each compute a part of the atoms.
        embedding: module from atomic numbers to the first features, see `element_embedding`.
        conditions: see `ramify.model.encoders.conditions`; None without conditions.
    """

    Options: ClassVar[type[EncoderOptions]]
    takes_conditions: ClassVar[bool] = False
    takes_domains: ClassVar[bool] = False
    checkpointing = False
    embedding: nn.Module
    conditions: Conditions | None

    def __init__(self, options: EncoderOptions, *, vector_channels: int) -> None:
        super().__init__()
        self.width, self.vector_channels = options.width, vector_channels
        self.rounds = options.layers
        self.conditions = None

    def forward(self, graph: Graph) -> tuple[Tensor, Tensor | None]:
        """Invariant scalars (N, F) and equivariant vectors (N, 3, C), or None where C is 0."""
        raise NotImplementedError

    def embed(self, graph: Graph) -> Tensor:
        """First features of the atoms (N, F'), modulated by the conditions of the model."""
        features: Tensor = self.embedding(graph.numbers)
        if self.conditions is None:
            return features
        assert graph.conditions is not None, "a model with conditions needs their values in the batch"
        modulated: Tensor = self.conditions(features, graph.numbers, graph.conditions)
        return modulated

    def exchanged(self, graph: Graph, *features: Tensor) -> list[Tensor]:
        """The features of atoms (N, ...) that a further round of message passing reads, see `Graph.exchange`."""
        return list(features) if graph.exchange is None else graph.exchange(features)

    def through(self, layer: nn.Module, *inputs: Any) -> Any:
        """Calls a layer; with `checkpointing`, saves only `inputs`, and the backward pass recomputes the layer."""
        if not (self.checkpointing and torch.is_grad_enabled()):
            return layer(*inputs)
        # layers use no random numbers; early stops would break second derivatives
        with set_checkpoint_early_stop(False):
            return checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False)


def normalised(vectors: Tensor) -> Tensor:
    """Vectors (N, 3, C), or tensors (N, 5, C), divided by sqrt(1 + their mean square): short ones are nearly unchanged,
    long ones get a length of about 1.

    The counterpart of layer normalisation for scalars, with a smooth floor because vectors start at zero. Without it,
    messages grow with the vectors and multiply them, so that their size is squared at every layer, until structures
    with many neighbours overflow.
    """
    return vectors * torch.rsqrt(1.0 + vectors.square().sum(1, keepdim=True).mean(2, keepdim=True))


class ElementFeatures(nn.Module):
    """Scalars that are linear in `element_features`: elements differ only by their position in the periodic table.

    For data with few structures per element. An embedding has free parameters for every element, with which a network
    overfits to the one or two materials of an element.
    """

    table: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        features = torch.from_numpy(element_features())
        self.weight = nn.Parameter(torch.randn(features.shape[1], width) / math.sqrt(features.shape[1]))
        self.register_buffer("table", features.to(self.weight), persistent=False)

    def forward(self, numbers: Tensor) -> Tensor:
        """(N,) atomic numbers -> (N, width), in the precision of the weights."""
        return (self.table @ self.weight).to(self.table.dtype).index_select(0, numbers)


@torch.no_grad()
def relate_elements(weight: Tensor) -> None:
    """Initialises an embedding (119, width): a random projection of `element_features` plus 0.3 times its values."""
    features = torch.from_numpy(element_features()).to(weight)
    projection = torch.randn(features.shape[1], weight.shape[1]) / math.sqrt(features.shape[1])
    weight.mul_(0.3).add_(features @ projection)


def add_conditions(encoder: Encoder, names: Sequence[str], datasets: int) -> None:
    """Adds the conditions `names` (of `datasets` datasets) to an encoder, initialised from PyTorch's generator.

    Raises:
        RamifyError: the encoder does not take conditions.
    """
    if not encoder.takes_conditions:
        raise RamifyError(
            f"model.conditions: [{', '.join(names)}] needs an encoder that takes conditions, {type(encoder).__name__} "
            "does not",
            fix="leave model.conditions out, or choose another model.encoder.kind; docs/encoders.md describes `embed`",
        )
    weight = encoder.embedding.weight
    assert isinstance(weight, Tensor)
    encoder.conditions = Conditions(names, datasets, weight.shape[1])


def element_embedding(kind: Literal["periodic-table", "random", "features"], width: int) -> nn.Module:
    """A module from atomic numbers (N,) to scalars (N, width), for a value of `model.encoder.elements`."""
    if kind == "features":
        return ElementFeatures(width)
    embedding = nn.Embedding(MAX_NUMBER + 1, width)
    if kind == "periodic-table":
        relate_elements(embedding.weight)
    return embedding
